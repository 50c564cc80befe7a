"""The input's files and the output folder, in any store."""

import hashlib
import os
import posixpath
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from headct.errors import ObjectRefused, OutputError, UsageError
from headct.reasons import ObjectFault, Reason
from headct.stores.protocol import (
    DEFAULT_PATIENCE,
    FileInfo,
    Patience,
    ReadableStore,
    Store,
    Transient,
)
from headct.stores.urls import find_input_store, find_store, is_local

_WILDCARDS = frozenset("*?[")
_AHEAD_BYTES = 1 << 26  # limit of prefetched files in memory, bytes
_LISTED = 1000  # listed files, and
_TRIED = 16  # tried ones of them, to detect a store that refuses all

_readable: dict[str, str] = {}  # root of an input: path of the file that was read last

T = TypeVar("T")
S = TypeVar("S")


def _ahead(
    items: Iterable[S],
    ask: Callable[[S], "Future[T]"],
    in_flight: int,
    size: Callable[[S], int] = lambda item: 0,
) -> Iterator[tuple[S, "Future[T]"]]:
    """Yield items with the futures that `ask` returns for them, prefetching the next ones.

    Args:
        items: in the order of the results.
        ask: starts a request.
        in_flight: limit of the items that are asked for.
        size: bytes of an item; together `_AHEAD_BYTES` at most, or a single larger item.
    """
    remaining = deque(items)
    asked: deque[tuple[S, Future[T]]] = deque()
    held = 0
    while remaining or asked:
        while remaining and len(asked) < in_flight:
            if asked and held + size(remaining[0]) > _AHEAD_BYTES:
                break
            held += size(remaining[0])
            asked.append((remaining[0], ask(remaining.popleft())))
        item, future = asked.popleft()
        yield item, future
        held -= size(item)


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are not waited for at the end."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Reading:
    """Reads ranges of files, several at once if the store is remote."""

    def __init__(self, files: "InputFiles", threads: ThreadPoolExecutor | None) -> None:
        self._files = files
        self._threads = threads

    def ahead(
        self, items: Iterable[S], ask: Callable[[S], "Future[T]"]
    ) -> Iterator[tuple[S, "Future[T]"]]:
        """Yield items with the futures that `ask` returns for them, prefetching the next ones."""
        return _ahead(items, ask, max(2 * self._files.store.ranged_readers, 1))

    def now(self, source: str, start: int, length: int) -> bytes:
        """Return a range of a file.

        Raises:
            OSError: the file cannot be read, even on retry.
            StoreError: its store fails.
        """
        try:
            return self._files.read(source, start, length)
        except OSError:
            return self._files.look_again(source, start, length)

    def part(
        self,
        source: str,
        start: int,
        length: int,
        use: Callable[[bytes], T],
        *,
        again: bool = True,
    ) -> "Future[T]":
        """Apply a function to a range of a file; return a future of the result.

        Args:
            source: the file.
            start: first byte of the range.
            length: bytes; the range ends with the file.
            use: the function.
            again: whether to retry once before reporting an unreadable file.

        `result()` raises an OSError if the file cannot be read, a StoreError if its store fails.
        """

        def read() -> T:
            return use((self.now if again else self._files.read)(source, start, length))

        if self._threads is not None:
            return self._threads.submit(read)
        done: Future[T] = Future()
        try:
            done.set_result(read())
        except Exception as error:  # as an executor does
            done.set_exception(error)
        return done


