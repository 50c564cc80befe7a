"""What compressed images say of themselves, read before a decoder allocates anything for it."""

from dataclasses import dataclass

from beam_pipeline.errors import Reason, Rejected

# More scans than any encoder writes: each costs a pass over the whole image.
_MAX_SCANS = 1000

_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_J2K_BEGINNING = b"\xff\x4f\xff\x51"  # SOC, SIZ
_END = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
_PADDING = 16  # bytes that may follow the end; the standard allows one

_STANDALONE = {0x01, *range(0xD0, 0xD9)}
# Start of frame, of any JPEG process (ITU-T T.81 table B.1), and of JPEG-LS (T.87).
_FRAME_STARTS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class CodeStream:
    """A compressed image's own description.

    Attributes:
        rows: its height.
        columns: its width.
        components: samples a pixel.
        precision: bits a sample.
        signed: whether samples are; only JPEG 2000 can tell.
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False


def describe_jpeg(frame: bytes) -> CodeStream:
    """A JPEG or JPEG-LS image's description (ITU-T T.81 B.2.2, T.87 C.2.2).

    Raises:
        Rejected: it is broken before the end of its frame header, or has no end.
    """
    if frame[:2] != b"\xff\xd8":
        raise Rejected(Reason.CORRUPT_PIXELS, "no JPEG image")
    _check_end(frame)
    if frame.count(b"\xff\xda") > _MAX_SCANS:
        raise Rejected(Reason.CORRUPT_PIXELS, f"more than {_MAX_SCANS} scans")
    segment = _frame_header(frame)
    return CodeStream(
        rows=int.from_bytes(segment[1:3], "big"),
        columns=int.from_bytes(segment[3:5], "big"),
        components=segment[5],
        precision=segment[0],
    )


def describe_j2k(frame: bytes) -> CodeStream:
    """A JPEG 2000 code stream's description (ITU-T T.800 A.5.1).

    Raises:
        Rejected: it is broken in its main header, or has no end.
    """
    if frame[:4] != _J2K_BEGINNING or len(frame) < 45:
        raise Rejected(Reason.CORRUPT_PIXELS, "no JPEG 2000 code stream")
    _check_end(frame)
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
    )


def bare_j2k(frame: bytes) -> bytes:
    """The code stream without the JP2 boxes that some writers leave around it.

    DICOM allows none (PS3.5 A.4.4); its own attributes say all that they could.
    """
    return frame[frame.find(_J2K_BEGINNING) :] if frame.startswith(_JP2_SIGNATURE) else frame


def _frame_header(frame: bytes) -> bytes:
    """The six bytes that describe a JPEG image."""
    position = 2
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xFF:  # fill
            position += 1
        elif marker in _STANDALONE:
            position += 2
        elif marker in _FRAME_STARTS and position + 10 <= len(frame):
            return frame[position + 4 : position + 10]
        elif marker in (0xD9, 0xDA):
            break
        else:
            position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    raise Rejected(Reason.CORRUPT_PIXELS, "no frame header")


def _check_end(frame: bytes) -> None:
    """Raise if the image was cut: decoders of JPEG fill what is missing with gray."""
    if _END not in frame[-_PADDING:]:
        raise Rejected(Reason.TRUNCATED_PIXELS, "the code stream has no end")
