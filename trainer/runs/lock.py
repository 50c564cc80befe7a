"""One training process in a run directory."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from headct.errors import UsageError

LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a run directory, which is made if need be, for this process.

    The lock is the kernel's, so that a process that dies in whatever way gives it back. A file
    system without locks has none.

    Raises:
        UsageError: another process holds it; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            lock(file)
        except BlockingIOError:
            file.seek(0)
            raise UsageError(
                f"--run {folder}: in use by {file.read() or 'another process'}"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def lock(file: IO[str]) -> None:
    """Takes a file's lock, where its file system has locks.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return
