"""The folder that the pipeline writes to: files in it are whole or not there."""

import hashlib
import os
import posixpath
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from headct.errors import OutputError, UsageError
from headct.stores.protocol import Store
from headct.stores.retries import DEFAULT_PATIENCE
from headct.stores.stores import find_store, is_local


def digest_file(file: BinaryIO) -> str:
    """The SHA-256 of a file's bytes from here to its end, in hexadecimal."""
    return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


@dataclass(frozen=True)
class Folder:
    """A folder, and the files in it.

    Attributes:
        url: its path or URL.
        patience: seconds after which a request that fails is given up.
    """

    url: str
    patience: float = DEFAULT_PATIENCE

    @property
    def _place(self) -> tuple[Store, str]:
        return find_store(self.url, self.patience)

    def _path(self, name: str) -> str:
        return posixpath.join(self._place[1], name)

    def names(self) -> set[str]:
        """The files and folders in it; none if it is not there."""
        return {entry.partition("/")[0] for entry in self.entries()}

    def entries(self) -> set[str]:
        """Return the same names, marked as `Store.entries` says."""
        store, root = self._place
        if root and store.info(root) is not None:
            raise UsageError(f"output {self.url} is a file, not a folder")
        return store.entries(root)

    def exists(self, name: str) -> bool:
        """Whether a file is there, and so whole."""
        return self._place[0].info(self._path(name)) is not None

    def version(self, name: str) -> str:
        """Of a remote file, another text whenever its content changes; empty for a local one.

        A local file's time of modification says nothing of its content after a power failure.
        """
        info = None if is_local(self.url) else self._place[0].info(self._path(name))
        return info.version if info else ""

    def stamp(self, name: str) -> str:
        """A text that changes when a file is written again; empty if there is none."""
        info = self._place[0].info(self._path(name))
        return info.version if info else ""

    def is_unchanged(self, name: str, version: str, sha256: str) -> bool:
        """Whether a file is there and has the content that it had with a version and a SHA-256."""
        if is_local(self.url):
            return self.exists(name) and self.sha256(name) == sha256
        return bool(version) and self.version(name) == version

    def read(self, name: str, length: int | None = None) -> bytes:
        """A file's bytes, or the first of them.

        Raises:
            OSError: it cannot be read.
            StoreError: its store fails.
        """
        return self._place[0].read(self._path(name), 0, length)

    def open(self, name: str) -> BinaryIO:
        """A file to read; one of another machine is fetched whole.

        Raises:
            OSError: it cannot be read.
            StoreError: its store fails.
        """
        return self._place[0].open(self._path(name))

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file's bytes, in hexadecimal."""
        with self.open(name) as file:
            return digest_file(file)

    def remove_partial(self) -> None:
        """Remove what killed processes left behind."""
        store, root = self._place
        store.remove_partial(root)

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all in it, if it is there.

        Raises:
            OutputError: it cannot be removed.
            StoreError: the store fails.
        """
        try:
            self._place[0].remove(self._path(name))
        except OSError as error:
            raise OutputError(f"cannot remove {name} in {self.url}: {error.strerror}") from error

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file, whole or not at all; see `create`.

        Raises:
            OutputError: it cannot be written.
            StoreError: the store fails.
        """
        with self.create(name, durable=durable) as file:
            file.write(data)

    def add(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one, and return whether it was written; see `Store.add`.

        Raises:
            OutputError: it cannot be written.
            StoreError: the store fails.
        """
        try:
            return self._place[0].add(self._path(name), data)
        except OSError as error:
            raise self._cannot_write(name, error) from error

    def make_durable(self, names: Iterable[str]) -> None:
        """Wait until local files would outlast a power failure; most are on the disk by then.

        Raises:
            OutputError: one cannot be written to the disk.
        """
        if not is_local(self.url):
            return
        for name in names:
            try:
                with Path(self._path(name)).open("rb") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                raise self._cannot_write(name, error) from error

    @contextmanager
    def create(self, name: str, *, durable: bool = True) -> Iterator[BinaryIO]:
        """A file to write and read, which gets its name when the block ends without an error.

        A local one is written beside its place and renamed; another is staged in a temporary file,
        which no kill leaves behind, and uploaded.

        Args:
            name: of the file.
            durable: whether to wait until a local file would outlast a power failure; else
                `make_durable` is to follow, or its loss does no harm.

        Raises:
            OutputError: it cannot be written.
            StoreError: the store fails.
        """
        try:
            with self._place[0].create(self._path(name), durable=durable) as file:
                yield file
        except OSError as error:
            raise self._cannot_write(name, error) from error

    def _cannot_write(self, name: str, error: OSError) -> OutputError:
        # What goes elsewhere is staged here first.
        place = "" if is_local(self.url) else f" (in {tempfile.gettempdir()}, TMPDIR)"
        return OutputError(f"cannot write {name} in {self.url}: {error.strerror}{place}")
