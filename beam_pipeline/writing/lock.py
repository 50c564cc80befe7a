"""Whether others write to a local output now.

The lock is that of the folder itself (flock): it leaves no file, and ends with its process. On a
file system without such locks, and in a bucket, nobody is seen.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headct.stores import is_local
from headct.stores.stores import find_store


class OutputLock:
    """Held while a run writes; see `lock_output`.

    Attributes:
        alone: whether no other run writes to the output.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self.alone = True
        if descriptor is None:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.alone = False
            self.share()  # waits until the other run has prepared the folder
        except OSError:  # a file system without locks
            self._descriptor = None

    def share(self) -> None:
        """Let other runs with the same options write, too."""
        if self._descriptor is not None:
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)


@contextmanager
def lock_output(url: str) -> Iterator[OutputLock]:
    """Keep other runs from preparing an output while the block runs.

    Args:
        url: path or URL of the output.
    """
    descriptor = _open(url) if is_local(url) else None
    try:
        yield OutputLock(descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open(url: str) -> int | None:
    """Open the folder, which is made if it is not there; None if that cannot be."""
    _, path = find_store(url)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # the first file that is written will say so
        return None
