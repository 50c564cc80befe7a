"""The cache of shards: complete, used and obsolete copies, and the free space.

    CACHE/NAME-HASH/VERSION/    HASH of the URL, VERSION of the manifest
        manifest.json, index.parquet, shards    each was verified before it got its name
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
from pathlib import Path
from typing import NamedTuple

from headct.errors import UsageError
from headct.layout import INDEX, MANIFEST
from headct.locks import Lock
from trainer.data.shards import ShardDirectory, Split, parse_manifest

FILLING = ".filling"
_IN_USE = ".in_use"


class File(NamedTuple):
    """A file as the manifest lists it."""

    name: str
    bytes: int
    sha256: str


def version_folder(cache: Path, url: str, manifest_sha256: str) -> Path:
    """Return the folder for the copy of a directory with this manifest."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", url.partition("://")[2]).strip("-.")[-60:]
    return cache / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}" / manifest_sha256[:16]


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


def listed_files(shards: ShardDirectory, splits: tuple[Split, ...]) -> list[File]:
    """Return the shards of some splits and the index, as the manifest lists them."""
    found = [shard for split in splits for shard in split.shards]
    files = [File(shard.file, shard.bytes, shard.sha256) for shard in found]
    index = shards.manifest.files.get(INDEX)
    return [*files, File(INDEX, index.bytes, index.sha256)] if index else files


def has_file(folder: Path, file: File) -> bool:
    """Return whether a copy has a file."""
    try:
        return (folder / file.name).stat().st_size == file.bytes
    except FileNotFoundError:
        return False


def link_from_other_version(folder: Path, file: File) -> bool:
    """Link a file from another version of the directory; return whether one has it."""
    for other in _other_versions(folder):
        with suppress(OSError, UsageError):  # another process may be removing that version
            shards = parse_manifest((other / MANIFEST).read_bytes(), other, str(other))
            if file in listed_files(shards, shards.splits) and has_file(other, file):
                (folder / file.name).unlink(missing_ok=True)
                os.link(other / file.name, folder / file.name)
                return True
    return False


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
    if limit is None:
        return free
    sizes: dict[tuple[int, int], int] = {}  # by device and inode: linked files count once
    for in_use in cache.glob(f"*/*/{_IN_USE}"):
        with suppress(FileNotFoundError):  # another process is removing this copy
            for entry in os.scandir(in_use.parent):
                status = entry.stat(follow_symlinks=False)
                sizes[status.st_dev, status.st_ino] = status.st_size
    return max(0, min(free, limit - sum(sizes.values())))
