"""Files of this machine, and of network file systems that it has mounted."""

import errno
import fcntl
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
from headct.stores.protocol import FileInfo
from headct.stores.retries import Patience, Transient
from headct.stores.sources import show_source

T = TypeVar("T")

# What a killed process leaves behind; never a whole file.
_PARTIAL = ".{name}.{unique}.partial"
_PARTIAL_NAME = re.compile(r"\.(.+)\.[0-9a-f]{32}\.partial", re.DOTALL)
_REMOVALS = 10  # of a folder in which another process may be writing

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
# There is nothing at a path.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_Identity = tuple[int, int]  # device and inode
_Entries = list[tuple[str, FileInfo | None]]  # of a folder: names, and infos of files


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
            StoreError: a folder cannot be listed, or stays away: its files would be lost silently.
        """
        return self._walk(folder, "", frozenset())

    def _walk(self, folder: str, below: str, above: frozenset[_Identity]) -> Iterator[FileInfo]:
        identity, entries = self._look_into(folder)
        if identity in above:
            return
        for name, info in entries:
            path = f"{below}{name}"
            if info is None:
                yield from self._walk(f"{folder}/{name}", f"{path}/", above | {identity})
            else:
                yield FileInfo(path, info.size, info.version)

    def _look_into(self, folder: str) -> tuple[_Identity, _Entries]:
        """Which folder it is, and what is in it, in order: the files' infos, None for folders."""

        def look() -> tuple[_Identity, _Entries]:
            try:
                with os.scandir(folder) as found:
                    entries = [(e.name, _describe(e)) for e in found if not e.name.startswith(".")]
                return _identity(Path(folder).stat()), entries
            except FileNotFoundError:  # it was there: its disk or a folder above is away
                raise Transient("a folder is gone while it is listed") from None

        try:
            identity, entries = self._request(folder, look)
        except OSError as error:
            raise StoreError(show_source(folder), f"cannot be listed: {error.strerror}") from None
        # Behind a folder's name comes a slash in all paths below it: so these are in order too.
        entries.sort(key=lambda entry: os.fsencode(entry[0] if entry[1] else f"{entry[0]}/"))
        return identity, entries

    def info(self, path: str) -> FileInfo | None:
        """See Store."""
        found = self._stat(path)
        if found is None or stat.S_ISDIR(found.st_mode):
            return None
        return FileInfo(path, found.st_size, str(found.st_mtime_ns))

    def is_folder(self, path: str) -> bool:
        """See Store."""
        found = self._stat(path)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def _stat(self, path: str) -> os.stat_result | None:
        """What is at a path, or None.

        Raises:
            StoreError: that cannot be told.
        """
        try:
            return self._request(path, Path(path).stat)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise StoreError(show_source(path), error.strerror or type(error).__name__) from None

    def entries(self, folder: str) -> set[str]:
        """See Store."""
        if not self.is_folder(folder):
            return set()
        try:
            return self._request(folder, lambda: set(map(_entry, Path(folder).iterdir())))
        except OSError as error:
            raise StoreError(show_source(folder), f"cannot be listed: {error.strerror}") from None

    def check_reachable(self, path: str) -> None:
        """See Store. An empty folder may be a mount point without its disk."""
        try:
            with os.scandir(Path(os.path.realpath(path)).parent) as found:
                is_empty = next(found, None) is None
        except OSError as error:
            raise Transient(f"a folder cannot be listed: {error.strerror}") from None
        if is_empty:
            raise Transient("a folder is empty")

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """See Store."""
        return self._request(path, lambda: _read(path, start, length))

    def open(self, path: str) -> BinaryIO:
        """See Store."""
        return self._request(path, lambda: Path(path).open("rb"))

    @contextmanager
    def create(self, path: str, *, durable: bool) -> Iterator[BinaryIO]:
        """See Store. It is written beside its place and renamed."""
        target = Path(path)
        partial, lock = _make_partial(target)
        try:
            with partial.open("r+b") as file:
                yield cast(BinaryIO, file)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(target)
        finally:
            with suppress(OSError):  # the first error is the one to tell
                partial.unlink(missing_ok=True)
            os.close(lock)

    def add(self, path: str, data: bytes) -> bool:
        """See Store."""
        partial, lock = _make_partial(Path(path))
        try:
            with partial.open("r+b") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return _name(partial, path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            os.close(lock)

    def remove_partial(self, folder: str) -> None:
        """See Store."""
        for name in self.entries(folder):
            if partial_target(name) is not None:
                _remove_abandoned(Path(folder, name))

    def remove(self, path: str) -> None:
        """See Store."""
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
            except OSError as error:  # another run may be writing there
                if error.errno != errno.ENOTEMPTY or attempt == _REMOVALS - 1:
                    raise
            else:
                return

    def _request(self, path: str, action: Callable[[], T]) -> T:
        try:
            return action()  # nearly always: what follows takes as long as reading a header
        except Transient:
            pass
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

        return Patience(show_source(str(Path(path).parent)), self._patience).request(attempt)


def partial_target(name: str) -> str | None:
    """Return the name of the file that a partial file would have become; None for other names."""
    found = _PARTIAL_NAME.fullmatch(name)
    return found[1] if found else None


def _entry(path: Path) -> str:
    """Return a file's name as `LocalStore.entries` does."""
    if os.path.isfile(path):  # noqa: PTH113 - Path's raises for what may not be looked at
        return path.name
    return f"{path.name}/{'' if path.is_dir() and not path.is_symlink() else '@'}"


def _make_partial(target: Path) -> tuple[Path, int]:
    """A new file beside a target, and a descriptor that locks it: whoever writes it is alive."""
    while True:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.parent / _PARTIAL.format(name=target.name, unique=uuid.uuid4().hex)
        try:
            lock = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:  # another run has removed the folder meanwhile
            continue
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if partial.exists():  # nobody took it for abandoned before it was locked
            return partial, lock
        os.close(lock)


def _name(partial: Path, path: str) -> bool:
    """Give a file its name, unless another has it, and return whether it was given."""
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if Path(path).exists():
            return False
        partial.replace(path)
    return True


def _remove_abandoned(partial: Path) -> None:
    """Remove a partial file unless a process writes it, here or on another machine."""
    with suppress(OSError), partial.open("rb") as file:  # it may get its name at this moment
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        partial.unlink(missing_ok=True)


def _identity(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino


def _describe(entry: os.DirEntry[str]) -> FileInfo | None:
    """What is known of a file; None for a folder, of which nothing is to be known."""
    try:
        if entry.is_dir():
            return None
        found = entry.stat()
        return FileInfo("", found.st_size, str(found.st_mtime_ns))
    except FileNotFoundError:
        entry.stat(follow_symlinks=False)  # raises if the entry is gone, and not a link's target
    except OSError as error:
        if error.errno in _TRANSIENT:
            raise
    return FileInfo("", 0, "")  # a link to nothing, or a bad sector: reading it will say so


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
