"""Files of this machine, and of network file systems that it has mounted."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from beam_pipeline.errors import StoreError
from beam_pipeline.storage.retries import Patience, Transient
from beam_pipeline.storage.stores import FileInfo

T = TypeVar("T")

# The machine or the network behind a mount fails, not the file.
_TRANSIENT = frozenset(
    {
        errno.EAGAIN,
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOTCONN,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
_Identity = tuple[int, int]  # device and inode


class LocalStore:
    """Files under absolute paths. Names that are not UTF-8 are as in `os.fsdecode`."""

    # Disks read on their own; what costs time is to hand work to a thread.
    readers = 2
    read_together = 8
    ranged_readers = 0

    def __init__(self, patience: float) -> None:
        self._patience = patience

    def list(self, folder: str) -> Iterator[FileInfo]:
        """See Store. Symbolic links are followed, but not to a folder that leads to them.

        Raises:
            StoreError: a folder cannot be listed: what it holds would be lost without a word.
        """
        return self._walk(folder, "", frozenset())

    def _walk(self, folder: str, below: str, above: frozenset[_Identity]) -> Iterator[FileInfo]:
        try:
            identity = _identity(Path(folder).stat())
            if identity in above:
                return
            with os.scandir(folder) as found:
                entries = [(entry, _is_folder(entry)) for entry in found if entry.name[:1] != "."]
        except OSError as error:
            raise StoreError(_show(folder), f"cannot be listed: {error.strerror}") from None
        # Behind a folder's name comes a slash in all paths below it: so these are in order too.
        entries.sort(key=lambda item: os.fsencode(f"{item[0].name}/" if item[1] else item[0].name))
        for entry, is_folder in entries:
            path = f"{below}{entry.name}"
            if is_folder:
                yield from self._walk(entry.path, f"{path}/", above | {identity})
            else:
                yield _describe(entry, path)

    def info(self, path: str) -> FileInfo | None:
        """See Store."""
        try:
            found = Path(path).stat()
        except OSError:
            return None
        if stat.S_ISDIR(found.st_mode):
            return None
        return FileInfo(path, found.st_size, str(found.st_mtime_ns))

    def is_folder(self, path: str) -> bool:
        """See Store."""
        return Path(path).is_dir()

    def names(self, folder: str) -> set[str]:
        """See Store."""
        return {entry.name for entry in Path(folder).iterdir()} if self.is_folder(folder) else set()

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """See Store."""
        return self._request(path, lambda: _read(path, start, length))

    def open(self, path: str) -> BinaryIO:
        """See Store."""
        return self._request(path, lambda: Path(path).open("rb"))

    def write(self, path: str, file: BinaryIO) -> str:
        """See Store; `Folder.create` writes local files in place instead."""
        with Path(path).open("wb") as target:
            shutil.copyfileobj(file, target)
        return ""

    def remove(self, path: str) -> None:
        """See Store."""
        if Path(path).is_dir() and not Path(path).is_symlink():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)

    def _request(self, path: str, action: Callable[[], T]) -> T:
        try:
            return action()  # nearly always: what follows takes as long as reading a header
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise

        def attempt() -> T:
            try:
                return action()
            except OSError as error:
                if error.errno in _TRANSIENT:
                    raise Transient(error.strerror) from None
                raise

        return Patience(_show(str(Path(path).parent)), self._patience).request(attempt)


def _identity(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _describe(entry: os.DirEntry[str], path: str) -> FileInfo:
    try:
        found = entry.stat()
    except OSError:  # a link to nothing: reading it will say so
        return FileInfo(path, 0, "")
    return FileInfo(path, found.st_size, str(found.st_mtime_ns))


def _read(path: str, start: int, length: int | None) -> bytes:
    # Without O_NONBLOCK the other end of a named pipe would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file")
        wanted = found.st_size - start if length is None else length
        data = os.pread(descriptor, max(wanted, 0), start)
        while len(data) < wanted and (
            more := os.pread(descriptor, wanted - len(data), start + len(data))
        ):
            data += more
        return data
    finally:
        os.close(descriptor)


def _show(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
