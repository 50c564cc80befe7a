"""Whether a command can write what it is asked for: checked before it works for hours."""

from __future__ import annotations

from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from headct.errors import UsageError
from headct.layout import INDEX
from trainer.files import FULL, full_disk_reported, remove_unfinished, unfinished_path
from trainer.options import parse_formats

# By a file that tells what a folder is, what its owner writes into it; see `RunDirectory`.
_OWNED = {
    "run.json": (
        *("*.json", "model.keras", "history.png", "report.html"),
        *("predictions-*.parquet", "trained_on.parquet"),
    ),
    "crossval.json": ("crossval.json", "out_of_fold.parquet"),
    INDEX: ("*",),  # a shard directory
}


def check_formats(text: str) -> None:
    """Looks for what writes formats of export, and for what checks them.

    Raises:
        UsageError: it is not installed.
    """
    needed = ("onnx", "tf2onnx", "onnxruntime") if "onnx" in parse_formats(text) else ()
    for name in needed:
        if find_spec(name) is None:
            raise UsageError(
                f"--formats onnx: {name} is not installed; `make export` brings it, and so does the"
                " extra `onnx`"
            )


def check_new_folder(output: Path) -> None:
    """Looks into a folder that is to be made, or empty, and tries to write there.

    Raises:
        UsageError: it has something in it, or cannot be written.
    """
    if output.is_dir():
        remove_unfinished(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"--output {output}: exists and is not empty")
    check_writable(output, f"--output {output}")


def check_output(path: Path) -> None:
    """Makes the folder of a file that a command is to write, and tries to write into it.

    Raises:
        UsageError: it cannot be written, or the file is one of a run or of a shard directory.
    """
    try:
        if path.is_dir():
            raise UsageError(f"--output {path}: is a folder; must be a file")
        _refuse_owned(path)
        check_writable(path.resolve().parent, f"--output {path}")
        path.resolve().parent.mkdir(parents=True, exist_ok=True)
        unfinished_path(path).touch()  # whose name is the longer one
        unfinished_path(path).unlink()
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written ({error.strerror})") from None


def _refuse_owned(path: Path) -> None:
    """Looks for a name that belongs to a run or to shards.

    Raises:
        UsageError: it does.
    """
    place = path.resolve()
    for known, names in _OWNED.items():
        owned = any(fnmatch(place.name, name) for name in names)
        if owned and (place.parent / known).is_file():
            raise UsageError(
                f"--output {path}: would be among the files of a run or of shards, beside {known};"
                " choose another name or folder"
            )


def check_writable(folder: Path, option: str) -> None:
    """Tries to write into a folder, or into the one that it is to be made in; leaves nothing.

    Args:
        folder: that is there or not.
        option: that names it, and its value.

    Raises:
        UsageError: it cannot be written.
        StorageError: its disk is full.
    """
    try:
        place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with full_disk_reported(folder, FULL), TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UsageError(f"{option}: cannot be written ({error.strerror})") from None
