"""Models as Keras saves them: files that may come from anywhere."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import keras

from headct.errors import UsageError

# Keras compresses nothing of what it saves, so a member that grows by more than this is no model.
_GROWTH = 1 << 26
_LONGEST = 200  # characters of a reason


def load_model(path: str | Path) -> Any:
    """Loads a model; nothing that the file names is run but Keras's own layers.

    Raises:
        UsageError: it cannot be read; the message says why, in a few words.
    """
    try:
        _check_sizes(path)
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever Keras, h5py and zipfile make of the file
        raise UsageError(first_line(error)) from None


def _check_sizes(path: str | Path) -> None:
    """Raise if a member of an archive is far larger than the file says that it is stored."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        growth = sum(info.file_size - info.compress_size for info in archive.infolist())
    if growth > _GROWTH:
        raise ValueError(f"it would grow by {growth >> 20} MiB when it is unpacked")


def first_line(error: Exception) -> str:
    """The first line of a message, of which Keras's have many."""
    lines = str(error).strip().splitlines()
    return lines[0][:_LONGEST] if lines else type(error).__name__
