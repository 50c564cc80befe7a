"""PNG (W3C Recommendation, ISO/IEC 15948) to pixels, fast for what the shards hold.

They hold PNGs of one IDAT chunk whose rows are not filtered: decoding is an inflate, and dropping
a byte a row, in a third of the time that libpng takes. Any other PNG is left to TensorFlow's
decoder, which is libpng.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from imagecodecs import DeflateError, deflate_decode

from headct.manifest import ImageSpec

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Width, height, bits a sample, color type, compression, filter method, interlace.
HEADER = struct.Struct(">IIBBBBB")
END = b"\0\0\0\0IEND\xae\x42\x60\x82"
# Gray, gray + alpha, RGB, RGB + alpha; the palette's are RGB.
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_CHANNELS = {0: 1, 4: 2, 2: 3, 6: 4, 3: 3}

Pixels = npt.NDArray[Any]


def decode_pngs(pngs: Iterable[bytes], image: ImageSpec, pixels: Pixels) -> None:
    """Decodes PNGs, the pixels the same as those of `tf.io.decode_png`.

    In the plain ones zlib's checksum (Adler-32) is checked, but not the chunks' CRCs: a TFRecord
    has its own. No more is inflated than the image has bytes. Without the GIL, mostly.

    Args:
        pngs: n of them.
        image: what they are to hold.
        pixels: to write into, [n, H, W, C] of the image's dtype.

    Raises:
        ValueError: one is damaged, or holds another image.
    """
    row = image.width * image.channels * pixels.itemsize
    rows, before = np.empty((image.height, 1 + row), np.uint8), _plain_beginning(image)
    for png, into in zip(pngs, pixels, strict=True):
        if _is_plain(png, before):
            inflate(png, len(before), rows)
            if not rows[:, 0].any():
                _drop_filter_bytes(rows, into)
                continue
        into[...] = decode_any(png, image)


def _plain_beginning(image: ImageSpec) -> bytes:
    """All that precedes the IDAT chunk in a plain PNG of `image`."""
    bits = np.dtype(image.dtype).itemsize * 8
    fields = image.width, image.height, bits, COLOR_TYPES[image.channels]
    header = b"IHDR" + HEADER.pack(*fields, 0, 0, 0)
    length, crc = struct.pack(">I", HEADER.size), struct.pack(">I", zlib.crc32(header))
    return _SIGNATURE + length + header + crc


def _is_plain(png: bytes, before: bytes) -> bool:
    """Whether `before` and a single IDAT chunk are all there is."""
    length = len(png) - len(before) - len(END) - 12
    return (
        length >= 0
        and png.startswith(before + struct.pack(">I", length) + b"IDAT")
        and png.endswith(END)
    )


def inflate(png: bytes, before: int, rows: npt.NDArray[np.uint8]) -> None:
    """Fills `rows` from the IDAT chunk at byte `before` of a plain PNG.

    Raises:
        ValueError: the data are damaged, or of another size.
    """
    data = memoryview(png)[before + 8 : -len(END) - 4]
    try:
        # Any buffer will do, whatever is declared.
        size = len(deflate_decode(data, out=rows.data.cast("B")))  # type: ignore[arg-type]
    except DeflateError:
        size = -1
    if size != rows.size:
        raise ValueError("its PNG is damaged")


def _drop_filter_bytes(rows: npt.NDArray[np.uint8], into: Pixels) -> None:
    """Copies unfiltered rows, [H, 1 + bytes of a row], into an image, [H, W, C]."""
    into.view(np.uint8).reshape(len(rows), -1)[:] = rows[:, 1:]
    if into.dtype == np.uint16 and np.little_endian:
        into.byteswap(inplace=True)


def decode_any(png: bytes, image: ImageSpec) -> Pixels:
    """Decodes a PNG of any writer, [H, W, C]; gray and palettes may stand for RGB.

    Raises:
        ValueError: it is damaged, or holds another image.
    """
    _check_header(png, image)
    # TensorFlow cannot be asked for two channels, but gives those of gray with alpha as they are.
    channels = 0 if image.channels == 2 else image.channels
    try:
        with tf.device("/CPU:0"):
            found = tf.io.decode_png(png, channels=channels, dtype=tf.as_dtype(image.dtype))
    except tf.errors.InvalidArgumentError:
        raise ValueError("its PNG is damaged") from None
    if found.shape != (image.height, image.width, image.channels):
        raise ValueError(f"its PNG holds {tuple(found.shape)}")
    return np.asarray(found)


def _check_header(png: bytes, image: ImageSpec) -> None:
    """Compares what a PNG says of its image with what it is to be, before anything is allocated.

    Raises:
        ValueError: it is no PNG, or of another size, depth or color.
    """
    if not png.startswith(_SIGNATURE) or png[12:16] != b"IHDR" or len(png) < 16 + HEADER.size:
        raise ValueError("its image is no PNG")
    width, height, bits, color, *_ = HEADER.unpack_from(png, 16)
    channels, dtype = _CHANNELS.get(color, 0), "uint16" if bits == 16 else "uint8"
    if channels == 1 and image.channels == 3:
        channels = 3
    if (height, width, channels, dtype) != (image.height, image.width, image.channels, image.dtype):
        raise ValueError(
            f"its PNG has {height} x {width} x {channels} {dtype}, where the manifest has"
            f" {image.height} x {image.width} x {image.channels} {image.dtype}"
        )
