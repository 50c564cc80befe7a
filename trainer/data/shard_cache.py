"""The cache of shards: complete, used and obsolete copies, and the free space.

    CACHE/NAME-HASH/VERSION/    HASH of the URL, VERSION of the manifest
        manifest.json, index.parquet, shards
        .FILE.checked           size, modification time and checksum of the verified FILE
        .in_use                 locked (shared) by every process that reads the copy
        .filling                locked by the process that copies files

A file that another version of the directory also has is linked instead of copied.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from headct.errors import UsageError
from headct.json_documents import parse_json, read_bytes
from headct.locks import Lock
from headct.stores import digest_file
from trainer.files import write_json

FILLING = ".filling"
_IN_USE = ".in_use"


@dataclass(frozen=True)
class CachedFile:
    """A file that the cache should hold.

    Attributes:
        identity: changes whenever the content changes.
        sha256: in hexadecimal; empty if unknown.
    """

    name: str
    bytes: int
    identity: str
    sha256: str

    def is_in(self, folder: Path) -> bool:
        """Return whether a folder has the file; hash the file only if there is no record.

        Raises:
            UsageError: the file cannot be read.
        """
        path = folder / self.name
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        if status.st_size != self.bytes:
            return False
        with suppress(FileNotFoundError, UsageError):  # no record, or a damaged one
            record = parse_json(read_bytes(self._record(folder)), "record")
            if record == [status.st_size, status.st_mtime_ns, self.identity]:
                return True
        if not self.sha256 or _hash_file(path) != self.sha256:
            return False
        self.record_in(folder)
        return True

    def record_in(self, folder: Path) -> None:
        """Record that a folder has the file and that its content was verified."""
        status = (folder / self.name).stat()
        write_json(self._record(folder), [status.st_size, status.st_mtime_ns, self.identity])

    def _record(self, folder: Path) -> Path:
        return folder / f".{self.name}.checked"

    def link_from_other_version(self, folder: Path) -> bool:
        """Link the file from another version of the directory; return whether one has it."""
        for other in _other_versions(folder):
            with suppress(OSError, UsageError):  # another process may be removing that version
                if self.is_in(other):
                    (folder / self.name).unlink(missing_ok=True)
                    os.link(other / self.name, folder / self.name)
                    self.record_in(folder)
                    return True
        return False


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return digest_file(file)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def version_folder(cache: Path, url: str, manifest_sha256: str) -> Path:
    """Return the folder for the copy of a directory with this manifest."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", url.partition("://")[2]).strip("-.")[-60:]
    return cache / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}" / manifest_sha256[:16]


def partial_path(folder: Path, file: CachedFile) -> Path:
    """Return a new name for a file that is being copied."""
    return folder / f".{file.name}-{uuid4().hex}.part"


def remove_partial(folder: Path) -> None:
    """Remove the unfinished copies that killed processes left."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def use_folder(folder: Path) -> Lock:
    """Create a folder; it is not removed while the returned lock exists.

    Raises:
        OSError: the folder cannot be created.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process has just removed the folder
            lock = Lock(folder / _IN_USE, shared=True, wait=True)
            if lock.is_of(folder / _IN_USE):
                return lock
            lock.release()


def remove_other_versions(folder: Path) -> None:
    """Remove copies of earlier versions of a directory that no process uses."""
    for other in _other_versions(folder):
        with suppress(OSError), Lock(other / _IN_USE) as lock:
            if lock.is_held:
                shutil.rmtree(other, ignore_errors=True)


def _other_versions(folder: Path) -> list[Path]:
    return [path for path in folder.parent.iterdir() if path != folder and path.is_dir()]


def free_bytes(cache: Path, limit: int | None) -> int:
    """Return how many bytes may still be written to the cache.

    Args:
        cache: its folder.
        limit: maximum bytes of the cache; None for all free disk space.
    """
    free = shutil.disk_usage(cache).free
    return free if limit is None else max(0, min(free, limit - _used_bytes(cache)))


def _used_bytes(cache: Path) -> int:
    sizes: dict[tuple[int, int], int] = {}  # by device and inode: linked files count once
    for in_use in cache.glob(f"*/*/{_IN_USE}"):
        with suppress(FileNotFoundError):  # another process is removing this copy
            for entry in os.scandir(in_use.parent):
                status = entry.stat(follow_symlinks=False)
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
