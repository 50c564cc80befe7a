"""File locks that the kernel releases when their process exits or is killed."""

import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self


class Lock:
    """An flock of a file or folder, held until `release`, garbage collection or the process's end.

    A file system without locks grants every lock.

    Args:
        path: a folder, or a file, which is created if missing.
        shared: whether other processes may hold the lock, too, if theirs is shared.
        wait: whether to wait while another process holds the lock.

    Attributes:
        is_held: false if the file system has no locks.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is false.
        OSError: the file cannot be opened.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, shared: bool = False, wait: bool = False
    ) -> None:
        # NFS requires write access for an exclusive lock
        flags = os.O_RDONLY if Path(path).is_dir() else os.O_RDWR | os.O_CREAT
        self._descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        self.release = weakref.finalize(self, os.close, self._descriptor)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self._descriptor, kind if wait else kind | fcntl.LOCK_NB)
            self.is_held = True
        except BlockingIOError:
            self.release()
            raise
        except OSError:
            self.is_held = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.release()

    def share(self) -> None:
        """Let other processes share the lock from now on."""
        if self.is_held:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def is_of(self, path: Path) -> bool:
        """Return whether the locked file is still the one at this path."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except FileNotFoundError:
            return False
