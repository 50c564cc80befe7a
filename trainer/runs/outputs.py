"""Checks of output paths and export formats, before hours of work."""

from __future__ import annotations

from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from headct.errors import UsageError
from headct.layout import INDEX
from trainer.files import FULL, full_disk_reported, remove_unfinished, unfinished_path
from trainer.options import parse_formats

# Files of a run or a shard directory, by the file that identifies the folder.
_OWNED = {
    "run.json": (
        *("*.json", "model.keras", "history.png", "report.html"),
        *("predictions-*.parquet", "trained_on.parquet"),
    ),
    "crossval.json": ("crossval.json", "out_of_fold.parquet"),
    INDEX: ("*",),  # a shard directory
}


def check_formats(text: str) -> None:
    """Check that the packages for the formats of an export are installed.

    Raises:
        UsageError: a package is missing.
    """
    needed = ("onnx", "tf2onnx", "onnxruntime") if "onnx" in parse_formats(text) else ()
    for name in needed:
        if find_spec(name) is None:
            raise UsageError(
                f"--formats onnx: {name} is not installed; `make export` brings it, and so does the"
                " extra `onnx`"
            )


def check_new_folder(output: Path) -> None:
    """Check that a folder is new or empty, and writable.

    Raises:
        UsageError: the folder has files, or is not writable.
    """
    if output.is_dir():
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
        _refuse_owned(path)
        check_writable(path.resolve().parent, f"--output {path}")
        path.resolve().parent.mkdir(parents=True, exist_ok=True)
        unfinished_path(path).touch()  # the longer name
        unfinished_path(path).unlink()
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written ({error.strerror})") from None


def _refuse_owned(path: Path) -> None:
    """Refuse an output file among the files of a run or a shard directory.

    Raises:
        UsageError: the name belongs to such a folder.
    """
    target = path.resolve()
    for marker, names in _OWNED.items():
        owned = any(fnmatch(target.name, name) for name in names)
        if owned and (target.parent / marker).is_file():
            raise UsageError(
                f"--output {path}: would be among the files of a run or of shards, beside {marker};"
                " choose another name or folder"
            )


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
