"""Whether a command can write what it is asked for: checked before it works for hours."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from trainer.errors import BadInput
from trainer.files import remove_unfinished
from trainer.options import parse_formats


def check_formats(text: str) -> None:
    """Looks for what writes formats of export, and for what checks them.

    Raises:
        BadInput: it is not installed.
    """
    needed = ("onnx", "tf2onnx", "onnxruntime") if "onnx" in parse_formats(text) else ()
    for name in needed:
        if find_spec(name) is None:
            raise BadInput(
                f"--formats onnx: {name} is not installed; `make export` brings it, and so does the"
                " extra `onnx`"
            )


def check_new_folder(output: Path) -> None:
    """Looks into a folder that is to be made, or empty.

    Raises:
        BadInput: it has something in it.
    """
    if output.is_dir():
        remove_unfinished(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"--output {output}: exists and is not empty")
