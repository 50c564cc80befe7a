"""Reader of slices, fingerprints of pixels, and storage of headers between two readings."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from beam_pipeline.dicom.dataset import parse
from beam_pipeline.dicom.header import TAGS, Header, check_header, checksum
from beam_pipeline.dicom.hounsfield import PixelEncoding
from beam_pipeline.dicom.pixels import NATIVE, Patterns, encapsulated_pixels, native_pixels
from headct.reasons import Reason, Rejected

# Noise makes a few rows in the middle of an image unique.
_FINGERPRINT_BYTES = 1 << 14

_CARRIED = (
    "position_z",
    "pixel_spacing",
    "rows",
    "columns",
    "transfer_syntax",
    "window",
    "voi_function",
    "pixel_offset",
    "beginning",
    "identity",
)
_ENCODING = tuple(field.name for field in fields(PixelEncoding))


@dataclass(frozen=True)
class Slice:
    """A CT slice.

    Attributes:
        header: the slice's header.
        pixels: stored bit patterns, uint8 or uint16 [rows, columns]; read-only.
    """

    header: Header
    pixels: Patterns


def read_slice(data: bytes, known: Header | None = None) -> Slice:
    """Read a slice.

    Args:
        data: a DICOM file's bytes.
        known: the header from an earlier reading; reused if the file's header is unchanged.

    Raises:
        Rejected: the file is not a usable CT slice.
    """
    if known is not None and _is_unchanged(data, known):
        shape = known.rows, known.columns
        words = np.frombuffer(data, "<u2", shape[0] * shape[1], known.pixel_offset or 0)
        return _check_slice(known, words.astype(np.uint16, copy=False).reshape(shape))
    parsed = parse(data, len(data), TAGS)
    header, element = check_header(parsed)
    shape, encoding = (header.rows, header.columns), header.encoding
    if header.transfer_syntax in NATIVE:
        pixels = native_pixels(
            parsed.body, element, shape, encoding.bits_allocated, parsed.big_endian
        )
    else:
        pixels = encapsulated_pixels(parsed.body, element, shape, encoding, header.transfer_syntax)
    return _check_slice(header, pixels)


def _is_unchanged(data: bytes, known: Header) -> bool:
    """Return whether a file has the same header as before, and all pixels."""
    if not known.beginning or known.pixel_offset is None:
        return False
    end = known.pixel_offset + 2 * known.rows * known.columns
    return len(data) >= end and checksum(data[: known.pixel_offset]) == known.beginning


def _check_slice(header: Header, pixels: Patterns) -> Slice:
    few = pixels[len(pixels) // 2]  # one row shows that most images are not constant
    if few.min() == few.max() and pixels.min() == pixels.max():
        raise Rejected(Reason.CONSTANT_IMAGE)
    pixels.flags.writeable = False
    return Slice(header, pixels)


def encode_header(header: Header) -> str:
    """Return a header as text: the fields needed for conversion, without ids.

    Empty if an unchanged file cannot be recognized.
    """
    if not header.beginning and not header.identity:
        return ""
    known = [getattr(header, name) for name in _CARRIED]
    encoding = [getattr(header.encoding, name) for name in _ENCODING]
    return json.dumps([*known, encoding], separators=(",", ":"))


def decode_header(text: str) -> Header | None:
    """Return the header of an `encode_header` text, with empty ids; None for an empty text."""
    if not text:
        return None
    *known, encoding = json.loads(text)
    values: dict[str, Any] = dict(zip(_CARRIED, known, strict=True))
    values["pixel_spacing"] = tuple(values["pixel_spacing"])
    values["window"] = _pair(values["window"])
    described: dict[str, Any] = dict(zip(_ENCODING, encoding, strict=True))
    described["padding"] = _pair(described["padding"])
    values["encoding"] = PixelEncoding(**described)
    return Header(sop_instance_uid="", patient_id="", study_id="", series_id="", **values)


def _pair(values: list[Any] | None) -> tuple[Any, Any] | None:
    return (values[0], values[1]) if values else None


def pixel_bytes(header: Header, size: int) -> int:
    """Return the size of a file's pixels, bytes; compressed pixels extend to the file's end.

    Args:
        header: header of a file that is not deflated.
        size: size of the file, bytes.
    """
    assert header.pixel_offset is not None
    rest = size - header.pixel_offset
    matrix = header.rows * header.columns * header.encoding.bits_allocated // 8
    return min(rest, matrix) if header.is_native else rest


def fingerprint_range(offset: int, size: int) -> tuple[int, int]:
    """Return the first byte and the length of the range for `fingerprint`.

    Args:
        offset: offset of the pixels' first byte.
        size: size of the pixels, bytes.
    """
    start = offset + max((size - _FINGERPRINT_BYTES) // 2, 0)
    return start, min(_FINGERPRINT_BYTES, size)


def fingerprint(middle: bytes, read_all: Callable[[], bytes]) -> int:
    """Return 64 bits, never 0, equal for files with the same pixels.

    Args:
        middle: the bytes of `fingerprint_range`.
        read_all: reads all bytes of the pixels; called if the middle bytes are uniform.
    """
    data = read_all() if middle == middle[:2] * (len(middle) // 2) else middle
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def digest_pixels(data: bytes) -> bytes:
    """Return 128 bits that identify pixels."""
    return hashlib.blake2b(data, digest_size=16).digest()
