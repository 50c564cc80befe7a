"""What every kind of store can do, and what it says of a file."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What a listing says of a file.

    Attributes:
        path: relative to the folder that was listed.
        size: bytes.
        version: another one whenever the content changes: modification time or ETag.
    """

    path: str
    size: int
    version: str


class ReadableStore(Protocol):
    """A place that keeps files under paths with slashes, to read.

    An OSError is a fault of the file that was asked for, and a StoreError one of the store.

    Attributes:
        readers: how many requests should be in flight at once.
        read_together: how many files one of the readers should ask for in a row.
        ranged_readers: the same as `readers` for small parts of files; 0 to read them in place.
    """

    readers: int
    read_together: int
    ranged_readers: int

    def list(self, folder: str) -> Iterator[FileInfo]:
        """All files at all levels below a folder, without hidden ones, in the order of their paths.

        The order is that of the UTF-8 bytes of the whole path, in every store.
        """
        ...

    def info(self, path: str) -> FileInfo | None:
        """What is known of a file, or None if there is none at this path."""
        ...

    def check_reachable(self, path: str) -> None:
        """Raise Transient unless what holds a file is there, whether the file is or not.

        A disk that is unmounted and a folder that is moved take all their files away: no verdict on
        any of them.
        """
        ...

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder; in an object store, whether there are files below the path."""
        ...

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """A file's bytes, or part of them; fewer than asked for where the file ends."""
        ...

    def open(self, path: str) -> BinaryIO:
        """A file to read from its beginning to its end."""
        ...


class Store(ReadableStore, Protocol):
    """A store to read and write."""

    def entries(self, folder: str) -> set[str]:
        """Return what is in a folder; nothing if there is no folder.

        `/` follows a folder's name, and `/@` that of what is neither file nor folder: a link to a
        folder or to nothing, a pipe.
        """
        ...

    def create(self, path: str, *, durable: bool) -> AbstractContextManager[BinaryIO]:
        """A file to write and read, which gets its name when the block ends without an error.

        Args:
            path: of the file.
            durable: whether to wait until a local file would outlast a power failure.
        """
        ...

    def add(self, path: str, data: bytes) -> bool:
        """Write a file unless there is one, and return whether it was written.

        Of several that try at once one writes it, where the store can tell; stores that lack links
        or conditional requests cannot.
        """
        ...

    def remove_partial(self, folder: str) -> None:
        """Remove what killed processes left of files in a folder, nothing of those that live."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all in it, if it is there."""
        ...
