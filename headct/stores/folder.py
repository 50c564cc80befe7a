"""The output folder of the pipeline, with atomic writes."""

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
from headct.stores.urls import find_store, is_local


def digest_file(file: BinaryIO) -> str:
    """Return the SHA-256 of the rest of a file, in hexadecimal."""
    return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


@dataclass(frozen=True)
class Folder:
    """A folder and its files. Every method raises StoreError if the store fails.

    Attributes:
        url: path or URL of the folder.
        patience: time limit of a request with its retries, seconds.
    """

    url: str
    patience: float = DEFAULT_PATIENCE

    def _locate(self, name: str = "") -> tuple[Store, str]:
        """Return the store and the path of a file in it."""
        store, root = find_store(self.url, self.patience)
        return store, posixpath.join(root, name) if name else root

    def names(self) -> set[str]:
        """Return the names of files and folders; empty if the folder does not exist."""
        return {entry.partition("/")[0] for entry in self.entries()}

    def entries(self) -> set[str]:
        """Return the names of files and folders, marked as in `Store.entries`."""
        store, root = self._locate()
        if root and store.info(root) is not None:
            raise UsageError(f"output {self.url} is a file, not a folder")
        return store.entries(root)

    def exists(self, name: str) -> bool:
        """Return whether a file exists; existing files are complete."""
        store, path = self._locate(name)
        return store.info(path) is not None

    def version(self, name: str) -> str:
        """Return a version that changes with a remote file's content; empty for a local file.

        After a power failure, a local file may lose content but keep its modification time.
        """
        return "" if is_local(self.url) else self.stamp(name)

    def stamp(self, name: str) -> str:
        """Return a stamp that changes when a file is rewritten; empty if it does not exist."""
        store, path = self._locate(name)
        info = store.info(path)
        return info.version if info else ""

    def is_unchanged(self, name: str, version: str, sha256: str) -> bool:
        """Return whether a file still has the content of a version and SHA-256."""
        if is_local(self.url):
            return self.exists(name) and self.sha256(name) == sha256
        return bool(version) and self.version(name) == version

    def read(self, name: str, length: int | None = None) -> bytes:
        """Return a file's bytes, or the first `length`; raise OSError if it cannot be read."""
        store, path = self._locate(name)
        return store.read(path, 0, length)

    def open(self, name: str) -> BinaryIO:
        """Open a file to read; download a remote file. Raise OSError on failure."""
        store, path = self._locate(name)
        return store.open(path)

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file, in hexadecimal."""
        with self.open(name) as file:
            return digest_file(file)

    def remove_partial(self) -> None:
        """Remove unfinished files of killed processes."""
        store, root = self._locate()
        store.remove_partial(root)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its content, if it exists.

        Raises:
            OutputError: the removal fails.
        """
        store, path = self._locate(name)
        try:
            store.remove(path)
        except OSError as error:
            raise OutputError(f"cannot remove {name} in {self.url}: {error.strerror}") from error

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file as `create` does."""
        with self.create(name, durable=durable) as file:
            file.write(data)

    def add(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists, as `Store.add` does; return whether it was written.

        Raises:
            OutputError: the write fails.
        """
        store, path = self._locate(name)
        with self._writing(name):
            return store.add(path, data)

    def make_durable(self, names: Iterable[str]) -> None:
        """Flush local files to disk, to survive a power failure; most are already there.

        Raises:
            OutputError: the write fails.
        """
        if not is_local(self.url):
            return
        for name in names:
            with self._writing(name), Path(self._locate(name)[1]).open("rb") as file:
                os.fsync(file.fileno())

    @contextmanager
    def create(self, name: str, *, durable: bool = True) -> Iterator[BinaryIO]:
        """Open a new file to write and read; the file appears if the block succeeds.

        A local file is written in the same folder and renamed; a remote file is staged in an
        unnamed temporary file and uploaded.

        Args:
            name: of the file.
            durable: whether to flush a local file to disk; otherwise call `make_durable` later,
                unless a loss does no harm.

        Raises:
            OutputError: the write fails.
        """
        store, path = self._locate(name)
        with self._writing(name), store.create(path, durable=durable) as file:
            yield file

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # remote files are staged on the local disk
            staged = "" if is_local(self.url) else f" (in {tempfile.gettempdir()}, TMPDIR)"
            what = f"cannot write {name} in {self.url}: {error.strerror}{staged}"
            raise OutputError(what) from error
