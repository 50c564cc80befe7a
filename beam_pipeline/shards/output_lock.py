"""Lock of a local output, to detect concurrent runs.

The folder itself is locked, to leave no lock file. On file systems without locks, and in buckets,
concurrent runs are not detected.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headct.locks import Lock
from headct.stores import find_store, is_local


@dataclass
class OutputLock:
    """The lock of an output.

    Attributes:
        alone: whether no other run writes to the output.
    """

    alone: bool = True
    _lock: Lock | None = None

    def share(self) -> None:
        """Let other runs with the same options write, too."""
        if self._lock is not None:
            self._lock.share()


@contextmanager
def lock_output(url: str) -> Iterator[OutputLock]:
    """Keep other runs from preparing an output while the block runs.

    Args:
        url: path or URL of the output.
    """
    output = _lock_folder(Path(find_store(url)[1])) if is_local(url) else OutputLock()
    try:
        yield output
    finally:
        if output._lock is not None:
            output._lock.release()


def _lock_folder(folder: Path) -> OutputLock:
    """Lock a folder; if another run prepares it, wait until that run shares the lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return OutputLock(True, Lock(folder))
        except BlockingIOError:
            return OutputLock(False, Lock(folder, shared=True, wait=True))
    except OSError:  # the first write reports the error
        return OutputLock()
