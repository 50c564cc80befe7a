"""Shards in a bucket: copies the files that a command needs to the cache."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import platformdirs
from rich.filesize import decimal

from headct.errors import RESUMES, StorageError, UsageError
from headct.json_documents import LARGEST, refuse_large
from headct.layout import INDEX, MANIFEST
from headct.locks import Lock
from headct.reasons import ObjectFault
from headct.stores import find_store
from headct.stores.protocol import run_in_daemon_thread
from trainer.data.shard_cache import (
    FILLING,
    CachedFile,
    free_bytes,
    partial_path,
    remove_other_versions,
    remove_partial,
    use_folder,
    version_folder,
)
from trainer.data.shards import ShardDirectory, Split, parse_manifest
from trainer.display import Display
from trainer.files import write_whole
from trainer.options import ShardAccess

GB = 10**9
_FILES_IN_FLIGHT = 8
_REQUEST_BYTES = 1 << 24  # a failed request loses no more than this
_MIB = 1 << 20


class RemoteShards:
    """A shard directory in a bucket.

    Args:
        url: of the directory.
        access: options of reading buckets.
        display: shows progress and warnings.

    Raises:
        UsageError: the URL names no bucket.
        StoreError: the settings of the bucket's client cannot be used.
    """

    def __init__(self, url: str, access: ShardAccess, display: Display) -> None:
        self._store, folder = find_store(url, access.storage_patience)
        self._prefix = f"{folder}/" if folder else ""  # of the keys
        self._url = url.rstrip("/")
        self._display = display
        self._cache = Path(access.shard_cache or platformdirs.user_cache_path("headct-shards"))
        self._limit = round(access.shard_cache_gb * GB) or None  # bytes in the cache
        self._copied = 0  # bytes

    def open(self) -> ShardDirectory:
        """Read the current manifest; its folder in the cache stays while the result exists."""
        try:
            with _warnings_shown(self._display):
                data = self._read(MANIFEST, 0, LARGEST + 1)
        except FileNotFoundError:
            raise UsageError(
                f"{self._url}: no {MANIFEST}, so no finished shard directory"
            ) from None
        refuse_large(len(data), f"{self._url}/{MANIFEST}")
        folder = version_folder(self._cache, self._url, hashlib.sha256(data).hexdigest())
        shards = parse_manifest(data, folder.absolute(), self._url)
        try:
            lease = use_folder(shards.path)
            write_whole(shards.path / MANIFEST, lambda path: path.write_bytes(data))
        except OSError as error:
            raise UsageError(
                f"--shard_cache {self._cache}: cannot be written to ({error.strerror})"
            ) from None
        return replace(shards, lease=lease)

    def provide(self, shards: ShardDirectory, splits: tuple[Split, ...]) -> None:
        """Copy the missing files of some splits, and the index."""
        folder = shards.path
        try:
            with _warnings_shown(self._display):
                files = self._needed_files(shards, splits)
                if all(file.is_in(folder) for file in files):
                    return
                with self._lock_for_filling(folder) as lock:
                    if lock.is_held:
                        remove_partial(folder)
                    missing = [
                        file
                        for file in files
                        if not file.is_in(folder) and not file.link_from_other_version(folder)
                    ]
                    self._copy_files(folder, missing)
                    remove_other_versions(folder)
        except OSError as error:
            raise StorageError(
                f"--shard_cache {self._cache}: cannot be written to ({error.strerror}); {RESUMES}"
            ) from None

    def _needed_files(self, shards: ShardDirectory, splits: tuple[Split, ...]) -> list[CachedFile]:
        files = [
            CachedFile(shard.path.name, shard.bytes, shard.sha256, shard.sha256)
            for split in splits
            for shard in split.shards
        ]
        if shards.index is not None:
            sha256 = shards.index.sha256
            return [*files, CachedFile(INDEX, shards.index.bytes, sha256, sha256)]
        info = self._store.info(self._prefix + INDEX)
        if info is None:
            return files
        return [*files, CachedFile(INDEX, info.size, f"version {info.version}", "")]

    def _lock_for_filling(self, folder: Path) -> Lock:
        try:
            return Lock(folder / FILLING)
        except BlockingIOError:
            self._display.say(f"{self._url}: another process is copying it; waiting")
            return Lock(folder / FILLING, wait=True)

    def _copy_files(self, folder: Path, files: list[CachedFile]) -> None:
        if not files:
            return
        total, free = sum(file.bytes for file in files), free_bytes(self._cache, self._limit)
        if total > free:
            bound = f" of its {decimal(self._limit)}" if self._limit is not None else ""
            raise UsageError(
                f"--shard_cache {self._cache}: {decimal(total)} are to be copied, and"
                f" {decimal(free)}{bound} are free; delete old copies in this folder, choose"
                " another one, or raise --shard_cache_gb"
            )
        self._display.say(
            f"{self._url}: copying {decimal(total)} to {folder}; {decimal(free)} are free"
        )
        self._display.begin("copying shards, MiB", -(-total // _MIB))
        self._copied = 0
        try:
            asyncio.run(self._copy_together(folder, files))
        finally:
            self._display.end()

    async def _copy_together(self, folder: Path, files: list[CachedFile]) -> None:
        """Copy files, several at a time, the largest first; the first failure ends all copies."""
        slots = asyncio.Semaphore(_FILES_IN_FLIGHT)

        async def copy_in_turn(file: CachedFile) -> None:
            async with slots:
                await self._copy_file(folder, file)

        await asyncio.gather(*map(copy_in_turn, sorted(files, key=lambda file: -file.bytes)))

    async def _copy_file(self, folder: Path, file: CachedFile) -> None:
        """Copy a file; retry once if its content differs from the manifest.

        Raises:
            UsageError: the file is missing or damaged.
            StorageError: the store fails.
        """
        url, unfinished = f"{self._url}/{file.name}", partial_path(folder, file)
        try:
            for _ in range(2):
                sha256, size = await self._download(file, unfinished)
                if size == file.bytes and file.sha256 in ("", sha256):
                    unfinished.replace(folder / file.name)
                    file.record_in(folder)
                    return
                self._copied -= size
        except FileNotFoundError:
            raise UsageError(f"{url}: this file is missing") from None
        finally:
            unfinished.unlink(missing_ok=True)
        raise UsageError(
            f"{url}: damaged, or replaced since: {size} bytes with SHA-256 {sha256[:12]}...,"
            f" where the manifest has {file.bytes} with {file.sha256[:12]}..."
        )

    async def _download(self, file: CachedFile, path: Path) -> tuple[str, int]:
        """Write an object to a local file; return its SHA-256 and size."""
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as written:
            while size < file.bytes:
                length = min(_REQUEST_BYTES, file.bytes - size)
                request = run_in_daemon_thread(partial(self._read, file.name, size, length))
                data = await asyncio.wrap_future(request)
                if not data:
                    break
                # In threads: both release the GIL, and other files keep arriving.
                await asyncio.gather(
                    asyncio.to_thread(digest.update, data), asyncio.to_thread(written.write, data)
                )
                size += len(data)
                self._copied += len(data)
                self._display.update(self._copied // _MIB)
            await asyncio.to_thread(os.fsync, written.fileno())
        return digest.hexdigest(), size

    def _read(self, name: str, start: int, length: int) -> bytes:
        """Return a range of an object; empty beyond its end.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: the store fails, or refuses access.
        """
        try:
            return self._store.read(self._prefix + name, start, length)
        except ObjectFault as fault:
            raise StorageError(f"{self._url}/{name}: {fault.what}; restore it first") from None
        except OSError as error:
            if error.errno == errno.EINVAL:  # shorter than the manifest says
                return b""
            raise


@contextmanager
def _warnings_shown(display: Display) -> Iterator[None]:
    """Show warnings about retries."""
    handler = logging.Handler()
    handler.emit = lambda record: display.say(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("headct.stores")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
