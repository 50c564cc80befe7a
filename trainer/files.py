"""Atomic writing of files, one-line errors of full disks, and checks of output paths."""

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
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil

from headct.errors import RESUMES, HeadctError, StorageError, UsageError
from headct.layout import INDEX, OUT_OF_FOLD, PREDICTIONS

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# These errors occur only in writing.
_UNWRITABLE = (*FULL, errno.EROFS)
# These errors occur in writing, but also elsewhere.
_LOST = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENOTDIR)
# Names of the unfinished files of `write_whole`: file, machine (not in earlier versions), process.
UNFINISHED = re.compile(r"\..+?-(?:([0-9a-f]{8})-)?(\d+)(\.\w+)?")
# Unfinished files of other machines count as abandoned after this long without a change.
_ABANDONED_SECONDS = 24 * 3600
# Files of a run or a shard directory, by the file that identifies the folder.
_OWNED = {
    "run.json": (
        *("*.json", "train.toml", "model.keras", "history.png", "report.html"),
        *(PREDICTIONS.format("*"), "trained_on.parquet"),
    ),
    "crossval.json": ("*.json", "report.html", PREDICTIONS.format("*"), OUT_OF_FOLD),
    "ensemble.json": ("*.json", "report.html", PREDICTIONS.format("*")),
    INDEX: ("*",),  # a shard directory
}


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
        with full_disk_reported(path, (*_UNWRITABLE, *_LOST)):
            write(unfinished)
            with unfinished.open("rb") as written:
                os.fsync(written.fileno())
            unfinished.replace(path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a folder; on success, move its contents to the new or empty `output`."""
    is_new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    # inside `output`: it may be a mount point
    unfinished = unfinished_path(output / "new")
    try:
        unfinished.mkdir()
        yield unfinished
        for path in unfinished.iterdir():
            path.replace(output / path.name)
        is_new = False
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if is_new:
            output.rmdir()


def write_json(path: Path, content: Any) -> None:
    """Write standard JSON, without NaN and Infinity."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files of processes that have ended.

    Other machines may share the folder, and their processes are not visible here: their files are
    removed after a day without a change.
    """
    for path in folder.glob(".*"):
        if not (match := UNFINISHED.fullmatch(path.name)):
            continue
        with suppress(FileNotFoundError):
            if match[1] == this_machine():
                abandoned = not psutil.pid_exists(int(match[2]))
            else:
                abandoned = time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
            if abandoned and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif abandoned:
                path.unlink()


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


# ---- Checks of output paths, before hours of work


def check_new_folder(output: Path) -> None:
    """Raise UsageError if a folder has files, or is not writable."""
    # nothing is removed from a folder of other files: `.venv-311` may be theirs
    if output.is_dir() and all(UNFINISHED.fullmatch(path.name) for path in output.iterdir()):
        remove_unfinished(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"--output {output}: exists and is not empty")
    check_writable(output, f"--output {output}")


def check_output(path: Path) -> None:
    """Create the folder of an output file, and check that the file can be written.

    Raises:
        UsageError: not writable, or among the files of a run or a shard directory.
    """
    try:
        if path.is_dir():
            raise UsageError(f"--output {path}: is a folder; must be a file")
        target = path.resolve()
        for marker, names in _OWNED.items():
            owned = any(fnmatch(target.name, name) for name in names)
            if owned and (target.parent / marker).is_file():
                raise UsageError(
                    f"--output {path}: would be among the files of a run or of shards, beside"
                    f" {marker}; choose another name or folder"
                )
        check_writable(target.parent, f"--output {path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished_path(path).touch()  # the longer name
        unfinished_path(path).unlink()
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written ({error.strerror})") from None


def check_writable(folder: Path, option: str) -> None:
    """Check that a folder, or its nearest existing parent, is writable; leave no files.

    Args:
        folder: need not exist.
        option: the option and its value, for the message.

    Raises:
        UsageError: the folder is not writable.
        StorageError: the disk is full.
    """
    try:
        parents = (folder, *folder.absolute().parents)
        existing = next(parent for parent in parents if parent.exists())
        with full_disk_reported(folder, FULL), TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UsageError(f"{option}: cannot be written ({error.strerror})") from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
