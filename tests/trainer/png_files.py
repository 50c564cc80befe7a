"""PNGs of every kind, written by hand."""

import struct
import zlib
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
# Where Adam7's passes begin, and how far their pixels are apart: y, x, dy, dx.
ADAM7 = [
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
]


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def header(image: np.ndarray, interlace: int = 0) -> bytes:
    height, width, channels = image.shape
    fields = width, height, 8 * image.itemsize, COLOR_TYPES[channels], 0, 0, interlace
    return chunk(b"IHDR", struct.pack(">IIBBBBB", *fields))


def unfiltered(image: np.ndarray) -> bytes:
    samples = image.astype(image.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in samples)


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def plain_png(image: np.ndarray, rows: bytes | None = None) -> bytes:
    """As the pipeline writes them; `rows` replace what is deflated."""
    data = zlib.compress(unfiltered(image) if rows is None else rows)
    return png(header(image), chunk(b"IDAT", data))


def png_of_parts(image: np.ndarray, ends: Iterable[int]) -> bytes:
    """Several IDAT chunks."""
    data = zlib.compress(unfiltered(image))
    cuts = [0, *ends, len(data)]
    parts = [data[a:b] for a, b in pairwise(cuts)]
    return png(header(image), *(chunk(b"IDAT", part) for part in parts))


def png_with_chunks(image: np.ndarray) -> bytes:
    """Ancillary chunks before and after the pixels."""
    data = zlib.compress(unfiltered(image))
    text = chunk(b"tEXt", b"Comment\0none")
    return png(header(image), text, chunk(b"IDAT", data), text)


def interlaced_png(image: np.ndarray) -> bytes:
    passes = [image[y::dy, x::dx] for y, x, dy, dx in ADAM7]
    rows = b"".join(unfiltered(each) for each in passes if each.size)
    return png(header(image, 1), chunk(b"IDAT", zlib.compress(rows)))


def palette_png(indices: np.ndarray, palette: np.ndarray) -> bytes:
    """Of uint8 [height, width] and [n, 3]."""
    height, width = indices.shape
    return png(
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        chunk(b"PLTE", palette.tobytes()),
        chunk(b"IDAT", zlib.compress(unfiltered(indices[..., None]))),
    )
