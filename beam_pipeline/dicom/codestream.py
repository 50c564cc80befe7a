"""Descriptions in compressed images, read before a decoder allocates memory."""

import re
from dataclasses import dataclass, field

from headct.reasons import Reason, Rejected

# More scans than any encoder writes; a scan costs a pass over the whole image.
_MAX_SCANS = 1000

_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_J2K_BEGINNING = b"\xff\x4f\xff\x51"  # SOC, SIZ
_END = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
_TILE_PART = b"\xff\x90"  # SOT
_TILE_PART_HEADER = 14  # bytes of SOT and SOD, the shortest tile-part (ITU-T T.800 A.4.2)

_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_JPEG_LS_FRAME_START = 0xF7
# Start of frame, of any JPEG process (ITU-T T.81 table B.1), and of JPEG-LS (T.87).
_FRAME_STARTS = {*range(0xC0, 0xD0), _JPEG_LS_FRAME_START} - {0xC4, 0xC8, 0xCC}
_END_OF_IMAGE, _START_OF_SCAN, _START_OF_IMAGE = 0xD9, 0xDA, 0xD8
# The next marker after entropy-coded data. In the data, 0 follows 0xFF (T.81 B.1.1.5) or, in
# JPEG-LS, a byte below 0x80 (T.87 A.1); the data includes restart markers.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_LS_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")


@dataclass(frozen=True)
class CodeStream:
    """The description in a compressed image.

    Attributes:
        rows: height.
        columns: width.
        components: samples per pixel.
        precision: bits per sample.
        signed: whether samples are signed; only JPEG 2000 has this value.
        size: bytes from the image's beginning to its end, without trailing bytes.
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False
    size: int = field(default=0, compare=False)


def describe_jpeg(frame: bytes) -> CodeStream:
    """Return the description of a JPEG or JPEG-LS image (ITU-T T.81 B.2.2, T.87 C.2.2).

    Raises:
        Rejected: the frame header is broken, or the image has no end.
    """
    if frame[:2] != b"\xff\xd8":
        raise Rejected(Reason.CORRUPT_PIXELS, "no JPEG image")
    header = _frame_header(frame)
    segment = frame[header + 4 : header + 10]
    return CodeStream(
        rows=int.from_bytes(segment[1:3], "big"),
        columns=int.from_bytes(segment[3:5], "big"),
        components=segment[5],
        precision=segment[0],
        size=_jpeg_end(frame, header),
    )


def describe_j2k(frame: bytes) -> CodeStream:
    """Return the description of a JPEG 2000 code stream (ITU-T T.800 A.5.1).

    Raises:
        Rejected: the main header is broken, or the code stream has no end.
    """
    if frame[:4] != _J2K_BEGINNING or len(frame) < 45:
        raise Rejected(Reason.CORRUPT_PIXELS, "no JPEG 2000 code stream")
    size = _j2k_end(frame)
    right, bottom, left, top = (int.from_bytes(frame[i : i + 4], "big") for i in range(8, 24, 4))
    depth, horizontal, vertical = frame[42:45]
    if (horizontal, vertical) != (1, 1):
        raise Rejected(Reason.CORRUPT_PIXELS, "a subsampled component")
    return CodeStream(
        rows=bottom - top,
        columns=right - left,
        components=int.from_bytes(frame[40:42], "big"),
        precision=(depth & 0x7F) + 1,
        signed=depth >= 0x80,
        size=size,
    )


def bare_j2k(frame: bytes) -> bytes:
    """Return a code stream without the JP2 boxes that some writers add.

    DICOM allows no boxes (PS3.5 A.4.4); DICOM attributes hold the same information.
    """
    return frame[frame.find(_J2K_BEGINNING) :] if frame.startswith(_JP2_SIGNATURE) else frame


def _frame_header(frame: bytes) -> int:
    """Return the position of the marker of a JPEG image's frame header."""
    position = 2
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xFF:  # fill
            position += 1
        elif marker in _STANDALONE:
            position += 2
        elif marker in _FRAME_STARTS and position + 10 <= len(frame):
            return position
        elif marker in (_END_OF_IMAGE, _START_OF_SCAN):
            break
        else:
            position += 2 + _length(frame, position)
    raise Rejected(Reason.CORRUPT_PIXELS, "no frame header")


def _jpeg_end(frame: bytes, position: int) -> int:
    """Return the end of a JPEG image; decoders would fill missing data with gray.

    Args:
        frame: the image, and possibly trailing bytes.
        position: position of the frame header.

    Raises:
        Rejected: the image has no end or too many scans, or contains another image's beginning.
    """
    is_jpeg_ls = frame[position + 1] == _JPEG_LS_FRAME_START
    markers = _JPEG_LS_MARKER if is_jpeg_ls else _JPEG_MARKER
    scans = 0
    while (found := markers.search(frame, position)) is not None:
        position = found.start()
        marker = frame[position + 1]
        if marker == _END_OF_IMAGE:
            return position + len(_END)
        if marker == _START_OF_IMAGE:
            raise Rejected(Reason.CORRUPT_PIXELS, "another image begins in the code stream")
        scans += marker == _START_OF_SCAN
        if scans > _MAX_SCANS:
            raise Rejected(Reason.CORRUPT_PIXELS, f"more than {_MAX_SCANS} scans")
        position += 2 + (0 if marker in _STANDALONE else _length(frame, position))
    raise Rejected(Reason.TRUNCATED_PIXELS, "the code stream has no end")


def _j2k_end(frame: bytes) -> int:
    """Return the end of a JPEG 2000 code stream (ITU-T T.800 A.4).

    Tile-parts state their length. If a length is missing or wrong, the last possible end marker
    counts: the decoder detects missing data before this marker.
    """
    position = known = len(_J2K_BEGINNING) - 2
    while frame[position : position + 1] == b"\xff":
        marker = frame[position : position + 2]
        if marker == _END:
            return position + len(_END)
        if marker != _TILE_PART:
            position += 2 + _length(frame, position)
            continue
        known = position
        size = int.from_bytes(frame[position + 6 : position + 10], "big")
        if size < _TILE_PART_HEADER:  # 0: up to the end
            break
        position += size
    end = frame.rfind(_END, known)
    if end < 0:
        raise Rejected(Reason.TRUNCATED_PIXELS, "the code stream has no end")
    return end + len(_END)


def _length(frame: bytes, position: int) -> int:
    """Return the length of the marker segment at a position, without the marker."""
    return int.from_bytes(frame[position + 2 : position + 4], "big")
