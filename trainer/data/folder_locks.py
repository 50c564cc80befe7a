"""Locks that go with their process: who uses a folder, and who fills it.

They are of `flock`. A file system without it has no locks: nothing is removed there, and two
processes may do the same work twice, but never half of it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

IN_USE = ".in_use"
_FILLING = ".filling"
_ASK_AGAIN = 0.2  # seconds


class Lock:
    """A lock on a file, held as long as this exists.

    Attributes:
        is_held: false where the file system has no locks.
    """

    def __init__(self, path: Path, kind: int) -> None:
        """Locks.

        Raises:
            BlockingIOError: another process has the lock, and `kind` has LOCK_NB.
            OSError: the file cannot be made.
        """
        self.descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        self.release = weakref.finalize(self, os.close, self.descriptor)
        try:
            fcntl.flock(self.descriptor, kind)
            self.is_held = True
        except BlockingIOError:
            self.release()
            raise
        except OSError:
            self.is_held = False

    def is_of(self, path: Path) -> bool:
        """Whether the locked file is still the one at this path."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), path.stat())
        except FileNotFoundError:
            return False


def use_folder(folder: Path) -> Lock:
    """Makes a folder, and keeps it from being removed while the lock exists.

    Raises:
        OSError: it cannot be made.
    """
    path = folder / IN_USE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = Lock(path, fcntl.LOCK_SH)
        except FileNotFoundError:  # another process has just removed the folder
            continue
        if lock.is_of(path):
            os.utime(path)
            return lock
        lock.release()


def last_use(folder: Path) -> float:
    """When a folder was last used, in seconds since 1970."""
    try:
        return (folder / IN_USE).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def remove_unused(folder: Path) -> bool:
    """Removes a folder unless a process uses it, this one included; whether it did."""
    try:
        lock = Lock(folder / IN_USE, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    try:
        if lock.is_held:
            shutil.rmtree(folder, ignore_errors=True)
        return lock.is_held
    finally:
        lock.release()


@contextmanager
def fill_folder(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Lets one process at a time fill a folder; calls `wait` once if that is another one.

    Raises:
        OSError: the lock's file cannot be made.
    """
    lock = None
    while lock is None:
        with suppress(BlockingIOError):
            lock = Lock(folder / _FILLING, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            wait()
            wait = nothing
            time.sleep(_ASK_AGAIN)
    try:
        if lock.is_held:
            remove_partial(folder)
        yield
    finally:
        lock.release()


def nothing() -> None:
    """Does nothing."""


def remove_partial(folder: Path) -> None:
    """Removes what killed processes left behind."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)
