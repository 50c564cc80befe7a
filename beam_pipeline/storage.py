"""Files, wherever they are: a local path, or a URL of any file system that fsspec knows."""

import fnmatch
import hashlib
import os
import posixpath
import tempfile
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from beam_pipeline.errors import OutputError, UsageError

# What a killed process leaves behind; never a whole file.
PARTIAL_SUFFIX = ".partial"

# While files are converted, this many threads each read that many of the following ones: all at
# once where the file system can, so that far storage is asked for 16 at a time.
_READERS = 2
_READ_TOGETHER = 8

_WILDCARDS = frozenset("*?[")


@lru_cache(maxsize=16)  # asked for with every file
def _resolve(url: str) -> tuple[Any, str]:
    """A URL's file system, and the path in it."""
    filesystem, path = fsspec.core.url_to_fs(url)
    return filesystem, str(path)


@dataclass(frozen=True)
class InputFiles:
    """Where the input is.

    Attributes:
        root: the folder that sources are relative to.
        pattern: what a source below `root` must match; everything if empty.
    """

    root: str
    pattern: str = ""

    @classmethod
    def parse(cls, text: str) -> "InputFiles":
        """A folder, a file, or a pattern with `*`, `?` or `[...]`.

        Raises:
            UsageError: it does not exist.
        """
        parts = text.split("/")
        wild = next((i for i, part in enumerate(parts) if _WILDCARDS & set(part)), None)
        if wild is not None:
            files = cls("/".join(parts[:wild]) or "/", "/".join(parts[wild:]))
        else:
            files = cls(text)
        filesystem, root = _resolve(files.root)
        if not filesystem.exists(root):
            raise UsageError(f"input {text} does not exist")
        if wild is None and filesystem.isfile(root):
            parent, name = posixpath.split(text)
            return cls(parent or ".", name)
        return files

    def list(self) -> Iterator[str]:
        """The files' paths relative to the root, sorted within each folder, hidden ones left out.

        A pattern's `**` matches any number of folders; without a pattern all levels are listed.
        """
        filesystem, root = _resolve(self.root)
        for folder, folders, names in filesystem.walk(root, on_error=_refuse_unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            relative = posixpath.relpath(folder, root)
            for name in sorted(names):
                source = posixpath.normpath(posixpath.join(relative, name))
                if not name.startswith(".") and self._matches(source):
                    yield source

    def _matches(self, source: str) -> bool:
        if not self.pattern:
            return True
        same_depth = source.count("/") == self.pattern.count("/")
        return fnmatch.fnmatchcase(source, self.pattern) and (same_depth or "**" in self.pattern)

    @contextmanager
    def open(self, source: str) -> Iterator[tuple[BinaryIO, int]]:
        """A source's bytes and its size.

        Raises:
            OSError: it cannot be read.
        """
        filesystem, root = _resolve(self.root)
        path = posixpath.join(root, source)
        with filesystem.open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)  # no second request, where files are far away
            file.seek(0)
            yield cast(BinaryIO, file), size

    def read(self, source: str) -> bytes:
        """All of a source's bytes.

        Raises:
            OSError: it cannot be read.
        """
        filesystem, root = _resolve(self.root)
        return bytes(filesystem.cat_file(posixpath.join(root, source)))

    def read_ahead(self, sources: Sequence[str]) -> Iterator[bytes | OSError]:
        """All of each source's bytes, in order, or why it cannot be read.

        The next few are read while one is worked on, so that slow storage is waited for only once.
        """
        groups = iter(
            [sources[at : at + _READ_TOGETHER] for at in range(0, len(sources), _READ_TOGETHER)]
        )
        with ThreadPoolExecutor(_READERS) as readers:
            waiting = deque(readers.submit(self._read_all, g) for g in islice(groups, _READERS))
            while waiting:
                contents = waiting.popleft().result()
                waiting.extend(readers.submit(self._read_all, g) for g in islice(groups, 1))
                yield from contents

    def _read_all(self, sources: Sequence[str]) -> tuple[bytes | OSError, ...]:
        filesystem, root = _resolve(self.root)
        paths = [posixpath.join(root, source) for source in sources]
        contents = filesystem.cat_ranges(paths, None, None, on_error="return")
        for content in contents:
            if isinstance(content, Exception) and not isinstance(content, OSError):
                raise content
        return tuple(contents)


def _refuse_unreadable(error: OSError) -> None:
    """What an unreadable folder holds would be lost without a word."""
    raise UsageError(f"cannot list {error.filename}: {error.strerror}")


@dataclass(frozen=True)
class Folder:
    """A folder that the pipeline writes to: files in it are whole or not there."""

    url: str

    def _place(self, name: str = "") -> tuple[Any, str]:
        filesystem, root = _resolve(self.url)
        return filesystem, posixpath.join(root, name) if name else root

    def names(self) -> set[str]:
        """The files and folders in it; none if it is not there."""
        filesystem, root = self._place()
        if not filesystem.exists(root):
            return set()
        if not filesystem.isdir(root):
            raise UsageError(f"output {self.url} is a file, not a folder")
        return {posixpath.basename(path.rstrip("/")) for path in filesystem.ls(root, detail=False)}

    def exists(self, name: str) -> bool:
        """Whether a file is there, and so whole."""
        filesystem, path = self._place(name)
        return bool(filesystem.exists(path))

    def read(self, name: str) -> bytes:
        """All of a file's bytes."""
        filesystem, path = self._place(name)
        return bytes(filesystem.cat_file(path))

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file's bytes, in hexadecimal."""
        filesystem, path = self._place(name)
        with filesystem.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def remove_partial(self) -> None:
        """Remove what killed processes left behind."""
        for name in self.names():
            if name.startswith(".") and name.endswith(PARTIAL_SUFFIX):
                self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all in it, if it is there."""
        filesystem, path = self._place(name)
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        with self.create(name) as file:
            file.write(data)

    def make_durable(self, names: Iterable[str]) -> None:
        """Wait until local files would outlast a power failure; most are on the disk by then.

        Raises:
            OutputError: one cannot be written to the disk.
        """
        for name in names:
            filesystem, path = self._place(name)
            if not isinstance(filesystem, LocalFileSystem):
                return
            try:
                with Path(path).open("rb") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                raise OutputError(f"cannot write {name} in {self.url}: {error.strerror}") from error

    @contextmanager
    def create(self, name: str, *, durable: bool = True) -> Iterator[BinaryIO]:
        """A file to write, which gets its name when the block ends without an error.

        A local one is written beside its place and renamed; another is staged in a temporary file
        and uploaded.

        Args:
            name: of the file.
            durable: whether to wait until a local file would outlast a power failure; else
                `make_durable` is to follow.

        Raises:
            OutputError: it cannot be written.
        """
        filesystem, path = self._place(name)
        local = isinstance(filesystem, LocalFileSystem)
        beside = posixpath.dirname(path) if local else tempfile.gettempdir()
        staged = Path(beside, f".{posixpath.basename(path)}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
        try:
            filesystem.makedirs(posixpath.dirname(path), exist_ok=True)
            with staged.open("xb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            if local:
                staged.replace(path)
            else:
                filesystem.put_file(str(staged), path)
        except OSError as error:
            raise OutputError(f"cannot write {name} in {self.url}: {error.strerror}") from error
        finally:
            with suppress(OSError):  # the first error is the one to tell
                staged.unlink(missing_ok=True)
