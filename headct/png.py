"""PNG decoder (W3C Recommendation, ISO/IEC 15948), fast for the PNGs of shards.

PNGs of shards have one IDAT chunk with unfiltered rows: the decoder inflates the chunk and drops
a byte per row, three times as fast as libpng. libpng decodes all other PNGs.
"""

import struct
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from imagecodecs import DeflateError, PngError, deflate_decode, png_decode
from isal import isal_zlib

if TYPE_CHECKING:  # a worker of the pipeline needs no models of documents
    from headct.manifest import ImageSpec

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Width, height, bits per sample, color type, compression, filter method, interlace.
HEADER = struct.Struct(">IIBBBBB")
END = b"\0\0\0\0IEND\xae\x42\x60\x82"
# Gray, gray + alpha, RGB, RGB + alpha; palettes are RGB.
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_CHANNELS = {0: 1, 4: 2, 2: 3, 6: 4, 3: 3}

Pixels = npt.NDArray[Any]


def decode_pngs(pngs: Iterable[bytes], image: "ImageSpec", pixels: Pixels) -> None:
    """Decode PNGs, mostly without the GIL; the result equals `tf.io.decode_png`.

    For plain PNGs, check zlib's checksum (Adler-32), but not the chunks' CRCs: a TFRecord has its
    own. Inflate at most the bytes of the image.

    Args:
        pngs: n PNGs.
        image: required format.
        pixels: output, [n, H, W, C] of the image's dtype.

    Raises:
        ValueError: a PNG is damaged, or has another format.
    """
    row = image.width * image.channels * pixels.itemsize
    rows, before = np.empty((image.height, 1 + row), np.uint8), _plain_beginning(image)
    for png, into in zip(pngs, pixels, strict=True):
        length = len(png) - len(before) - 12 - len(END)  # of the data of a single IDAT chunk
        chunk = before + struct.pack(">I", max(length, 0)) + b"IDAT"
        if length >= 0 and png.startswith(chunk) and png.endswith(END):
            _inflate(memoryview(png)[len(chunk) : len(chunk) + length], rows)
            if not rows[:, 0].any():  # no row is filtered
                into.view(np.uint8).reshape(len(rows), -1)[:] = rows[:, 1:]
                if into.dtype == np.uint16 and np.little_endian:
                    into.byteswap(inplace=True)
                continue
        into[...] = _decode_any(png, image)


def check_png(png: bytes) -> None:
    """Check that a PNG is whole, by the CRCs of its chunks, without decoding it.

    Raises:
        ValueError: it is damaged or cut, or no PNG.
    """
    view, at = memoryview(png), len(SIGNATURE)
    while png.startswith(SIGNATURE) and at + 12 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        end = at + 8 + length  # of the chunk's data
        if view[end : end + 4] != struct.pack(">I", isal_zlib.crc32(view[at + 4 : end])):
            break
        at = end + 4
        if kind == b"IEND" and at == len(png):
            return
    raise ValueError("its PNG is damaged")


def _plain_beginning(image: "ImageSpec") -> bytes:
    """Return the bytes before the IDAT chunk in a plain PNG of `image`."""
    bits = np.dtype(image.dtype).itemsize * 8
    fields = image.width, image.height, bits, COLOR_TYPES[image.channels]
    header = b"IHDR" + HEADER.pack(*fields, 0, 0, 0)
    length, crc = struct.pack(">I", HEADER.size), struct.pack(">I", zlib.crc32(header))
    return SIGNATURE + length + header + crc


def _inflate(data: memoryview, rows: npt.NDArray[np.uint8]) -> None:
    """Fill `rows`, [H, 1 + bytes per row], from deflated data.

    Raises:
        ValueError: the data are damaged, or have another size.
    """
    try:
        # any buffer works, despite the type hints
        size = len(deflate_decode(data, out=rows.data.cast("B")))  # type: ignore[arg-type]
    except DeflateError:
        size = -1
    if size != rows.size:
        raise ValueError("its PNG is damaged")


def _decode_any(png: bytes, image: "ImageSpec") -> Pixels:
    """Decode a PNG of any writer, [H, W, C]; expand gray and palettes to RGB.

    Raises:
        ValueError: the PNG is damaged, or has another format.
    """
    _check_header(png, image)
    try:
        decoded = np.asarray(png_decode(png))
    except (PngError, UnicodeDecodeError):  # some messages of libpng are not UTF-8
        raise ValueError("its PNG is damaged") from None
    if not png.endswith(END):  # libpng does not read the end
        raise ValueError("its PNG is damaged")
    if decoded.ndim == 2:
        decoded = np.repeat(decoded[..., None], image.channels, axis=2)
    if decoded.shape != (image.height, image.width, image.channels):
        raise ValueError(f"its PNG holds {decoded.shape}")
    return decoded


def _check_header(png: bytes, image: "ImageSpec") -> None:
    """Compare a PNG's header with the required format, before any allocation.

    Raises:
        ValueError: not a PNG, or another size, depth or color.
    """
    if not png.startswith(SIGNATURE) or png[12:16] != b"IHDR" or len(png) < 16 + HEADER.size:
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
