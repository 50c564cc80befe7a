"""Reader of slices: decoders from pixel bytes to bit patterns, and fingerprints of pixels.

Every transfer syntax has one decoder of imagecodecs, so that a file has the same pixels on every
system. pydicom would use the first installed plugin, and log messages of failing plugins. The
description in a compressed image is read before a decoder allocates memory.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from beam_pipeline.dicom.dataset import EXPLICIT_BIG_ENDIAN, PixelElement, contained, parse
from beam_pipeline.dicom.header import (
    Header,
    check_header,
    check_length,
    checksum,
    tags_of_header,
)
from beam_pipeline.dicom.hounsfield import PixelEncoding
from headct.reasons import Reason, Rejected

Patterns = NDArray[np.uint8] | NDArray[np.uint16]

# Noise makes a few rows in the middle of an image unique.
_FINGERPRINT_BYTES = 1 << 14

_ITEM = b"\xfe\xff\x00\xe0"
_DELIMITERS = (_ITEM, b"\xfe\xff\xdd\xe0")
_RLE_HEADER = 64  # bytes (DICOM PS3.5 G.5)
_MORE_BITS = b"\x5a" * 64

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
    if known is not None and known.beginning and known.pixel_offset is not None:
        start, size = known.pixel_offset, known.matrix_bytes
        if len(data) >= start + size and checksum(data[:start]) == known.beginning:
            return _check_slice(known, _native_pixels(data, known, start))
    parsed = parse(data, len(data), [*tags_of_header()])
    header, element = check_header(parsed)
    if header.is_native:
        is_swapped = header.transfer_syntax == EXPLICIT_BIG_ENDIAN
        words = is_swapped and (element.vr == "OW" or header.encoding.bits_allocated == 16)
        return _check_slice(header, _native_pixels(parsed.body, header, element.offset, words))
    frame, missing = _single_frame(parsed.body, element)
    try:
        pixels = _DECODERS[header.codec](frame, header)
    except Rejected:
        if missing:
            raise Rejected(Reason.TRUNCATED_PIXELS, missing) from None
        raise
    return _check_slice(header, pixels)


def _native_pixels(body: bytes, header: Header, start: int, swapped: bool = False) -> Patterns:
    """Return uncompressed pixels (DICOM PS3.5 8.1, annexes A.1 to A.3 and A.5), [rows, columns].

    Swapped pixels are in big-endian words, of two pixels if they have 8 bits.
    """
    shape, count = (header.rows, header.columns), header.rows * header.columns
    if header.encoding.bits_allocated == 16:
        words = np.frombuffer(body, ">u2" if swapped else "<u2", count, start)
        return words.astype(np.uint16, copy=False).reshape(shape)
    if swapped:  # the first of two pixels is in the word's low byte
        words = np.frombuffer(body, ">u2", -(-count // 2), start)
        return words.astype("<u2").view(np.uint8)[:count].reshape(shape)
    return np.frombuffer(body, np.uint8, count, start).reshape(shape)


def _check_slice(header: Header, pixels: Patterns) -> Slice:
    few = pixels[len(pixels) // 2]  # one row shows that most images are not constant
    if few.min() == few.max() and pixels.min() == pixels.max():
        raise Rejected(Reason.CONSTANT_IMAGE)
    pixels.flags.writeable = False
    return Slice(header, pixels)


def fingerprint_range(offset: int, size: int) -> tuple[int, int]:
    """Return the first byte and the length of the range for `fingerprint`.

    Args:
        offset: offset of the pixels' first byte.
        size: size of the pixels, bytes.
    """
    start = offset + max((size - _FINGERPRINT_BYTES) // 2, 0)
    return start, min(_FINGERPRINT_BYTES, size)


def last_range(offset: int, size: int) -> tuple[int, int]:
    """Return the first byte and the length of the last pixels, as long as a fingerprint's."""
    length = min(_FINGERPRINT_BYTES, size)
    return offset + size - length, length


