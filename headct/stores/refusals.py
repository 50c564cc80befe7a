"""A file that cannot be read: whether that is its own fault, or that of what holds it."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain, islice
from typing import TypeVar

from headct.errors import HeadctError, ObjectRefused
from headct.reasons import ObjectFault, Reason
from headct.stores.protocol import FileInfo, ReadableStore
from headct.stores.retries import Foreign, Patience
from headct.stores.stores import find_input_store, find_store

T = TypeVar("T")

_LISTED = 1000  # a page of a listing
_ASKED = 16  # files of that page, and folders of which one file is asked for


class InputFolder:
    """Reads files below a folder.

    Args:
        root: the folder's path or URL.
        patience: seconds after which a request that fails is given up.
    """

    def __init__(self, root: str, patience: float) -> None:
        self._root = root
        self._patience = patience
        self._readable = ""  # a file that could be read

    @property
    def store(self) -> ReadableStore:
        """Where the folder is."""
        return self._place[0]

    @property
    def _place(self) -> tuple[ReadableStore, str]:
        return find_input_store(self._root, self._patience)

    def _path(self, source: str) -> str:
        """Where the store has a file; an object's key may have a slash where a name would begin."""
        folder = self._place[1]
        return f"{folder.rstrip('/')}/{source}" if folder else source

    def list(self) -> Iterator[FileInfo]:
        """See ReadableStore."""
        store, folder = self._place
        return store.list(folder)

    def info(self, source: str) -> FileInfo | None:
        """See ReadableStore."""
        found = self.store.info(self._path(source))
        return FileInfo(source, found.size, found.version) if found else None

    def expect_info(self, source: str) -> FileInfo | None:
        """What is known of a file that was there before; see `look_again`."""
        return self.info(source) or self._look_again(source, lambda: self.info(source))

    def read(self, source: str, start: int = 0, length: int | None = None) -> bytes:
        """A file's bytes, or part of them.

        Raises:
            OSError: it cannot be read; an ObjectFault if the store keeps it back, and not others.
            StoreError: the store fails, or refuses others, too.
        """
        path = self._path(source)

        def read(path: str) -> bytes:
            return self.store.read(path, start, length)

        try:
            return read(path)
        except ObjectRefused as refusal:
            store = refusal.store
        return Patience(store, self._patience).request(lambda: self._judge(path, read))

    def look_again(self, source: str, start: int = 0, length: int | None = None) -> bytes:
        """Read a file, or part of it, that could not be read at the first look.

        Raises:
            OSError: it still cannot, and what holds it was there before and after this look.
            StoreError: what holds it stays away, or the store fails.
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

        return Patience(self._root, self._patience).request(attempt)

    def _judge(self, path: str, read: Callable[[str], bytes]) -> bytes:
        """Read a file that was refused; raise whose fault that is, unless it has passed."""
        works = self._can_read_another(path, read)
        try:
            return read(path)
        except ObjectRefused as refusal:
            if works:
                raise ObjectFault(Reason.OBJECT_UNAVAILABLE, refusal.what) from None
            if refusal.is_foreign:  # what stands before the store may be starting
                raise Foreign(refusal.what, refusal.remedy) from None
            raise

    def _can_read_another(self, path: str, read: Callable[[str], bytes]) -> bool:
        known = [self._readable] if self._readable else []
        for other in chain(known, self._others()):
            if other != path:
                with suppress(ObjectRefused, OSError):
                    read(other)
                    self._readable = other
                    return True
        return False

    def _others(self) -> Iterator[str]:
        """Files of the first page of the listing, and of other folders."""
        found = [info.path for info in islice(self.list(), _LISTED)]
        yield from map(self._path, found[:: max(1, len(found) // _ASKED)])
        store, folder = find_store(self._root, self._patience)
        folders: list[str] = []
        with suppress(HeadctError):  # one of them may have a name that is no path
            folders = sorted(name for name in store.entries(folder) if name.endswith("/"))
        for name in folders[:: max(1, len(folders) // _ASKED)]:
            for info in islice(store.list(self._path(name.rstrip("/"))), 1):
                yield f"{self._path(name)}{info.path}"


@lru_cache(maxsize=8)
def find_folder(root: str, patience: float) -> InputFolder:
    """The files below a folder, the same for all of a process: it remembers what could be read."""
    return InputFolder(root, patience)
