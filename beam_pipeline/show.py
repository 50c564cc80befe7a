"""`headct show SHARDS ID`: print an image's row of the index, and write or open the image."""

import os
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np

import headct
from headct.commands import run_program
from headct.declarations import Declared, DefaultText, LocalPath, Location, parse_flags, with_flags
from headct.errors import UsageError
from headct.printable import show_line
from headct.windows import PRESETS, Window, apply_windows


class ShowOptions(Declared):
    """Print an image's row of the index, and write or open the image: show SHARDS ID.

    Its channels are side by side; Hounsfield units are shown in the windows brain, subdural, bone.
    """

    shards: Location
    """shard directory; local or a URL"""
    id: str
    """image_id of the image"""
    output: Annotated[
        LocalPath | None, DefaultText("opened in a viewer, or a temporary file without a desktop")
    ] = None
    """PNG file to write"""


def main(argv: Sequence[str], program: str = "python -m beam_pipeline.show") -> int:
    """Show an image; return the exit code: 0 done, 2 no such image, 5 storage failed."""
    return run_program("show", lambda: _show(argv, program), resumes=False)


def options_of(_command: str) -> list[type[Declared]]:
    """Return the classes of the command's options."""
    return [ShowOptions]


def _show(argv: Sequence[str], program: str) -> None:
    given = parse_flags(ShowOptions, with_flags(argv, "--shards", "--id"), program)
    shards = headct.open(given.shards)
    pixels = shards[given.id]["image"]
    if shards.manifest.image.is_hounsfield:
        windows = [Window(name, *PRESETS[name]) for name in ("brain", "subdural", "bone")]
        pixels = apply_windows(pixels[..., 0].astype(np.float64) + shards.hu_offset, windows)
    for name, value in shards.rows.set_index("image_id", drop=False).loc[given.id].items():
        print(f"{name:<24} {show_line(value)}")
    path = given.output or Path(tempfile.mkdtemp(prefix="headct-")) / "image.png"
    side_by_side = np.hstack([pixels[..., number] for number in range(pixels.shape[-1])])
    try:
        path.write_bytes(cv2.imencode(".png", side_by_side)[1].tobytes())
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written ({error.strerror})") from None
    print(f"written: {show_line(path)}")
    has_desktop = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}
    if given.output is None and has_desktop:
        webbrowser.open(path.as_uri())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
