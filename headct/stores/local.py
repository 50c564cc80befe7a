"""Local files, and files of mounted network file systems."""

import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from headct.errors import StoreError
from headct.locks import Lock
from headct.stores.protocol import FileInfo, Store, show_source
from headct.stores.retries import Patience, Transient

T = TypeVar("T")

# An unfinished file, locked by the process that writes it.
_PARTIAL = ".{name}.{unique}.partial"
_PARTIAL_NAME = re.compile(r"\.(.+)\.[0-9a-f]{32}\.partial", re.DOTALL)
_REMOVALS = 10  # attempts to remove a folder to which another process may be writing

# Failures of the disk or the network, not of the file.
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
# Nothing exists at a path.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_Identity = tuple[int, int]  # device and inode
_Entries = list[tuple[str, FileInfo | None]]  # names in a folder; None for its folders


class LocalStore(Store):
    """Files under absolute paths; names that are not UTF-8 are decoded with `os.fsdecode`."""

    # the kernel reads ahead: more threads cost more than they save
    readers = 2
    read_together = 8
    ranged_readers = 0

    def __init__(self, patience: float) -> None:
        self._patience = patience

    def list(self, folder: str) -> Iterator[FileInfo]:
        """List files. Symbolic links are followed, except to a folder that contains them.

        Raises:
            StoreError: a folder cannot be listed or stays unavailable; its files must not be lost.
        """
        return self._walk(folder, "", frozenset())

    def _walk(self, folder: str, prefix: str, above: frozenset[_Identity]) -> Iterator[FileInfo]:
        identity, entries = self._look_into(folder)
        if identity in above:
            return
        for name, info in entries:
            path = f"{prefix}{name}"
            if info is None:
                yield from self._walk(f"{folder}/{name}", f"{path}/", above | {identity})
            else:
                yield FileInfo(path, info.size, info.version)

    def _look_into(self, folder: str) -> tuple[_Identity, _Entries]:
        """Return the identity of a folder and its entries, in the order of their paths."""

        def look() -> tuple[_Identity, _Entries]:
            try:
                with os.scandir(folder) as scan:
                    entries = [(e.name, _describe(e)) for e in scan if not e.name.startswith(".")]
                status = Path(folder).stat()
            except FileNotFoundError:  # listed before: its disk or a parent is unavailable
                raise Transient("a folder is gone while it is listed") from None
            return (status.st_dev, status.st_ino), entries

        try:
            identity, entries = self._request(folder, look)
        except OSError as error:
            raise StoreError(show_source(folder), f"cannot be listed: {error.strerror}") from None
        # sort folders by name with slash, as in paths
        entries.sort(key=lambda entry: os.fsencode(entry[0] if entry[1] else f"{entry[0]}/"))
        return identity, entries

    def info(self, path: str) -> FileInfo | None:
        status = self._stat(path)
        if status is None or stat.S_ISDIR(status.st_mode):
            return None
        return FileInfo(path, status.st_size, str(status.st_mtime_ns))

    def is_folder(self, path: str) -> bool:
        status = self._stat(path)
        return status is not None and stat.S_ISDIR(status.st_mode)

    def _stat(self, path: str) -> os.stat_result | None:
        """Return the status of a path; None if nothing exists there.

        Raises:
            StoreError: the path cannot be examined.
        """
        try:
            return self._request(path, Path(path).stat)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise StoreError(show_source(path), error.strerror or type(error).__name__) from None

    def entries(self, folder: str) -> set[str]:
        if not self.is_folder(folder):
            return set()
        try:
            return self._request(folder, lambda: set(map(_entry, Path(folder).iterdir())))
        except OSError as error:
            raise StoreError(show_source(folder), f"cannot be listed: {error.strerror}") from None

    def check_reachable(self, path: str) -> None:
        """Raise Transient unless the folder has files: an empty one may be an unmounted disk."""
        try:
            with os.scandir(Path(os.path.realpath(path)).parent) as scan:
                is_empty = next(scan, None) is None
        except OSError as error:
            raise Transient(f"a folder cannot be listed: {error.strerror}") from None
        if is_empty:
            raise Transient("a folder is empty")

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        return self._request(path, lambda: _read(path, start, length))

    def open(self, path: str) -> BinaryIO:
        return self._request(path, lambda: Path(path).open("rb"))

    @contextmanager
    def create(self, path: str, *, durable: bool) -> Iterator[BinaryIO]:
        """Write a partial file in the same folder and rename it."""
        with _partial_file(Path(path)) as partial:
            with partial.open("r+b") as file:
                yield cast(BinaryIO, file)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(path)

    def add(self, path: str, data: bytes) -> bool:
        with _partial_file(Path(path)) as partial:
            with partial.open("r+b") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(partial, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                if Path(path).exists():
                    return False
                partial.replace(path)
            return True

    def remove_partial(self, folder: str) -> None:
        for name in self.entries(folder):
            if partial_target(name) is not None:
                partial = Path(folder, name)
                # may be renamed by now, or locked by a process on any host
                with suppress(OSError), Lock(partial) as lock:
                    if lock.is_held:
                        partial.unlink(missing_ok=True)

    def remove(self, path: str) -> None:
        if not Path(path).is_dir() or Path(path).is_symlink():
            with suppress(FileNotFoundError, NotADirectoryError):
                Path(path).unlink()
            return
        for attempt in range(_REMOVALS):
            try:
                shutil.rmtree(path)
            except FileNotFoundError:
                if not Path(path).exists():
                    return
            except OSError as error:  # another run may be writing to it
                if error.errno != errno.ENOTEMPTY or attempt == _REMOVALS - 1:
                    raise
            else:
                return

    def _request(self, path: str, action: Callable[[], T]) -> T:
        def attempt() -> T:
            try:
                return action()
            except OSError as error:
                if error.errno in _TRANSIENT:
                    raise Transient(error.strerror) from None
                raise

        try:
            return attempt()  # usual; naming the folder costs as much as reading a header
        except Transient:
            folder = show_source(str(Path(path).parent))
            return Patience(folder, self._patience).request(attempt)


def partial_target(name: str) -> str | None:
    """Return the target name of a partial file; None for other names."""
    match = _PARTIAL_NAME.fullmatch(name)
    return match[1] if match else None


def _entry(path: Path) -> str:
    """Return the name of a file as `Store.entries` does."""
    if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises without permission
        return path.name
    return f"{path.name}/{'' if path.is_dir() and not path.is_symlink() else '@'}"


@contextmanager
def _partial_file(target: Path) -> Iterator[Path]:
    """Create a partial file next to a target, locked by its writer; remove it at the end."""
    while True:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.parent / _PARTIAL.format(name=target.name, unique=uuid.uuid4().hex)
        try:
            lock = Lock(partial)
        except FileNotFoundError:  # another run has removed the folder meanwhile
            continue
        if lock.is_of(partial):  # no other run removed it before it was locked
            break
        lock.release()
    try:
        yield partial
    finally:
        with suppress(OSError):  # report the first error
            partial.unlink(missing_ok=True)
        lock.release()


def _describe(entry: os.DirEntry[str]) -> FileInfo | None:
    """Return size and version of a file; None for a folder."""
    try:
        if entry.is_dir():
            return None
        status = entry.stat()
        return FileInfo("", status.st_size, str(status.st_mtime_ns))
    except FileNotFoundError:
        entry.stat(follow_symlinks=False)  # raises unless the entry is a broken link
    except OSError as error:
        if error.errno in _TRANSIENT:
            raise
    return FileInfo("", 0, "")  # a broken link, or a bad sector: reading will fail


def _read(path: str, start: int, length: int | None) -> bytes:
    # O_NONBLOCK: opening a named pipe would wait for its other end
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file")
        wanted = status.st_size - start if length is None else length
        data = os.pread(descriptor, max(wanted, 0), start)
        while len(data) < wanted and (
            more := os.pread(descriptor, wanted - len(data), start + len(data))
        ):
            data += more
        return data
    finally:
        os.close(descriptor)