@dataclass(frozen=True)
class InputFiles:
    """The input: a folder, some of its files, or one.

    Attributes:
        root: the folder that sources are relative to.
        pattern: glob pattern of sources; empty for all.
        name: the only file of `root` to use; empty for all.
        patience: timeout of a failing request with retries, seconds.
    """

    root: str
    pattern: str = ""
    name: str = ""
    patience: float = DEFAULT_PATIENCE

    @classmethod
    def parse(cls, text: str, patience: float = DEFAULT_PATIENCE) -> "InputFiles":
        """Find a folder or ZIP archive, a file, or a pattern with `*`, `?` or `[...]`.

        A file or folder of exactly this name has precedence over a pattern.

        Raises:
            UsageError: no input exists there.
            StoreError: the store fails.
        """
        files = cls.find(text, patience)
        if files is None:
            raise UsageError(f"input {text} does not exist")
        return files

    @classmethod
    def find(cls, text: str, patience: float) -> "InputFiles | None":
        """Find an input as `parse` does; return None if none exists."""
        store, path = find_input_store(text, patience)
        if store.is_folder(path):
            return cls(text, patience=patience)
        if store.info(path) is not None:
            parent, name = posixpath.split(text)
            return cls(parent or ".", name=name, patience=patience)
        names = text.split("/")
        first = 3 if "://" in text else 0  # behind the bucket
        wild = next((i for i in range(first, len(names)) if _WILDCARDS & set(names[i])), None)
        if wild is None:
            return None
        root = "/".join(names[:wild]) or ("/" if text.startswith("/") else ".")
        store, path = find_input_store(root, patience)
        if not store.is_folder(path):
            return None
        return cls(root, pattern="/".join(names[wild:]), patience=patience)

    @property
    def store(self) -> ReadableStore:
        """The store of the root."""
        return find_input_store(self.root, self.patience)[0]

    def _path(self, source: str) -> str:
        """Return the path in the store; keys of objects may begin with a slash."""
        folder = find_input_store(self.root, self.patience)[1]
        return f"{folder.rstrip('/')}/{source}" if folder else source

    def list(self) -> Iterator[FileInfo]:
        """List the files, with paths relative to the root, ordered by the bytes of their paths.

        Hidden files and folders are omitted. `**` in a pattern matches any number of folders,
        including none; without a pattern, all levels are listed.

        Raises:
            StoreError: a folder cannot be listed, or the store fails.
        """
        if self.name:
            info = self._look_again(self.name, partial(self.info, self.name))
            return iter([info] if info else [])
        store, folder = find_input_store(self.root, self.patience)
        files = store.list(folder)
        if not self.pattern:
            return files
        return (info for info in files if self.matches(info.path))

    def matches(self, source: str) -> bool:
        """Return whether the pattern matches a path relative to the root."""
        return bool(_compile(self.pattern).match(source))

    def info(self, source: str) -> FileInfo | None:
        """Return size and version of a source, or None if it is missing."""
        info = self.store.info(self._path(source))
        return FileInfo(source, info.size, info.version) if info else None

    def read(self, source: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a source's bytes, or a range of them.

        Raises:
            OSError: the file cannot be read; an ObjectFault if the store refuses only this file.
            StoreError: the store fails, or refuses other files, too.
        """
        path = self._path(source)
        read = partial(self.store.read, path, start, length)
        try:
            data = read()
        except ObjectRefused as refusal:
            patience = Patience(refusal.store, self.patience)
            data = patience.request(lambda: self._judge(path, read))
        _readable[self.root] = path
        return data

    def look_again(self, source: str, start: int = 0, length: int | None = None) -> bytes:
        """Retry reading a source, or a range of it.

        Raises:
            OSError: the file is unreadable, and its folder was reachable before and after.
            StoreError: the folder stays unreachable, or the store fails.
        """
        return self._look_again(source, lambda: self.read(source, start, length))

    def _look_again(self, source: str, look: Callable[[], T]) -> T:
        path = self._path(source)

        def attempt() -> T:
            self.store.check_reachable(path)
            try:
                return look()
            except OSError:
                self.store.check_reachable(path)
                raise

        return Patience(self.root, self.patience).request(attempt)

    def _judge(self, path: str, read: Callable[[], bytes]) -> bytes:
        """Retry a refused file; if refused again, raise an error of the file or the store."""
        works = any(self._is_readable(other) for other in self._others() if other != path)
        try:
            return read()
        except ObjectRefused as refusal:
            if works:
                raise ObjectFault(Reason.OBJECT_UNAVAILABLE, refusal.what) from None
            if refusal.is_foreign:  # a proxy may be starting
                raise Transient(refusal.what, refusal.remedy) from None
            raise

    def _others(self) -> Iterator[str]:
        """Yield the file that was read last, and files from the start of the listing."""
        if last := _readable.get(self.root):
            yield last
        store, folder = find_input_store(self.root, self.patience)
        sources = [info.path for info in islice(store.list(folder), _LISTED)]
        yield from map(self._path, sources[:: max(1, len(sources) // _TRIED)])

    def _is_readable(self, path: str) -> bool:
        try:
            self.store.read(path, 0, 1)
        except (ObjectRefused, OSError):
            return False
        return True

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Read ranges of files while the block runs."""
        readers = self.store.ranged_readers
        with _pool(readers) if readers else nullcontext() as threads:
            yield Reading(self, threads)

    def read_ahead(self, files: Sequence[tuple[str, int]]) -> Iterator[bytes | OSError]:
        """Yield the bytes of all files, in order, or the error of an unreadable file.

        The next files are prefetched, up to `_AHEAD_BYTES` in memory, or a single larger file.

        Args:
            files: sources and their sizes, bytes.

        Raises:
            StoreError: the store fails.
        """

        def read(source: str) -> bytes | OSError:
            try:
                return self.read(source)
            except OSError as error:
                return error

        readers = self.store.readers
        with _pool(readers) as threads:
            for _, content in _ahead(
                files,
                lambda file: threads.submit(read, file[0]),
                readers + 1,  # one of them is in use
                lambda file: file[1],
            ):
                yield content.result()


@lru_cache(maxsize=8)
def _compile(pattern: str) -> "re.Pattern[str]":
    from wcmatch import glob  # imported lazily: patterns are rare

    return re.compile(glob.translate(pattern, flags=glob.GLOBSTAR)[0][0])


@lru_cache(maxsize=8)  # a process runs many tasks
def find_input(text: str, patience: float) -> InputFiles:
    """Find an input that existed before, once per process; wait while it is unavailable.

    Raises:
        StoreError: the input stays unavailable, or its store fails.
    """

    def attempt() -> InputFiles:
        files = InputFiles.find(text, patience)
        if files is None:
            find_input_store.cache_clear()  # the input may be an unavailable archive
            raise Transient("the input is gone")
        return files

    return Patience(text, patience).request(attempt)


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

    def stamp(self, name: str) -> str:
        """Return a stamp that changes when a file is rewritten; empty if it does not exist."""
        store, path = self._locate(name)
        info = store.info(path)
        return info.version if info else ""

    def version(self, name: str) -> str:
        """Return a version that changes with a remote file's content; empty for a local file.

        After a power failure, a local file may lose content but keep its modification time.
        """
        return "" if is_local(self.url) else self.stamp(name)

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
