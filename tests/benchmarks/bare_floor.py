"""(d) The least work that gives such images: read, look up, deflate, write, in a process pool.

Nothing is parsed or checked and nothing but the deflated rows is written: the pixels are taken to
be the last bytes of a file, 16 bits each, with an intercept of -1024, as in most of RSNA's files.
The buffers are made once a process.

    python -m tests.benchmarks.bare_floor --input FOLDER --output FOLDER --workers 2
"""

import argparse
import multiprocessing
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
from isal import isal_zlib

SIDE = 512  # rows and columns
PIXEL_BYTES = SIDE * SIDE * 2
WINDOWS = [(40, 80), (80, 200), (600, 2800)]  # brain, subdural, bone: center and width, HU
LEVEL = 2  # as beam_pipeline's
PER_FILE = 256


def packed_table() -> np.ndarray:
    """The three windows' gray levels of every bit pattern, packed into one uint32."""
    hounsfield = np.arange(1 << 16, dtype=np.uint16).view(np.int16) - 1024.0
    packed = np.zeros((1 << 16, 4), np.uint8)
    for channel, (center, width) in enumerate(WINDOWS):
        level = (hounsfield - (center - width / 2)) * 255 / width
        packed[:, channel] = np.floor(np.clip(level, 0, 255) + 0.5)
    return packed.view(np.uint32).ravel()


TABLE = packed_table()
FOUND = np.empty(SIDE * SIDE, np.uint32)
ROWS = np.zeros((SIDE, 1 + 3 * SIDE), np.uint8)  # each after its filter byte, 0 for none
IMAGE = ROWS[:, 1:].reshape(SIDE, SIDE, 3)  # a view


def convert_file(path: Path) -> bytes:
    data = path.read_bytes()
    pixels = np.frombuffer(data, "<u2", SIDE * SIDE, len(data) - PIXEL_BYTES)
    np.take(TABLE, pixels, out=FOUND, mode="clip")
    channels = FOUND.view(np.uint8).reshape(SIDE, SIDE, 4)
    cv2.cvtColor(channels, cv2.COLOR_BGRA2BGR, dst=IMAGE)  # drops the fourth byte
    return isal_zlib.compress(ROWS, LEVEL)


def write_file(task: tuple[Path, list[Path]]) -> None:
    name, paths = task
    with name.open("wb") as file:
        for path in paths:
            deflated = convert_file(path)
            file.write(struct.pack("<I", len(deflated)))
            file.write(deflated)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    paths = sorted(options.input.iterdir())
    parts = [paths[at : at + PER_FILE] for at in range(0, len(paths), PER_FILE)]
    names = [options.output / f"{number:05d}.deflated" for number in range(len(parts))]
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        for _ in pool.imap_unordered(write_file, zip(names, parts, strict=True)):
            pass
        pool.close()
        pool.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
