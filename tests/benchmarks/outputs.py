"""Whether what was measured did its work: every file converted, and to the right pixels."""

import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from beam_pipeline.shards.formats import decode_example
from headct.tfrecord import read_records


class WrongOutput(AssertionError):
    """A figure for this output would be worthless."""


def records(folder: Path) -> Iterator[bytes]:
    """All TFRecords in a folder, their checksums checked."""
    for path in sorted(folder.glob("*.tfrecord*")):
        with path.open("rb") as file:
            yield from read_records(file)


def deflated(folder: Path) -> Iterator[bytes]:
    """The images of `bare_floor`."""
    for path in sorted(folder.glob("*.deflated")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<I", data, at)
            yield data[at + 4 : at + 4 + length]
            at += 4 + length


def shard_bytes(folder: Path) -> int:
    """Of the files that hold images."""
    paths = [*folder.glob("*.tfrecord*"), *folder.glob("*.deflated")]
    return sum(path.stat().st_size for path in paths)


def check_count(name: str, folder: Path, expected: int) -> None:
    """Raise unless there is an image a file."""
    found = sum(1 for _ in records(folder)) + sum(1 for _ in deflated(folder))
    if found != expected:
        raise WrongOutput(f"{name} converted {found} of {expected} files")


def largest_difference(folder: Path, other: Path, ids: set[str]) -> int:
    """Of any gray level of some images in two folders.

    Raises:
        WrongOutput: an image is missing, or of another shape.
    """
    images, others = _images(folder, ids), _images(other, ids)
    if images.keys() != ids or others.keys() != ids:
        raise WrongOutput("images to compare are missing")
    differences = (
        np.abs(images[key].astype(np.int16) - others[key].astype(np.int16)).max() for key in ids
    )
    return int(max(differences))


def _images(folder: Path, ids: set[str]) -> dict[str, np.ndarray]:
    images = {}
    for record in records(folder):
        features = decode_example(record)
        (name,), (png,) = features["image_id"], features["image"]
        assert isinstance(name, bytes)
        assert isinstance(png, bytes)
        if name.decode() in ids:
            images[name.decode()] = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    return images
