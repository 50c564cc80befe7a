"""Shared memory and sockets for containers without `/dev/shm` or with a long TMPDIR."""

import mmap
import os
import tempfile
from contextlib import suppress
from multiprocessing import reduction, util
from typing import Any

from headct.errors import UsageError

_NUMBERS = 2
_BYTES = 8 * _NUMBERS
# A socket's path has at most 107 bytes (unix(7)), and 103 on macOS; multiprocessing uses 32 of them
# for "/pymp-xxxxxxxx/listener-xxxxxxxx".
_LONGEST_FOLDER = 103 - 32
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/run")  # mkdtemp makes a folder in one of them


class SharedNumbers:
    """Integers that this process and its child processes read and change.

    `multiprocessing` would keep the integers in `/dev/shm`.

    Args:
        descriptor: file descriptor of the numbers; None to create a file.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = _unnamed_file() if descriptor is None else descriptor
        self._numbers = memoryview(mmap.mmap(self._descriptor, _BYTES)).cast("q")
        if descriptor is not None:
            self.close()

    def __getitem__(self, index: int) -> int:
        return int(self._numbers[index])

    def __setitem__(self, index: int, number: int) -> None:
        self._numbers[index] = number

    def close(self) -> None:
        """Close the file: no further process can open the numbers. The numbers stay."""
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
    """Make multiprocessing create its sockets in a folder with a short path.

    Raises:
        UsageError: no folder with a short path can be written.
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
                util.get_temp_dir()  # creates a folder, and returns the same folder from now on
            finally:
                tempfile.tempdir = folder
            return
    raise UsageError(
        f"TMPDIR {folder} is too long for the path of a socket: want a folder of at most "
        f"{_LONGEST_FOLDER} bytes"
    )
