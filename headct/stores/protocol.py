"""Protocols of stores, and encoding of file paths."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from headct.printable import escape_controls

_CONTROL_CHARACTER = re.compile(r"[\0-\x1f\x7f]")
_NO_NAMES = frozenset({"", ".", ".."})


def encode_source(path: str) -> bytes:
    """Encode a path for tables: file names need not be UTF-8."""
    return path.encode("utf-8", "surrogateescape")


def decode_source(stored: bytes) -> str:
    """Decode a path from a table, to open the file."""
    return stored.decode("utf-8", "surrogateescape")


def show_source(path: str) -> str:
    """Return a path to print: control characters and invalid UTF-8 are escaped."""
    return escape_controls(encode_source(path).decode("utf-8", "backslashreplace"))


def is_usable(key: str) -> bool:
    """Return whether obstore, which reads keys as paths, can request an object."""
    return not _CONTROL_CHARACTER.search(key) and _NO_NAMES.isdisjoint(key.split("/"))


def why_unusable(key: str) -> str:
    """Return why a key is not usable."""
    if _CONTROL_CHARACTER.search(key):
        return "its key has a control character"
    if key.startswith("/") or key.endswith("/"):
        return f"its key {'begins' if key.startswith('/') else 'ends'} with a slash"
    return "its key has '//'" if "//" in key else "its key has the part '.' or '..'"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file in a listing.

    Attributes:
        path: relative to the folder that was listed.
        size: bytes.
        version: changes whenever the content changes: modification time or ETag.
    """

    path: str
    size: int
    version: str


class ReadableStore(Protocol):
    """Files under paths with slashes, to read.

    An OSError concerns the requested file, a StoreError the whole store.

    Attributes:
        readers: recommended number of requests in flight.
        read_together: recommended number of files that a reader requests together.
        ranged_readers: like `readers`, for short ranges of files; 0 to read them without threads.
    """

    readers: int
    read_together: int
    ranged_readers: int

    def list(self, folder: str) -> Iterator[FileInfo]:
        """List the files below a folder, without hidden ones, ordered by the bytes of their paths.

        All stores order by the UTF-8 bytes of the whole path.
        """
        ...

    def info(self, path: str) -> FileInfo | None:
        """Return size and version of a file, or None if there is no file."""
        ...

    def check_reachable(self, path: str) -> None:
        """Raise Transient unless the folder of a file is reachable; the file may be missing.

        An unmounted disk or a moved folder does not mean that the file is missing.
        """
        ...

    def is_folder(self, path: str) -> bool:
        """Return whether a folder exists; in a bucket, whether there are files below the path."""
        ...

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes, or a range of them; a range ends with the file."""
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a file to read it from start to end."""
        ...


class Store(ReadableStore, Protocol):
    """A store to read and write."""

    def entries(self, folder: str) -> set[str]:
        """Return the names in a folder; empty if there is no folder.

        Names of folders end with `/`; names of other entries than files (links to folders,
        broken links, pipes) end with `/@`.
        """
        ...

    def create(self, path: str, *, durable: bool) -> AbstractContextManager[BinaryIO]:
        """Open a new file to write and read; the file appears if the block succeeds.

        Args:
            path: of the file.
            durable: whether to wait until a local file would survive a power failure.
        """
        ...

    def add(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists; return whether it was written.

        If several processes try at once, only one writes the file, except in stores without links
        or conditional requests.
        """
        ...

    def remove_partial(self, folder: str) -> None:
        """Remove unfinished files of killed processes from a folder."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with its content, if it exists."""
        ...
