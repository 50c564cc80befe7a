"""Write files that are complete or do not exist, and report full disks in one line."""

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

from headct.errors import RESUMES, HeadctError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Only writing fails like this.
_UNWRITABLE = (*FULL, errno.EROFS)
# Writing may fail like this, too; so may other work.
_LOST = (
    *_UNWRITABLE,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ENOENT,
    errno.ENOTDIR,
)
# Names that `write_whole` gives to unfinished files: file, machine and process.
UNFINISHED = re.compile(r"\..+-([0-9a-f]{8})-(\d+)(\.\w+)?")
# The same in earlier versions, without the machine.
_UNFINISHED_SOMEWHERE = re.compile(r"\..+-\d+(\.\w+)?")
# An unfinished file of another machine is abandoned if it has not changed for this long.
_ABANDONED_SECONDS = 24 * 3600


@cache
def this_machine() -> str:
    """Return eight hexadecimal digits for the machine or container that numbers processes."""
    namespace = ""
    with suppress(OSError):  # only Linux has it
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def unfinished_path(path: Path) -> Path:
    """Return the path that this process writes to before it renames the file to `path`."""
    return path.with_name(f".{path.stem}-{this_machine()}-{os.getpid()}{path.suffix}")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path; rename the file to `path` when it is complete.

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


def write_json(path: Path, content: Any) -> None:
    """Write JSON that any parser reads: without NaN and Infinity."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


@contextmanager
def full_disk_reported(
    path: Path | None = None, kinds: tuple[int, ...] = _UNWRITABLE
) -> Iterator[None]:
    """Turn failures to write into an error of one line.

    Args:
        path: the file, if it is known.
        kinds: error numbers that mean a failure to write.

    Raises:
        StorageError: the disk is full or read-only, or a quota or limit is reached.
    """
    try:
        yield
    except HeadctError:
        raise
    except Exception as error:
        reason = disk_trouble(error, kinds)
        if reason is None:
            raise
        file = path or getattr(error, "filename", None) or "to the disk"
        raise StorageError(f"cannot write {file}: {reason}; {RESUMES}") from None


def disk_trouble(error: BaseException, kinds: tuple[int, ...] = _UNWRITABLE) -> str | None:
    """Return the system's message if an exception means that a file could not be written.

    TensorFlow, HDF5 and Arrow quote this message in exceptions of their own.
    """
    if isinstance(error, OSError) and error.errno in kinds:
        return os.strerror(error.errno)
    quoted = (os.strerror(kind) for kind in _UNWRITABLE if kind in kinds)
    return next((message for message in quoted if message in str(error)), None)


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files of processes that have ended.

    Other machines may share the folder; whether their processes have ended is not known, so their
    files are removed when they have not changed for a day.
    """
    for path in folder.glob(".*"):
        if _is_abandoned(path) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif _is_abandoned(path):
            path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    """Return whether no process will finish a file."""
    match = UNFINISHED.fullmatch(path.name)
    if match and match[1] == this_machine():
        return not psutil.pid_exists(int(match[2]))
    if not (match or _UNFINISHED_SOMEWHERE.fullmatch(path.name)):
        return False
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
    except FileNotFoundError:
        return False
