"""The folder for copies of shards, and how much room there is.

    CACHE/NAME-HASH/VERSION/    HASH is of the URL, VERSION of the manifest
        manifest.json, index.parquet, shards
        .FILE.checked           what FILE was when it was found to be right

A file of another version of the same directory with the same content is linked, not copied.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from headct.errors import UsageError
from trainer.data.folder_locks import IN_USE, last_use, remove_unused
from trainer.files import write_json
from trainer.json_documents import parse_json, read_bytes


@dataclass(frozen=True)
class CachedFile:
    """A file as the cache shall hold it.

    Attributes:
        identity: another text for any other content.
        sha256: in hexadecimal; empty where nothing says what it is.
    """

    name: str
    bytes: int
    identity: str
    sha256: str

    def record(self, folder: Path) -> Path:
        """Where it is kept that the file was checked."""
        return folder / f".{self.name}.checked"


def version_folder(cache: Path, url: str, manifest_sha256: str) -> Path:
    """The folder for the copy of a directory with this manifest."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", url.partition("://")[2]).strip("-.")[-60:]
    return cache / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}" / manifest_sha256[:16]


def is_there(folder: Path, file: CachedFile) -> bool:
    """Whether a file is in the folder and right; it is read only if no record tells.

    Raises:
        UsageError: it cannot be read.
    """
    path = folder / file.name
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    if found.st_size != file.bytes:
        return False
    if read_record(folder, file) == [found.st_size, found.st_mtime_ns, file.identity]:
        return True
    if not file.sha256 or _hash_file(path) != file.sha256:
        return False
    write_record(folder, file)
    return True


def read_record(folder: Path, file: CachedFile) -> object:
    """What was kept of a file; None if nothing usable was."""
    try:
        return parse_json(read_bytes(file.record(folder)), "record")
    except (FileNotFoundError, UsageError):
        return None


def write_record(folder: Path, file: CachedFile) -> None:
    """Keeps that a file was found to be right."""
    found = (folder / file.name).stat()
    write_json(file.record(folder), [found.st_size, found.st_mtime_ns, file.identity])


def _hash_file(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def link_from_other_version(folder: Path, file: CachedFile) -> bool:
    """Links a file that another version of the directory has, too; whether one does."""
    for other in _other_versions(folder):
        with suppress(OSError, UsageError):  # another process may be removing it
            if is_there(other, file):
                (folder / file.name).unlink(missing_ok=True)
                os.link(other / file.name, folder / file.name)
                write_record(folder, file)
                return True
    return False


def _other_versions(folder: Path) -> list[Path]:
    """The folders of other versions of the same directory."""
    return [each for each in folder.parent.iterdir() if each != folder and each.is_dir()]


def remove_other_versions(folder: Path) -> None:
    """Removes copies of what the directory was before, unless they are in use."""
    for each in _other_versions(folder):
        remove_unused(each)


def make_room(
    cache: Path, folder: Path, wanted: int, limit: int | None, say: Callable[[str], None]
) -> None:
    """Removes the copies that were used least recently until there is room for `wanted` bytes.

    Copies that a process uses stay, and so does `folder`.

    Raises:
        UsageError: there is too little room all the same.
    """
    others = sorted((each for each in _all_copies(cache) if each != folder), key=last_use)
    for each in others:
        if wanted <= room(cache, limit):
            return
        if remove_unused(each):
            say(f"removed from the cache, to make room: {each}")
    left = room(cache, limit)
    if wanted > left:
        bound = f" of the {decimal(limit)} it may take" if limit is not None else ""
        raise UsageError(
            f"--shard_cache {cache}: {decimal(wanted)} are to be copied, and {decimal(left)}{bound}"
            " are free; name a folder with more, or allow more by --shard_cache_gb"
        )


def room(cache: Path, limit: int | None) -> int:
    """Bytes that may still be written into the cache."""
    free = shutil.disk_usage(cache).free
    return free if limit is None else max(0, min(free, limit - used(cache)))


def used(cache: Path) -> int:
    """Bytes in the cache; of a file with several names, once."""
    sizes: dict[tuple[int, int], int] = {}
    for folder in _all_copies(cache):
        with suppress(FileNotFoundError):  # another process removes it
            for each in os.scandir(folder):
                found = each.stat(follow_symlinks=False)
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def _all_copies(cache: Path) -> Iterator[Path]:
    """The folders of all copies; other folders are none of ours."""
    for path in list(cache.glob(f"*/*/{IN_USE}")):
        yield path.parent
