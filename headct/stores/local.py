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
from headct.stores.protocol import FileInfo, Patience, Store, Transient, show_source

T = TypeVar("T")

# An unfinished file, locked by the process that writes it.
_PARTIAL = ".{name}.{unique}.partial"
_PARTIAL_NAME = re.compile(r"\.(.+)\.[0-9a-f]{32}\.partial", re.DOTALL)
_REMOVALS = 10  # attempts to remove a folder to which another process may be writing

# Failures of the disk or the network, not of the file.
_TRANSIENT = frozenset(
    {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
    | {errno.ECONNABORTED, errno.ECONNRESET, errno.ENOTCONN, errno.ENETDOWN, errno.ENETUNREACH}
    | {errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
# Nothing exists at a path.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


class LocalStore(Store):
    """Files under absolute paths; names that are not UTF-8 are decoded with `os.fsdecode`."""

    # the kernel reads ahead: more threads cost more than they save
    readers = 2
    ranged_readers = 0

    def __init__(self, patience: float) -> None:
        self._patience = patience

    def list(self, folder: str) -> Iterator[FileInfo]:
        """List files. Symbolic links are followed, except to a folder that contains them.

        Raises:
            StoreError: a folder cannot be listed or stays unavailable; its files must not be lost.
        """
        return self._walk(folder, "", frozenset())

    def _walk(
        self, folder: str, prefix: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[FileInfo]:
        status, entries = self._examine(folder, lambda: _scan(folder), "cannot be listed: ")
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        for name, info in entries:
            if info is None:
                yield from self._walk(f"{folder}/{name}", f"{prefix}{name}/", above | {identity})
            else:
                yield FileInfo(f"{prefix}{name}", info.size, info.version)

    def info(self, path: str) -> FileInfo | None:
        status = self._stat(path)
        return None if status is None or stat.S_ISDIR(status.st_mode) else _describe(path, status)

    def is_folder(self, path: str) -> bool:
        status = self._stat(path)
        return status is not None and stat.S_ISDIR(status.st_mode)

    def _stat(self, path: str) -> os.stat_result | None:
        """Return the status of a path; None if nothing exists there."""

        def look() -> os.stat_result | None:
            try:
                return Path(path).stat()
            except OSError as error:
                if error.errno in _ABSENT:
                    return None
                raise

        return self._examine(path, look)

    def entries(self, folder: str) -> set[str]:
        if not self.is_folder(folder):
            return set()
        return self._examine(
            folder, lambda: set(map(_entry, Path(folder).iterdir())), "cannot be listed: "
        )

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
        for attempts_left in reversed(range(_REMOVALS)):
            try:
                shutil.rmtree(path)
            except OSError as error:  # another run may be writing to it, or removing it
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or not attempts_left:
                    raise
            if not Path(path).exists():
                return

    def _examine(self, path: str, look: Callable[[], T], what: str = "") -> T:
        """Return what `look` finds; raise StoreError if it fails."""
        try:
            return self._request(path, look)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StoreError(show_source(path), f"{what}{reason}") from None

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


def _scan(folder: str) -> tuple[os.stat_result, list[tuple[str, FileInfo | None]]]:
    """Return the status of a folder, and its names in the order of their paths.

    With each name comes the size and version of the file; None for a folder.
    """
    try:
        with os.scandir(folder) as scan:
            entries = [(e.name, _look_at(e)) for e in scan if not e.name.startswith(".")]
        status = Path(folder).stat()
    except FileNotFoundError:  # listed before: its disk or a parent is unavailable
        raise Transient("a folder is gone while it is listed") from None
    # sort folders by name with slash, as in paths
    entries.sort(key=lambda entry: os.fsencode(entry[0] if entry[1] else f"{entry[0]}/"))
    return status, entries


def _look_at(entry: os.DirEntry[str]) -> FileInfo | None:
    try:
        return None if entry.is_dir() else _describe("", entry.stat())
    except FileNotFoundError:
        entry.stat(follow_symlinks=False)  # raises unless the entry is a broken link
    except OSError as error:
        if error.errno in _TRANSIENT:
            raise
    return FileInfo("", 0, "")  # a broken link, or a bad sector: reading will fail


def _describe(path: str, status: os.stat_result) -> FileInfo:
    return FileInfo(path, status.st_size, str(status.st_mtime_ns))


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
