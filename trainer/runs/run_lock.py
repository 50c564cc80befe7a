"""Lock of a run directory: one training process at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headct.errors import UsageError
from headct.locks import Lock

LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a run directory while the block runs; create the folder if missing.

    Raises:
        UsageError: another process holds the lock; the message names the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    try:
        lock = Lock(path)
    except BlockingIOError:
        holder = path.read_text(encoding="utf-8") or "another process"
        raise UsageError(f"--run {folder}: in use by {holder}") from None
    with lock:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        try:
            yield
        finally:
            os.truncate(path, 0)
