"""Checksums of pixels as a file holds them, to find files with the same ones."""

import hashlib
from collections.abc import Callable

from beam_pipeline.dicom.slices import Header

# To find files that may have the same pixels: noise makes a few rows in the middle unique.
_FINGERPRINT_BYTES = 1 << 14


def pixel_bytes(header: Header, size: int) -> int:
    """How many bytes of a file are its pixels; of compressed ones, all to the file's end.

    Args:
        header: of the file, which is not deflated.
        size: of the file, bytes.
    """
    assert header.pixel_offset is not None
    rest = size - header.pixel_offset
    matrix = header.rows * header.columns * header.encoding.bits_allocated // 8
    return min(rest, matrix) if header.is_native else rest


def fingerprint_range(offset: int, size: int) -> tuple[int, int]:
    """The part of a file that `fingerprint` is made of: its first byte, and how many.

    Args:
        offset: of the pixels' first byte.
        size: of the pixels, bytes.
    """
    start = offset + max((size - _FINGERPRINT_BYTES) // 2, 0)
    return start, min(_FINGERPRINT_BYTES, size)


def fingerprint(middle: bytes, read_all: Callable[[], bytes]) -> int:
    """64 bits, not 0, that files with the same pixels share.

    Args:
        middle: the pixels' bytes of `fingerprint_range`.
        read_all: reads all of the pixels' bytes, where those in the middle say nothing.
    """
    data = read_all() if middle == middle[:2] * (len(middle) // 2) else middle
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def digest_pixels(data: bytes) -> bytes:
    """128 bits that tell pixels for certain."""
    return hashlib.blake2b(data, digest_size=16).digest()