def fingerprint(middle: bytes, read_all: Callable[[], bytes]) -> int:
    """Return 64 bits, never 0, equal for files with the same pixels.

    Args:
        middle: the bytes of `fingerprint_range`.
        read_all: reads all bytes of the pixels; called if the middle bytes are uniform.
    """
    data = read_all() if middle == middle[:2] * (len(middle) // 2) else middle
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def _single_frame(body: bytes, pixels: PixelElement) -> tuple[bytes, str]:
    """Join the fragments of the only frame, after an offset table (PS3.5 A.4).

    Any other element ends the fragments, like the sequence delimiter: the decoder detects
    incomplete images, and ignores trailing bytes. Also returns a message about missing bytes of the
    last fragment, or empty.
    """
    end = len(body) if pixels.length is None else min(len(body), pixels.offset + pixels.length)
    items: list[bytes] = []
    missing, position = "", pixels.offset
    while position + 8 <= end:
        if items and len(items[-1]) % 2 and body[position + 1 : position + 5] in _DELIMITERS:
            position += 1  # a pad byte, not counted in the length of an odd fragment
        tag, length = body[position : position + 4], body[position + 4 : position + 8]
        if tag != _ITEM:
            break
        size, position = int.from_bytes(length, "little"), position + 8
        if size > end - position:
            missing = f"{end - position} of {size} bytes"
        items.append(body[position : min(position + size, end)])
        position += size
    if not items and position + 8 <= end:
        raise Rejected(Reason.CORRUPT_PIXELS, "not encapsulated")
    if len(items) < 2:
        raise Rejected(Reason.TRUNCATED_PIXELS, missing or "no code stream")
    _check_offsets(items[0], items[1:])
    return b"".join(items[1:]), missing


def _check_offsets(table: bytes, fragments: Sequence[bytes]) -> None:
    """Raise if an offset table lists several frames.

    The header counts the frames. Most tables that contradict the header are wrong: they list all
    fragments, or invalid offsets. The offsets of a correct table are beginnings of images.
    """
    offsets = {*np.frombuffer(table, "<u4", len(table) // 4).tolist()}
    starts = accumulate((8 + len(fragment) for fragment in fragments), initial=0)
    images = {
        start: fragment[:2]
        for start, fragment in zip(starts, fragments, strict=False)
        if start in offsets
    }
    if len(images) > 1 and images.keys() == offsets and len({*images.values()}) == 1:
        raise Rejected(Reason.MULTI_FRAME, f"{len(images)} frames in the offset table")


def _decode_uncompressed(frame: bytes, header: Header) -> Patterns:
    check_length(len(frame), header)
    return _native_pixels(frame, header, 0)


def _decode_jpeg(frame: bytes, header: Header) -> Patterns:
    stream = describe_jpeg(frame)
    image, behind = frame[: stream.size], frame[stream.size :]
    samples = _decode(imagecodecs.jpeg8_decode, image, stream, header)
    if len(behind) > 1 or behind.strip(b"\0"):
        # More than a pad byte follows: perhaps the image is cut off, and the end another's.
        # libjpeg uses the additional bits only if the image lacks bits.
        more = image.removesuffix(_END) + _MORE_BITS + _END
        if not np.array_equal(samples, _decode(imagecodecs.jpeg8_decode, more, stream, header)):
            raise Rejected(Reason.TRUNCATED_PIXELS, "the code stream ends before the image")
    return _align(samples, stream, header.encoding)


def _decode_jpegls(frame: bytes, header: Header) -> Patterns:
    stream = describe_jpeg(frame)
    samples = _decode(imagecodecs.jpegls_decode, frame[: stream.size], stream, header)
    return _align(_with_sign(samples, stream, header.encoding), stream, header.encoding)


def _decode_j2k(frame: bytes, header: Header) -> Patterns:
    if frame.startswith(_JP2_SIGNATURE):
        # DICOM allows no JP2 boxes (PS3.5 A.4.4); its attributes hold the same information.
        frame = frame[frame.find(_J2K_BEGINNING) :]
    stream = describe_j2k(frame)
    samples = _decode(imagecodecs.jpeg2k_decode, frame[: stream.size], stream, header)
    return _align(_with_sign(samples, stream, header.encoding), stream, header.encoding)


def _decode(
    decoder: Callable[[bytes], NDArray[np.generic]],
    image: bytes,
    stream: "CodeStream",
    header: Header,
) -> NDArray[np.uint16]:
    """Decode samples of up to 16 bits; negative samples are in two's complement.

    Raises:
        Rejected: the image is broken, or its description contradicts the header.
    """
    shape, allocated = (header.rows, header.columns), header.encoding.bits_allocated
    if (stream.rows, stream.columns) != shape:
        found = f"{stream.rows} x {stream.columns}"
        detail = f"the code stream is {found}, not {header.rows} x {header.columns}"
        raise Rejected(Reason.CORRUPT_PIXELS, detail)
    if stream.components != 1:
        raise Rejected(Reason.NOT_GRAYSCALE, f"{stream.components} components in the code stream")
    if not 1 < stream.precision <= allocated:
        detail = f"{stream.precision} bits per sample in {allocated} allocated"
        raise Rejected(Reason.CORRUPT_PIXELS, detail)
    with contained(Reason.CORRUPT_PIXELS):
        decoded = decoder(image)
    if decoded.shape != shape or decoded.dtype.char not in "bBhH":  # integers of 8 or 16 bits
        raise Rejected(Reason.CORRUPT_PIXELS, "decoded to another shape or type")
    return decoded.astype(np.uint16)


def _with_sign(
    samples: NDArray[np.uint16], stream: "CodeStream", encoding: PixelEncoding
) -> NDArray[np.uint16]:
    """Extend the sign of samples with fewer bits than Bits Stored.

    JPEG-LS has no sign, and JPEG 2000's sign may contradict Pixel Representation: the header's sign
    counts, and the sign bit is the code stream's highest bit.
    """
    highest = (1 << stream.precision) - 1
    samples = samples & np.uint16(highest)
    if encoding.signed and stream.precision < encoding.bits_stored:
        samples[samples > highest // 2] |= np.uint16(0xFFFF - highest)
    return samples


def _align(samples: NDArray[np.uint16], stream: "CodeStream", encoding: PixelEncoding) -> Patterns:
    """Shift samples to the bit positions of a native image.

    A code stream with the high bit's width holds whole words; a narrower one only the stored bits.
    """
    if stream.precision <= encoding.high_bit:
        samples = np.left_shift(samples, np.uint16(encoding.high_bit + 1 - encoding.bits_stored))
    return samples.astype(np.uint8) if encoding.bits_allocated == 8 else samples


def _decode_rle(frame: bytes, header: Header) -> Patterns:
    """Decode separately packed byte planes (DICOM PS3.5 annex G)."""
    segments = int.from_bytes(frame[:4], "little")
    if segments != header.encoding.bits_allocated // 8:
        raise Rejected(Reason.CORRUPT_PIXELS, "segments are not the bytes of a pixel")
    buffer = bytearray(header.matrix_bytes)
    try:
        with contained(Reason.CORRUPT_PIXELS):
            dtype = np.dtype(f"<u{segments}")
            decoded = bytes(imagecodecs.dicomrle_decode(frame, dtype, out=buffer))
    except Rejected:  # perhaps only because of trailing bytes in a segment
        decoded = _unpack_planes(frame, header.rows * header.columns, segments)
    check_length(len(decoded), header)
    return _native_pixels(decoded, header, 0)


def _unpack_planes(frame: bytes, size: int, segments: int) -> bytes:
    """Convert byte planes, most significant first, to bytes of little-endian pixels."""
    offsets = np.frombuffer(frame[: 4 + 4 * segments].ljust(4 + 4 * segments), "<u4")[1:].tolist()
    if any(end < start for start, end in pairwise((_RLE_HEADER, *offsets))):
        raise Rejected(Reason.CORRUPT_PIXELS, "segments in no order")
    planes = [
        _unpack_bits(frame[start:end], size)
        for start, end in pairwise((*offsets, max(len(frame), offsets[-1])))
    ]
    if any(len(plane) < size for plane in planes[:-1]):
        raise Rejected(Reason.CORRUPT_PIXELS, "a segment is too short")
    pixels = np.empty((len(planes[-1]), segments), np.uint8)
    for number, plane in enumerate(reversed(planes)):
        pixels[:, number] = np.frombuffer(plane, np.uint8, len(pixels))
    return pixels.tobytes()


def _unpack_bits(segment: bytes, size: int) -> bytes:
    """Unpack at most `size` bytes of a segment (DICOM PS3.5 G.3.2)."""
    unpacked, position = bytearray(), 0
    while len(unpacked) < size and position < len(segment):
        control = segment[position]
        if control < 128:
            unpacked += segment[position + 1 : position + 2 + control]
            position += 2 + control
        elif control > 128:
            unpacked += segment[position + 1 : position + 2] * (257 - control)
            position += 2
        else:
            position += 1
    return bytes(unpacked[:size])


_DECODERS: dict[str, Callable[[bytes, Header], Patterns]] = {
    "uncompressed": _decode_uncompressed,
    "rle": _decode_rle,
    "jpeg": _decode_jpeg,
    "jpegls": _decode_jpegls,
    "j2k": _decode_j2k,
}


@dataclass(frozen=True)
class CodeStream:
    """The description in a compressed image.

    Attributes:
        rows: height.
        columns: width.
        components: samples per pixel.
        precision: bits per sample.
        size: bytes from the image's beginning to its end, without trailing bytes.
    """

    rows: int
    columns: int
    components: int
    precision: int
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
        size=size,
    )


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
    """Return the end of a JPEG image with a frame header at a position.

    Decoders would fill missing data with gray.
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
