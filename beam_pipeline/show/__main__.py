"""`headct show SHARDS ID`: print an image's row of the index, and write or open the image."""

import os

# pyarrow reads this when imported: Arrow's own allocator would keep 30 MB more.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import json
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beam_pipeline.images.convert import HU_OFFSET
from beam_pipeline.images.windows import PRESETS, VoiFunction, Window, apply_windows
from headct.commands import run_program
from headct.declarations import Declared, DefaultText, LocalPath, Location, parse_flags
from headct.errors import UsageError
from headct.layout import INDEX, MANIFEST
from headct.printable import quoted, show_line
from headct.stores import Folder
from headct.terminal import Terminal

_HU_WINDOWS = ("brain", "subdural", "bone")  # windows to show images in Hounsfield units


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
    words = [*takewhile(lambda word: not word.startswith("-"), argv[:2])]
    named = [f"{flag}={word}" for flag, word in zip(("--shards", "--id"), words, strict=False)]
    given = parse_flags(ShowOptions, [*named, *argv[len(words) :]], program)
    folder = Folder(given.shards)
    row, image = read_image(folder, given.id)
    console = Terminal(highlight=False, markup=False, soft_wrap=True)
    for name, value in row.items():
        console.print(f"{name:<24} {value}")
    path = given.output or Path(tempfile.mkdtemp(prefix="headct-")) / "image.png"
    encoded = cv2.imencode(".png", image)[1].tobytes()
    try:
        path.write_bytes(encoded)
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written ({error.strerror})") from None
    print(f"written: {show_line(path)}")
    has_desktop = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}
    if given.output is None and has_desktop:
        webbrowser.open(path.as_uri())


def read_image(folder: Folder, image_id: str) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Return an image's row of the index, and its channels side by side, uint8 [height, width].

    Raises:
        UsageError: the image or the shard directory does not exist.
        StoreError: the folder's store fails.
    """
    try:
        stored = json.loads(folder.read(MANIFEST))["image"]
        with folder.open(INDEX) as file:
            rows = pq.read_table(file, filters=[("image_id", "==", image_id)]).to_pylist()
    except (OSError, ValueError, KeyError):
        raise UsageError(f"{folder.url} is no finished shard directory") from None
    if not rows:
        raise UsageError(f"{folder.url} has no image {quoted(image_id)}; {INDEX} lists them")
    (row,) = rows
    with folder.open(row["shard"]) as file:
        file.seek(row["image_offset"])
        png = file.read(row["image_bytes"])
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise UsageError(f"{folder.url}: the image in {row['shard']} is damaged")
    if stored["dtype"] == "uint16":
        windows = tuple(Window(name, *PRESETS[name]) for name in _HU_WINDOWS)
        functions = (VoiFunction.LINEAR_EXACT,) * len(windows)
        channels = apply_windows(pixels.astype(np.float64) + HU_OFFSET, windows, functions)
    else:
        # OpenCV's order: gray; blue, green, red; with alpha last, and 2 channels become 4.
        order = {1: [0], 2: [0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[stored["channels"]]
        channels = pixels.reshape(*pixels.shape[:2], -1)[..., order]
    return row, np.hstack([channels[..., number] for number in range(channels.shape[-1])])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
