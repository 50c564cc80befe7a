"""One training process in a run directory."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from trainer.errors import BadInput

LOCK = ".lock"
# What `write_whole` leaves where its process is killed.
UNFINISHED = re.compile(r"\..+-(\d+)(\.\w+)?")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a run directory, which is made if need be, for this process.

    The lock is the kernel's, so that a process that dies in whatever way gives it back.

    Raises:
        BadInput: another process holds it; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BadInput(
                f"--run {folder}: in use by {file.read() or 'another process'}"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that are no more did not write to its end."""
    for path in folder.glob(".*"):
        match = UNFINISHED.fullmatch(path.name)
        if match and not psutil.pid_exists(int(match.group(1))):
            path.unlink(missing_ok=True)
