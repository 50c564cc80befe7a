"""Input files: listing, prefetching, and telling unreadable files from failing stores."""

import posixpath
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from typing import TypeVar

from headct.errors import HeadctError, ObjectRefused, UsageError
from headct.reasons import ObjectFault, Reason
from headct.stores.protocol import FileInfo, ReadableStore
from headct.stores.retries import DEFAULT_PATIENCE, Foreign, Patience, Transient
from headct.stores.urls import find_input_store, find_store

_WILDCARDS = frozenset("*?[")
_AHEAD_BYTES = 1 << 26  # limit of prefetched files in memory, bytes
_GROUP_BYTES = 1 << 23  # limit of files that a reader requests together, bytes
_LISTED = 1000  # listed files, and
_TRIED = 16  # tried files and folders, to detect a store that refuses all
_Contents = deque[bytes | OSError]

_readable: dict[str, str] = {}  # root of an input: a file that could be read

T = TypeVar("T")
S = TypeVar("S")


class Reading:
    """Reads ranges of files, several at once if the store is remote."""

    def __init__(self, files: "InputFiles", threads: ThreadPoolExecutor | None) -> None:
        self._files = files
        self._threads = threads

    def ahead(
        self, items: Iterable[S], ask: Callable[[S], "Future[T]"]
    ) -> Iterator[tuple[S, "Future[T]"]]:
        """Yield items with the futures that `ask` returns for them, prefetching the next ones."""
        remaining = iter(items)
        asked: deque[tuple[S, Future[T]]] = deque()
        in_flight = max(2 * self._files.store.ranged_readers, 1)
        while True:
            for item in islice(remaining, in_flight - len(asked)):
                asked.append((item, ask(item)))
            if not asked:
                return
            yield asked.popleft()

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
        files = cls._find(text, patience)
        if files is None:
            raise UsageError(f"input {text} does not exist")
        return files

    @classmethod
    def expect(cls, text: str, patience: float) -> "InputFiles":
        """Find an input that existed before, as `parse` does; wait while it is unavailable.

        Raises:
            StoreError: the input stays unavailable, or its store fails.
        """

        def attempt() -> InputFiles:
            files = cls._find(text, patience)
            if files is None:
                find_input_store.cache_clear()  # the input may be an unavailable archive
                raise Transient("the input is gone")
            return files

        return Patience(text, patience).request(attempt)

    @classmethod
    def _find(cls, text: str, patience: float) -> "InputFiles | None":
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
            look = partial(self.info, self.name)
            info = look() or self._look_again(self.name, look)
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

        def read(path: str) -> bytes:
            return self.store.read(path, start, length)

        try:
            return read(path)
        except ObjectRefused as refusal:
            store = refusal.store
        return Patience(store, self.patience).request(lambda: self._judge(path, read))

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

    def _judge(self, path: str, read: Callable[[str], bytes]) -> bytes:
        """Retry a refused file; if refused again, raise an error of the file or the store."""
        works = self._can_read_another(path, read)
        try:
            return read(path)
        except ObjectRefused as refusal:
            if works:
                raise ObjectFault(Reason.OBJECT_UNAVAILABLE, refusal.what) from None
            if refusal.is_foreign:  # a proxy may be starting
                raise Foreign(refusal.what, refusal.remedy) from None
            raise

    def _can_read_another(self, path: str, read: Callable[[str], bytes]) -> bool:
        for other in chain([_readable.get(self.root, path)], self._others()):
            if other != path:
                with suppress(ObjectRefused, OSError):
                    read(other)
                    _readable[self.root] = other
                    return True
        return False

    def _others(self) -> Iterator[str]:
        """Yield files from the start of the listing, and from other folders."""
        files, root = find_input_store(self.root, self.patience)
        paths = [info.path for info in islice(files.list(root), _LISTED)]
        yield from map(self._path, paths[:: max(1, len(paths) // _TRIED)])
        store, folder = find_store(self.root, self.patience)
        folders: list[str] = []
        with suppress(HeadctError):  # a folder's name may not be a usable path
            folders = sorted(name for name in store.entries(folder) if name.endswith("/"))
        for name in folders[:: max(1, len(folders) // _TRIED)]:
            for info in islice(store.list(self._path(name.rstrip("/"))), 1):
                yield f"{self._path(name)}{info.path}"

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Read ranges of files while the block runs."""
        if not self.store.ranged_readers:
            yield Reading(self, None)
            return
        threads = ThreadPoolExecutor(self.store.ranged_readers)
        try:
            yield Reading(self, threads)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def read_ahead(self, files: Sequence[tuple[str, int]]) -> Iterator[bytes | OSError]:
        """Yield the bytes of all files, in order, or the error of an unreadable file.

        The next files are prefetched, up to `_AHEAD_BYTES` in memory, or a single larger file.

        Args:
            files: sources and their sizes, bytes.

        Raises:
            StoreError: the store fails.
        """
        store = self.store
        groups = deque(_group(files, store.read_together))
        threads = ThreadPoolExecutor(store.readers)
        waiting: deque[tuple[Future[_Contents], int]] = deque()
        try:
            held = 0  # bytes of the current and the waiting groups
            while groups or waiting:
                contents: _Contents = deque()
                size = 0
                if waiting:
                    future, size = waiting.popleft()
                    contents = future.result()
                while groups and len(waiting) < store.readers:
                    more = sum(size for _, size in groups[0])
                    if held and held + more > _AHEAD_BYTES:
                        break
                    waiting.append((threads.submit(self._read_group, groups.popleft()), more))
                    held += more
                while contents:
                    yield contents.popleft()
                held -= size
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _read_group(self, files: Sequence[tuple[str, int]]) -> _Contents:
        contents: _Contents = deque()
        for source, _ in files:
            try:
                contents.append(self.read(source))
            except OSError as error:
                contents.append(error)
        return contents


@lru_cache(maxsize=8)
def _compile(pattern: str) -> "re.Pattern[str]":
    from wcmatch import glob  # imported lazily: patterns are rare

    return re.compile(glob.translate(pattern, flags=glob.GLOBSTAR)[0][0])


def _group(files: Sequence[tuple[str, int]], together: int) -> Iterator[Sequence[tuple[str, int]]]:
    """Yield groups of files that a reader requests together."""
    group: list[tuple[str, int]] = []
    held = 0
    for source, size in files:
        if group and (len(group) == together or held + size > _GROUP_BYTES):
            yield group
            group, held = [], 0
        group.append((source, size))
        held += size
    if group:
        yield group


@lru_cache(maxsize=8)  # a process runs many tasks
def find_input(text: str, patience: float) -> InputFiles:
    """Find an input as `InputFiles.expect` does, once per process."""
    return InputFiles.expect(text, patience)
