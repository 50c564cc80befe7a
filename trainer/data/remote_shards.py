"""Shards in a bucket: the files that are needed are copied into the cache, once."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import monotonic

import platformdirs
from rich.filesize import decimal

from headct.errors import StorageError, UsageError
from headct.layout import INDEX, MANIFEST
from trainer.data.folder_locks import fill_folder, use_folder
from trainer.data.shard_cache import (
    CachedFile,
    is_there,
    link_from_other_version,
    make_room,
    remove_other_versions,
    room,
    version_folder,
    write_record,
)
from trainer.data.shards import ShardDirectory, Split, parse_manifest
from trainer.data.stores import Bucket, open_bucket, run_requests
from trainer.files import write_whole
from trainer.json_documents import LARGEST, refuse_large
from trainer.options import ShardAccess
from trainer.progress import Display

GB = 10**9
_FILES_AT_ONCE = 8
_PART = 1 << 24  # bytes of a request; a request that fails costs no more than that
_MIB = 1 << 20
_BETWEEN_WARNINGS = 30.0  # seconds


@dataclass
class _Copied:
    """How many bytes are copied, on the display."""

    display: Display
    bytes: int = 0

    def add(self, count: int) -> None:
        """Counts more, or fewer where something is copied again."""
        self.bytes += count
        self.display.update(self.bytes // _MIB)


@dataclass
class _Warnings:
    """Lines about requests that fail, now and then one."""

    display: Display
    last: float = float("-inf")

    def __call__(self, text: str) -> None:
        """Shows a line unless one was shown just now."""
        if monotonic() - self.last >= _BETWEEN_WARNINGS:
            self.last = monotonic()
            self.display.say(text)


@dataclass(frozen=True)
class RemoteShards:
    """A shard directory in a bucket."""

    url: str
    access: ShardAccess
    display: Display

    @property
    def cache(self) -> Path:
        """The folder for copies."""
        default = platformdirs.user_cache_path("headct-shards")
        return Path(self.access.shard_cache) if self.access.shard_cache else default

    @property
    def limit(self) -> int | None:
        """Bytes that the cache may take; None for all that is free."""
        return round(self.access.shard_cache_gb * GB) or None

    @cached_property
    def bucket(self) -> Bucket:
        """The bucket of the URL."""
        scheme, _, rest = self.url.partition("://")
        url = f"{scheme}://{rest.partition('/')[0]}"
        return open_bucket(url, self.access.storage_patience, _Warnings(self.display))

    def key(self, name: str) -> str:
        """The key of a file of the directory."""
        folder = self.url.partition("://")[2].partition("/")[2].strip("/")
        return f"{folder}/{name}" if folder else name

    def open(self) -> ShardDirectory:
        """Reads the manifest as it is now; the folder of its copy is kept from being removed."""
        try:
            data = run_requests(self.bucket.read_part(self.key(MANIFEST), 0, LARGEST + 1))
        except FileNotFoundError:
            raise UsageError(f"{self.url}: no {MANIFEST}, so no finished shard directory") from None
        refuse_large(len(data), f"{self.url}/{MANIFEST}")
        folder = version_folder(self.cache, self.url, hashlib.sha256(data).hexdigest()).absolute()
        shards = parse_manifest(data, folder, self.url)
        try:
            lease = use_folder(folder)
            write_whole(folder / MANIFEST, lambda path: path.write_bytes(data))
        except OSError as error:
            raise UsageError(
                f"--shard_cache {self.cache}: cannot be written to ({error.strerror})"
            ) from None
        return replace(shards, lease=lease)

    def provide(self, shards: ShardDirectory, splits: tuple[Split, ...]) -> None:
        """Copies what is not there yet."""
        files = self.wanted(shards, splits)
        folder = shards.path
        try:
            if all(is_there(folder, each) for each in files):
                return
            with fill_folder(folder, self.say_wait):
                missing = [
                    each
                    for each in files
                    if not is_there(folder, each) and not link_from_other_version(folder, each)
                ]
                self.copy(folder, missing)
                remove_other_versions(folder)
        except OSError as error:
            raise StorageError(
                f"--shard_cache {self.cache}: cannot be written to ({error.strerror});"
                " the same command resumes"
            ) from None

    def wanted(self, shards: ShardDirectory, splits: tuple[Split, ...]) -> list[CachedFile]:
        """The files that are to be there: some splits' shards, and the index if there is one."""
        files = [
            CachedFile(each.path.name, each.bytes, each.sha256, each.sha256)
            for split in splits
            for each in split.shards
        ]
        if shards.index is not None:
            sha256 = shards.index.sha256
            return [*files, CachedFile(INDEX, shards.index.bytes, sha256, sha256)]
        try:
            size, version = run_requests(self.bucket.version(self.key(INDEX)))
        except FileNotFoundError:
            return files
        return [*files, CachedFile(INDEX, size, f"version {version}", "")]

    def say_wait(self) -> None:
        """Says why nothing seems to happen."""
        self.display.say(f"{self.url}: another process is copying it; waiting")

    def copy(self, folder: Path, files: list[CachedFile]) -> None:
        """Copies files where there is room for them."""
        if not files:
            return
        total = sum(each.bytes for each in files)
        make_room(self.cache, folder, total, self.limit, self.display.say)
        self.display.say(
            f"{self.url}: copying {decimal(total)} to {folder};"
            f" {decimal(room(self.cache, self.limit))} are free"
        )
        self.display.begin("copying shards, MiB", -(-total // _MIB))
        try:
            run_requests(self.copy_together(folder, files))
        finally:
            self.display.end()

    async def copy_together(self, folder: Path, files: list[CachedFile]) -> None:
        """Copies files, several at a time, the largest first; one that fails ends all."""
        copied, slots = _Copied(self.display), asyncio.Semaphore(_FILES_AT_ONCE)

        async def copy_in_turn(file: CachedFile) -> None:
            async with slots:
                await self.copy_file(folder, file, copied)

        ordered = sorted(files, key=lambda each: -each.bytes)
        await asyncio.gather(*map(copy_in_turn, ordered))

    async def copy_file(self, folder: Path, file: CachedFile, copied: _Copied) -> None:
        """Copies a file; once more if what arrives is not what the manifest says.

        Raises:
            UsageError: it is not there, or damaged.
            StorageError: the store fails.
        """
        partial = folder / f".{file.name}-{os.getpid()}.part"
        try:
            for _ in range(2):
                sha256, size = await self.write_partial(partial, file, copied)
                if size == file.bytes and file.sha256 in ("", sha256):
                    partial.replace(folder / file.name)
                    write_record(folder, file)
                    return
                copied.add(-size)
        except FileNotFoundError:
            raise UsageError(f"{self.url}/{file.name}: this file is missing") from None
        finally:
            partial.unlink(missing_ok=True)
        raise UsageError(
            f"{self.url}/{file.name}: damaged, or replaced since: {size} bytes with SHA-256"
            f" {sha256[:12]}..., where the manifest has {file.bytes} with {file.sha256[:12]}..."
        )

    async def write_partial(self, path: Path, file: CachedFile, copied: _Copied) -> tuple[str, int]:
        """Writes what the store has under a file's name; its SHA-256 and bytes."""
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as written:
            while size < file.bytes:
                wanted = min(_PART, file.bytes - size)
                data = await self.bucket.read_part(self.key(file.name), size, wanted)
                if not data:
                    break
                # In threads: neither holds Python's lock, and other files go on arriving.
                await asyncio.gather(
                    asyncio.to_thread(digest.update, data), asyncio.to_thread(written.write, data)
                )
                size += len(data)
                copied.add(len(data))
            await asyncio.to_thread(os.fsync, written.fileno())
        return digest.hexdigest(), size
