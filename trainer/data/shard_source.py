"""Sources of shards: a local folder, or a bucket whose files are copied to the cache."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import platformdirs
from rich.filesize import decimal

from headct.errors import RESUMES, StorageError, UsageError
from headct.json_documents import LARGEST, refuse_large
from headct.layout import INDEX, MANIFEST
from headct.locks import Lock
from headct.reasons import ObjectFault
from headct.stores import REMOTE_SCHEMES, find_store, is_local
from headct.stores.protocol import run_in_daemon_thread
from trainer.data.shard_cache import (
    FILLING,
    File,
    free_bytes,
    has_file,
    link_from_other_version,
    listed_files,
    remove_other_versions,
    use_folder,
    version_folder,
)
from trainer.data.shards import (
    ShardDirectory,
    Split,
    check_files,
    is_folder,
    parse_manifest,
    read_shard_directory,
)
from trainer.display import Display
from trainer.files import write_whole
from trainer.options import ShardAccess

GB = 10**9
_FILES_IN_FLIGHT = 8
_REQUEST_BYTES = 1 << 24  # a failed request loses no more than this
_MIB = 1 << 20
_PROGRESS_SECONDS = 0.5
_ONE_SLASH = re.compile(rf"({'|'.join(REMOTE_SCHEMES)}):/([^/].*)")


@dataclass(frozen=True)
class LocalShards:
    """A shard directory in a local folder."""

    path: Path

    def open(self) -> ShardDirectory:
        """Read the manifest; raise UsageError if there is no valid one."""
        if not is_folder(self.path) and (url := _ONE_SLASH.fullmatch(str(self.path))):
            raise UsageError(f"{self.path}: no such folder; a URL is {url[1]}://{url[2]}")
        return read_shard_directory(self.path)

    def provide(self, shards: ShardDirectory, splits: tuple[Split, ...]) -> None:
        """Compare the sizes of the files; `make verify` reads them all."""
        check_files(shards, splits)


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

    def open(self) -> ShardDirectory:
        """Read the current manifest; its folder in the cache stays while the result exists.

        Raises:
            UsageError: there is no manifest, or it is wrong; or the cache cannot be written.
            StorageError: the store fails, or refuses access.
        """
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
        """Copy the missing files of some splits, and the index, to the folder of `shards`.

        Raises:
            UsageError: a file is missing, differs from the manifest, or does not fit on the disk.
            StorageError: the store fails, or refuses access.
        """
        folder = shards.path
        try:
            with _warnings_shown(self._display):
                files = listed_files(shards, splits)
                if INDEX not in shards.manifest.files and (
                    info := self._store.info(self._prefix + INDEX)
                ):
                    files.append(File(INDEX, info.size, ""))
                if all(has_file(folder, file) for file in files):
                    return
                with self._lock_for_filling(folder) as lock:
                    for part in folder.glob(".*.part") if lock.is_held else ():
                        part.unlink(missing_ok=True)  # left by a killed process
                    missing = [
                        file
                        for file in files
                        if not has_file(folder, file) and not link_from_other_version(folder, file)
                    ]
                    self._copy_files(folder, missing)
                    remove_other_versions(folder)
        except OSError as error:
            raise StorageError(
                f"--shard_cache {self._cache}: cannot be written to ({error.strerror}); {RESUMES}"
            ) from None

    def _lock_for_filling(self, folder: Path) -> Lock:
        try:
            return Lock(folder / FILLING)
        except BlockingIOError:
            self._display.say(f"{self._url}: another process is copying it; waiting")
            return Lock(folder / FILLING, wait=True)

    def _copy_files(self, folder: Path, files: list[File]) -> None:
        """Copy files, several at a time, the largest first; the first failure ends all copies."""
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
        remaining = iter(sorted(files, key=lambda file: -file.bytes))  # shared by the threads
        parts = {file: folder / f".{file.name}-{uuid4().hex}.part" for file in files}
        copied = dict.fromkeys(files, 0)  # bytes
        stopped = threading.Event()

        def copy_in_turn() -> None:
            for file in remaining:
                if stopped.is_set():
                    return
                self._copy_file(file, parts[file], copied)
                parts[file].replace(folder / file.name)

        self._display.begin("copying shards, MiB", -(-total // _MIB))
        try:
            for part in parts.values():  # the threads make none: they may outlive this function
                part.touch()
            pending = {run_in_daemon_thread(copy_in_turn) for _ in files[:_FILES_IN_FLIGHT]}
            while pending:
                done, pending = wait(pending, _PROGRESS_SECONDS, FIRST_EXCEPTION)
                for thread in done:
                    thread.result()
                self._display.update(sum(copied.values()) // _MIB)
        finally:
            stopped.set()
            for part in parts.values():
                part.unlink(missing_ok=True)
            self._display.end()

    def _copy_file(self, file: File, part: Path, copied: dict[File, int]) -> None:
        """Copy a file; retry once if its content differs from the manifest.

        Args:
            file: to copy.
            part: the new file, which exists; removed if the copying has ended.
            copied: bytes so far, by file; is updated.

        Raises:
            UsageError: the file is missing or damaged.
            StorageError: the store fails.
        """
        url = f"{self._url}/{file.name}"
        for _ in range(2):
            digest, copied[file] = hashlib.sha256(), 0
            with part.open("r+b") as written:
                written.truncate()
                while length := min(_REQUEST_BYTES, file.bytes - copied[file]):
                    try:
                        data = self._read(file.name, copied[file], length)
                    except FileNotFoundError:
                        raise UsageError(f"{url}: this file is missing") from None
                    if not data:
                        break
                    digest.update(data)
                    written.write(data)
                    copied[file] += len(data)
                os.fsync(written.fileno())
            sha256 = digest.hexdigest()
            if copied[file] == file.bytes and file.sha256 in ("", sha256):
                return
        raise UsageError(
            f"{url}: damaged, or replaced since: {copied[file]} bytes with SHA-256"
            f" {sha256[:12]}..., where the manifest has {file.bytes} with {file.sha256[:12]}..."
        )

    def _read(self, name: str, start: int, length: int) -> bytes:
        """Return a range of an object; empty beyond its end.

        Raises FileNotFoundError, or StorageError if the store fails or refuses access.
        """
        try:
            return self._store.read(self._prefix + name, start, length)
        except ObjectFault as fault:
            raise StorageError(f"{self._url}/{name}: {fault.what}; restore it first") from None


ShardSource = LocalShards | RemoteShards


def find_shards(
    location: str | os.PathLike[str], access: ShardAccess, display: Display
) -> ShardSource:
    """Return the source that a path or URL names.

    Raises:
        UsageError: the URL names no bucket.
        StoreError: the settings of the bucket's client cannot be used.
    """
    text = os.fspath(location)
    if is_local(text):
        return LocalShards(Path(text.removeprefix("file://")))
    return RemoteShards(text, access, display)


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
