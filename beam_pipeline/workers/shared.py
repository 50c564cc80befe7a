"""What processes share with the one that started them, without a name in any file system.

`multiprocessing` has it in `/dev/shm`, which some containers lack.
"""

import mmap
import os
import tempfile
from contextlib import suppress
from multiprocessing import reduction, util
from typing import Any

from headct.errors import UsageError

_NUMBERS = 2
_BYTES = 8 * _NUMBERS
# A socket's path has at most 107 bytes (unix(7)), and 103 on macOS, of which multiprocessing takes
# 32 for "/pymp-xxxxxxxx/listener-xxxxxxxx".
_LONGEST_FOLDER = 103 - 32
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/run")  # where mkdtemp makes one of its own


class SharedNumbers:
    """A few whole numbers that this process and one that it starts see and change.

    Args:
        descriptor: of the file that holds them; None to make one.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = _unnamed_file() if descriptor is None else descriptor
        self._numbers = memoryview(mmap.mmap(self._descriptor, _BYTES)).cast("q")
        if descriptor is not None:
            self.close()

    def __getitem__(self, place: int) -> int:
        return int(self._numbers[place])

    def __setitem__(self, place: int, number: int) -> None:
        self._numbers[place] = number

    def close(self) -> None:
        """Close the file, which no process can be given from then on; the numbers stay."""
        os.close(self._descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (reduction.DupFd(self._descriptor),)


def _rebuild(descriptor: Any) -> SharedNumbers:
    return SharedNumbers(descriptor.detach())


def _unnamed_file() -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("headct-shards")
    else:  # macOS
        descriptor, name = tempfile.mkstemp()
        os.unlink(name)  # noqa: PTH108
    os.truncate(descriptor, _BYTES)
    return descriptor


def place_sockets() -> None:
    """Have multiprocessing make its sockets in a folder with a short path.

    Raises:
        UsageError: there is none that can be written.
    """
    try:
        folder = tempfile.gettempdir()
    except OSError:
        raise UsageError(
            "no folder for temporary files can be written: set TMPDIR to one"
        ) from None
    if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
        return
    for short in _SHORT_FOLDERS:
        with suppress(OSError):
            tempfile.tempdir = short
            try:
                util.get_temp_dir()  # makes one, and keeps to it
            finally:
                tempfile.tempdir = folder
            return
    raise UsageError(
        f"TMPDIR {folder} is too long for the path of a socket: want a folder of at most "
        f"{_LONGEST_FOLDER} bytes"
    )
