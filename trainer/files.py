"""Write files atomically, and report full disks in one line."""

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
# These errors occur only in writing.
_UNWRITABLE = (*FULL, errno.EROFS)
# These errors occur in writing, but also elsewhere.
_LOST = (
    *_UNWRITABLE,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ENOENT,
    errno.ENOTDIR,
)
# Names of the unfinished files of `write_whole`: file, machine and process.
UNFINISHED = re.compile(r"\..+-([0-9a-f]{8})-(\d+)(\.\w+)?")
# Names in earlier versions: without the machine.
_UNFINISHED_SOMEWHERE = re.compile(r"\..+-\d+(\.\w+)?")
# Unfinished files of other machines count as abandoned after this long without a change.
_ABANDONED_SECONDS = 24 * 3600


@cache
def this_machine() -> str:
    """Return eight hexadecimal digits that identify the machine or container (PID namespace)."""
    namespace = ""
    with suppress(OSError):  # Linux only
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def unfinished_path(path: Path) -> Path:
    """Return this process's temporary path for `path`."""
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
    """Write standard JSON, without NaN and Infinity."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


@contextmanager
def full_disk_reported(
    path: Path | None = None, kinds: tuple[int, ...] = _UNWRITABLE
) -> Iterator[None]:
    """Turn write failures into a one-line error.

    Args:
        path: the file, if known.
        kinds: error numbers of write failures.

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
    """Return the system's message if an exception is a write failure; otherwise None.

    TensorFlow, HDF5 and Arrow quote the system's message in their own exceptions.
    """
    if isinstance(error, OSError) and error.errno in kinds:
        return os.strerror(error.errno)
    quoted = (os.strerror(kind) for kind in _UNWRITABLE if kind in kinds)
    return next((message for message in quoted if message in str(error)), None)


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files of processes that have ended.

    Other machines may share the folder, and their processes are not visible here: their files are
    removed after a day without a change.
    """
    for path in folder.glob(".*"):
        if _is_abandoned(path) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif _is_abandoned(path):
            path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    """Return whether an unfinished file is abandoned."""
    match = UNFINISHED.fullmatch(path.name)
    if match and match[1] == this_machine():
        return not psutil.pid_exists(int(match[2]))
    if not (match or _UNFINISHED_SOMEWHERE.fullmatch(path.name)):
        return False
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
    except FileNotFoundError:
        return False
