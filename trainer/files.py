"""Files that are whole or not there, and disks that take no more."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from headct.errors import HeadctError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What only writing ends in.
_UNWRITABLE = (*FULL, errno.EROFS)
# What writing may end in, too, where nothing else is done.
_LOST = (
    *_UNWRITABLE,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ENOENT,
    errno.ENOTDIR,
)
# What `write_whole` leaves where its process is killed: the file's name, machine and process.
UNFINISHED = re.compile(r"\..+-([0-9a-f]{8})-(\d+)(\.\w+)?")
# Of versions before, which did not name the machine.
_OF_UNKNOWN_MACHINE = re.compile(r"\..+-\d+(\.\w+)?")
# A file of another machine's process that nothing was written to for so long is not in progress.
_ABANDONED_SECONDS = 24 * 3600


@cache
def this_machine() -> str:
    """Eight hexadecimal digits for what the number of a process is of: a machine or a container."""
    namespace = ""
    with suppress(OSError):  # Linux alone has them
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 # no path
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def unfinished_path(path: Path) -> Path:
    """Where this process writes what will be `path`."""
    return path.with_name(f".{path.stem}-{this_machine()}-{os.getpid()}{path.suffix}")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with another name; the file gets its own when it is complete.

    Raises:
        StorageError: the file cannot be written.
    """
    unfinished = unfinished_path(path)
    try:
        with full_disk_reported(path, _LOST):
            write(unfinished)
            with unfinished.open("rb") as written:
                os.fsync(written.fileno())
            unfinished.replace(path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def full_disk_reported(
    path: Path | None = None, kinds: tuple[int, ...] = _UNWRITABLE
) -> Iterator[None]:
    """Says in one line that a file cannot be written, if that is what went wrong.

    Args:
        path: the file, if it is known.
        kinds: the system's numbers for what may go wrong.

    Raises:
        StorageError: the disk is full or read-only, a quota is used up, or a limit is reached.
    """
    try:
        yield
    except HeadctError:
        raise
    except Exception as error:
        reason = disk_trouble(error, kinds)
        if reason is None:
            raise
        place = path or getattr(error, "filename", None)
        where = f"cannot write {place}" if place else "cannot write to the disk"
        raise StorageError(f"{where}: {reason}; the same command resumes") from None


def disk_trouble(error: BaseException, kinds: tuple[int, ...] = _UNWRITABLE) -> str | None:
    """Why a file could not be written, in the system's words, if that is what an exception is of.

    TensorFlow, HDF5 and Arrow quote the system's words in exceptions of their own.
    """
    if isinstance(error, OSError) and error.errno in kinds:
        return os.strerror(error.errno)
    quoted = (os.strerror(each) for each in _UNWRITABLE if each in kinds)
    return next((words for words in quoted if words in str(error)), None)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON that any reader takes: no NaN, no Infinity."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that are no more did not write to its end.

    Of this machine's processes it is known whether they are: others may share the folder, and
    their files go when they have long been left alone.
    """
    for path in folder.glob(".*"):
        if _is_abandoned(path) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif _is_abandoned(path):
            path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    """Whether a file is one that its process will not finish."""
    named = UNFINISHED.fullmatch(path.name)
    if named and named[1] == this_machine():
        return not psutil.pid_exists(int(named[2]))
    if not (named or _OF_UNKNOWN_MACHINE.fullmatch(path.name)):
        return False
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
    except FileNotFoundError:
        return False
