"""A store that refuses a file: whether it refuses all, which is its own fault, or only this one."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain, islice

from beam_pipeline.errors import ObjectFault, ObjectRefused, PipelineError, Reason
from beam_pipeline.storage.protocol import FileInfo, ReadableStore
from beam_pipeline.storage.retries import Foreign, Patience
from beam_pipeline.storage.stores import find_input_store, find_store

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
        return self.store.info(self._path(source))

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
        with suppress(PipelineError):  # one of them may have a name that is no path
            folders = sorted(name for name in store.entries(folder) if name.endswith("/"))
        for name in folders[:: max(1, len(folders) // _ASKED)]:
            for info in islice(store.list(self._path(name.rstrip("/"))), 1):
                yield f"{self._path(name)}{info.path}"


@lru_cache(maxsize=8)
def find_folder(root: str, patience: float) -> InputFolder:
    """The files below a folder, the same for all of a process: it remembers what could be read."""
    return InputFolder(root, patience)
