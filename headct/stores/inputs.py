"""The files of the input."""

import posixpath
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TypeVar

from headct.errors import UsageError
from headct.stores.protocol import FileInfo
from headct.stores.refusals import InputFolder, find_folder
from headct.stores.retries import DEFAULT_PATIENCE, Patience, Transient
from headct.stores.stores import find_input_store

_WILDCARDS = frozenset("*?[")
AHEAD_BYTES = 1 << 26  # of files that were read: converted now, or waiting for it
_GROUP_BYTES = 1 << 23  # of files that one reader asks for in a row
_Contents = deque[bytes | OSError]

T = TypeVar("T")
S = TypeVar("S")


class Reading:
    """Reads files, several at a time where the store is far away."""

    def __init__(self, folder: InputFolder, threads: ThreadPoolExecutor | None) -> None:
        self._folder = folder
        self._threads = threads

    def ahead(
        self, items: Iterable[S], ask: Callable[[S], "Future[T]"]
    ) -> Iterator[tuple[S, "Future[T]"]]:
        """Items in order, each with what was asked for it, while the next ones are asked for."""
        waiting = iter(items)
        asked: deque[tuple[S, Future[T]]] = deque()
        in_flight = max(2 * self._folder.store.ranged_readers, 1)
        while True:
            for item in islice(waiting, in_flight - len(asked)):
                asked.append((item, ask(item)))
            if not asked:
                return
            yield asked.popleft()

    def now(self, source: str, start: int, length: int) -> bytes:
        """A part of a file.

        Raises:
            OSError: the file cannot be read, at a second look either.
            StoreError: its store fails.
        """
        try:
            return self._folder.read(source, start, length)
        except OSError:
            return self._folder.look_again(source, start, length)

    def part(
        self,
        source: str,
        start: int,
        length: int,
        use: Callable[[bytes], T],
        *,
        again: bool = True,
    ) -> "Future[T]":
        """What a function makes of a part of a file, soon.

        Args:
            source: the file.
            start: the part's first byte.
            length: bytes; there are fewer where the file ends.
            use: makes the result of the part.
            again: look a second time before saying that the file cannot be read.

        Its `result()` raises an OSError if the file cannot be read, a StoreError if its store
        fails.
        """

        def read() -> T:
            return use((self.now if again else self._folder.read)(source, start, length))

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
    """Where the input is.

    Attributes:
        root: the folder that sources are relative to.
        pattern: what a source below `root` must match; everything if empty.
        name: the only file of `root` that is meant; all if empty.
        patience: seconds after which a request that fails is given up.
    """

    root: str
    pattern: str = ""
    name: str = ""
    patience: float = DEFAULT_PATIENCE

    @classmethod
    def parse(cls, text: str, patience: float = DEFAULT_PATIENCE) -> "InputFiles":
        """A folder or ZIP archive, a file, or a pattern with `*`, `?` or `[...]`.

        What exists under exactly this name is meant, even if the name looks like a pattern.

        Raises:
            UsageError: it does not exist.
            StoreError: its store fails.
        """
        found = cls._find(text, patience)
        if found is None:
            raise UsageError(f"input {text} does not exist")
        return found

    @classmethod
    def expect(cls, text: str, patience: float) -> "InputFiles":
        """Find, as `parse` does, an input that was there before: wait for it if it is away.

        Raises:
            StoreError: it stays away, or its store fails.
        """

        def attempt() -> InputFiles:
            found = cls._find(text, patience)
            if found is None:
                find_input_store.cache_clear()  # it may be an archive, which is not there now
                raise Transient("the input is gone")
            return found

        return Patience(text, patience).request(attempt)

    @classmethod
    def _find(cls, text: str, patience: float) -> "InputFiles | None":
        store, path = find_input_store(text, patience)
        if store.is_folder(path):
            return cls(text, patience=patience)
        if store.info(path) is not None:
            parent, name = posixpath.split(text)
            return cls(parent or ".", name=name, patience=patience)
        parts = text.split("/")
        first = 3 if "://" in text else 0  # behind the bucket
        wild = [i for i, part in enumerate(parts) if i >= first and _WILDCARDS & set(part)]
        if wild:
            root, pattern = "/".join(parts[: wild[0]]), "/".join(parts[wild[0] :])
            root = root or ("/" if text.startswith("/") else ".")
            store, path = find_input_store(root, patience)
            if store.is_folder(path):
                return cls(root, pattern=pattern, patience=patience)
        return None

    @property
    def _folder(self) -> InputFolder:
        return find_folder(self.root, self.patience)

    def list(self) -> Iterator[FileInfo]:
        """The files, with paths relative to the root, in the order of their bytes.

        Hidden files and folders are left out. A pattern's `**` stands for any number of folders,
        none too; without a pattern all levels are listed.

        Raises:
            StoreError: a folder cannot be listed, or the store fails.
        """
        if self.name:
            info = self._folder.expect_info(self.name)
            return iter([info] if info else [])
        found = self._folder.list()
        if not self.pattern:
            return found
        return (info for info in found if self.matches(info.path))

    def matches(self, source: str) -> bool:
        """Whether a path relative to the root is one that the pattern means."""
        return bool(_compiled(self.pattern).match(source))

    def read(self, source: str) -> bytes:
        """All of a source's bytes.

        Raises:
            OSError: it cannot be read.
            StoreError: the store fails.
        """
        return self._folder.read(source)

    def look_again(self, source: str) -> bytes:
        """Read a source that could not be read; raises as `InputFolder.look_again` does."""
        return self._folder.look_again(source)

    def info(self, source: str) -> FileInfo | None:
        """What is known of a source, or None if it is not there."""
        return self._folder.info(source)

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Reads parts of files while the block runs."""
        folder = self._folder
        if not folder.store.ranged_readers:
            yield Reading(folder, None)
            return
        threads = ThreadPoolExecutor(folder.store.ranged_readers)
        try:
            yield Reading(folder, threads)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def read_ahead(self, files: Sequence[tuple[str, int]]) -> Iterator[bytes | OSError]:
        """All of each file's bytes, in order, or why it cannot be read.

        The next ones are read while one is worked on, so that slow storage is waited for only once.
        All that are in memory together have no more than `AHEAD_BYTES`, or are one.

        Args:
            files: sources and their sizes, bytes.

        Raises:
            StoreError: the store fails.
        """
        store = self._folder.store
        groups = deque(_groups(files, store.read_together))
        threads = ThreadPoolExecutor(store.readers)
        waiting: deque[tuple[Future[_Contents], int]] = deque()
        try:
            held = 0  # bytes, of the group that is worked on and of those behind it
            while groups or waiting:
                contents, size = _result(waiting.popleft()) if waiting else (deque(), 0)
                while groups and len(waiting) < store.readers:
                    more = sum(size for _, size in groups[0])
                    if held and held + more > AHEAD_BYTES:
                        break
                    waiting.append((threads.submit(self._read_all, groups.popleft()), more))
                    held += more
                while contents:
                    yield contents.popleft()
                held -= size
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _read_all(self, files: Sequence[tuple[str, int]]) -> _Contents:
        return deque(self._read_or_say(source) for source, _ in files)

    def _read_or_say(self, source: str) -> bytes | OSError:
        try:
            return self.read(source)
        except OSError as error:
            return error


@lru_cache(maxsize=8)
def _compiled(pattern: str) -> "re.Pattern[str]":
    from wcmatch import glob  # patterns are rare, and it takes a while to load

    return re.compile(glob.translate(pattern, flags=glob.GLOBSTAR)[0][0])


def _groups(files: Sequence[tuple[str, int]], together: int) -> Iterator[Sequence[tuple[str, int]]]:
    """Files that one of the readers asks for in a row."""
    group: list[tuple[str, int]] = []
    for source, size in files:
        if group and (
            len(group) == together or sum(size for _, size in group) + size > _GROUP_BYTES
        ):
            yield group
            group = []
        group.append((source, size))
    if group:
        yield group


def _result(asked: tuple["Future[_Contents]", int]) -> tuple[_Contents, int]:
    return asked[0].result(), asked[1]


@lru_cache(maxsize=8)  # a process does many tasks of one run
def find_input(text: str, patience: float) -> InputFiles:
    """What `InputFiles.expect` finds, asked once by each process; raises as it does."""
    return InputFiles.expect(text, patience)
