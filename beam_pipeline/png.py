"""PNG (W3C Recommendation, ISO/IEC 15948) without row filters, deflated by ISA-L.

CT slices in narrow windows are mostly flat: unfiltered rows deflate to fewer bytes than filtered
ones, in a fraction of the time.
"""

import struct
import zlib

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Of ISA-L's four levels: as small as level 3 on windowed CT slices, as fast as level 0.
_DEFLATE_LEVEL = 2
# PNG colour types by the number of channels: grey, grey + alpha, RGB, RGB + alpha.
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def encode_png(image: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """A PNG file's bytes.

    Args:
        image: uint8 or uint16 [height, width, channels], 1 to 4 channels.

    Raises:
        ValueError: another dtype or shape.
    """
    if image.ndim != 3 or image.shape[2] not in _COLOUR_TYPES or 0 in image.shape:
        raise ValueError(f"cannot write shape {image.shape} as PNG: want [height, width, 1 to 4]")
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"cannot write dtype {image.dtype} as PNG: want uint8 or uint16")
    height, width, channels = image.shape
    depth = 8 * image.dtype.itemsize
    header = struct.pack(">IIBBBBB", width, height, depth, _COLOUR_TYPES[channels], 0, 0, 0)
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", isal_zlib.compress(_unfiltered_rows(image), _DEFLATE_LEVEL)),
            _chunk(b"IEND", b""),
        )
    )


def _unfiltered_rows(image: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Each row's big-endian samples after its filter byte, 0 for none."""
    samples = image.astype(">u2") if image.dtype == np.uint16 else image
    height = image.shape[0]
    rows = np.zeros((height, 1 + image.nbytes // height), np.uint8)
    rows[:, 1:] = np.ascontiguousarray(samples).view(np.uint8).reshape(height, -1)
    return rows


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))
