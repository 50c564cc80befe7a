"""Decoders from pixel bytes to bit patterns.

Every transfer syntax has one decoder of imagecodecs, so that a file has the same pixels on every
system. pydicom would use the first installed plugin, and log messages of failing plugins.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from beam_pipeline.dicom.codestream import CodeStream, bare_j2k, describe_j2k, describe_jpeg
from beam_pipeline.dicom.dataset import PixelElement, contained
from beam_pipeline.dicom.hounsfield import PixelEncoding
from headct.reasons import Reason, Rejected

Patterns = NDArray[np.uint8] | NDArray[np.uint16]

NATIVE = frozenset(
    map(
        str,
        (
            ImplicitVRLittleEndian,
            ExplicitVRLittleEndian,
            ExplicitVRBigEndian,
            DeflatedExplicitVRLittleEndian,
        ),
    )
)
_ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
# Retired in 2004 (DICOM PS3.5 2003 A.4.1), but present in older files.
_JPEG_SPECTRAL_SELECTION = "1.2.840.10008.1.2.4.53"
_JPEG_FULL_PROGRESSION = "1.2.840.10008.1.2.4.55"

_ITEM = b"\xfe\xff\x00\xe0"
_DELIMITERS = (_ITEM, b"\xfe\xff\xdd\xe0")
_RLE_HEADER = 64  # bytes (DICOM PS3.5 G.5)
_MORE_BITS = b"\x5a" * 64


def is_supported(transfer_syntax: str) -> bool:
    """Return whether pixels in a transfer syntax (a UID) are supported."""
    return transfer_syntax in NATIVE or transfer_syntax in _DECODERS


def check_native_length(
    pixels: PixelElement, size: int, shape: tuple[int, int], allocated: int
) -> None:
    """Raise if pixels of an uncompressed image are missing.

    Args:
        pixels: the pixels' element.
        size: size of the body, bytes.
        shape: rows, columns.
        allocated: bits per pixel.

    Raises:
        Rejected: bytes are missing, or the file does not state the number of bytes.
    """
    if pixels.length is None:
        raise Rejected(Reason.CORRUPT_PIXELS, "encapsulated, in a native transfer syntax")
    found = min(pixels.length, size - pixels.offset)
    if pixels.vr == "OW":  # whole words: in big-endian files the first byte is the second pixel
        found -= found % 2
    _check_length(found, shape, allocated)


def native_pixels(
    body: bytes, pixels: PixelElement, shape: tuple[int, int], allocated: int, big_endian: bool
) -> Patterns:
    """Return an uncompressed image (DICOM PS3.5 8.1, annexes A.1 to A.3 and A.5).

    Args:
        body: bytes with all pixels.
        pixels: the pixels' element.
        shape: rows, columns.
        allocated: bits per pixel, 8 or 16.
        big_endian: byte order of words.

    Returns:
        uint8 or uint16 [rows, columns]; read-only if it is a view of `body`.
    """
    count = shape[0] * shape[1]
    if allocated == 16:
        order = ">u2" if big_endian else "<u2"
        words = np.frombuffer(body, order, count, pixels.offset)
        return words.astype(np.uint16, copy=False).reshape(shape)
    if big_endian and pixels.vr == "OW":  # two pixels per word, the first in its low byte
        words = np.frombuffer(body, ">u2", -(-count // 2), pixels.offset)
        return words.astype("<u2").view(np.uint8)[:count].reshape(shape)
    return np.frombuffer(body, np.uint8, count, pixels.offset).reshape(shape)


def encapsulated_pixels(
    body: bytes,
    pixels: PixelElement,
    shape: tuple[int, int],
    encoding: PixelEncoding,
    transfer_syntax: str,
) -> Patterns:
    """Decode a compressed image (DICOM PS3.5 8.2 and A.4).

    Args:
        body: bytes with the pixels.
        pixels: the pixels' element.
        shape: rows, columns.
        encoding: the header's encoding of the pixels.
        transfer_syntax: UID of a supported transfer syntax.

    Returns:
        uint8 or uint16 [rows, columns], with bit positions of a native image.

    Raises:
        Rejected: the code stream is cut off, broken, or contradicts the header.
    """
    frame, missing = _single_frame(body, pixels)
    try:
        return _DECODERS[transfer_syntax](frame, shape, encoding)
    except Rejected:
        if missing:
            raise Rejected(Reason.TRUNCATED_PIXELS, missing) from None
        raise


def _check_length(found: int, shape: tuple[int, int], allocated: int) -> None:
    needed = shape[0] * shape[1] * allocated // 8
    if found < needed:
        raise Rejected(Reason.TRUNCATED_PIXELS, f"{max(found, 0)} of {needed} bytes")


def _single_frame(body: bytes, pixels: PixelElement) -> tuple[bytes, str]:
    """Join the fragments of the only frame, after an offset table (PS3.5 A.4).

    Any other element ends the fragments, like the sequence delimiter: the decoder detects
    incomplete images, and ignores trailing bytes.

    Returns:
        The joined fragments, and a message about missing bytes of the last fragment, or empty.
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


def _decode_jpeg(frame: bytes, shape: tuple[int, int], encoding: PixelEncoding) -> Patterns:
    stream = describe_jpeg(frame)
    _check_stream(stream, shape, encoding)
    image, behind = frame[: stream.size], frame[stream.size :]
    samples = _decode(imagecodecs.jpeg8_decode, image, shape)
    if len(behind) > 1 or behind.strip(b"\0"):
        # More than a pad byte follows: perhaps the image is cut off, and the end another's.
        # libjpeg uses the additional bits only if the image lacks bits.
        more = image[:-2] + _MORE_BITS + image[-2:]
        if not np.array_equal(samples, _decode(imagecodecs.jpeg8_decode, more, shape)):
            raise Rejected(Reason.TRUNCATED_PIXELS, "the code stream ends before the image")
    return _align(samples, stream, encoding)


def _decode_jpegls(frame: bytes, shape: tuple[int, int], encoding: PixelEncoding) -> Patterns:
    stream = describe_jpeg(frame)
    _check_stream(stream, shape, encoding)
    samples = _decode(imagecodecs.jpegls_decode, frame[: stream.size], shape)
    return _align_signed(samples, stream, encoding)


def _decode_j2k(frame: bytes, shape: tuple[int, int], encoding: PixelEncoding) -> Patterns:
    frame = bare_j2k(frame)
    stream = describe_j2k(frame)
    _check_stream(stream, shape, encoding)
    samples = _decode(imagecodecs.jpeg2k_decode, frame[: stream.size], shape)
    return _align_signed(samples, stream, encoding)


def _decode_rle(frame: bytes, shape: tuple[int, int], encoding: PixelEncoding) -> Patterns:
    """Decode separately packed byte planes (DICOM PS3.5 annex G)."""
    segments = int.from_bytes(frame[:4], "little")
    if segments != encoding.bits_allocated // 8:
        raise Rejected(Reason.CORRUPT_PIXELS, "segments are not the bytes of a pixel")
    dtype = np.dtype(f"<u{segments}")
    buffer = bytearray(shape[0] * shape[1] * segments)
    try:
        with contained(Reason.CORRUPT_PIXELS):
            decoded = imagecodecs.dicomrle_decode(frame, dtype, out=buffer)
    except Rejected:  # perhaps only because of trailing bytes in a segment
        decoded = _unpack_planes(frame, shape[0] * shape[1], segments)
    _check_length(len(decoded), shape, encoding.bits_allocated)
    return np.frombuffer(decoded, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


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


def _decode_uncompressed(frame: bytes, shape: tuple[int, int], encoding: PixelEncoding) -> Patterns:
    allocated = encoding.bits_allocated
    _check_length(len(frame), shape, allocated)
    return native_pixels(frame, PixelElement("PixelData", "OB", 0, None), shape, allocated, False)


def _check_stream(stream: CodeStream, shape: tuple[int, int], encoding: PixelEncoding) -> None:
    """Raise if a code stream contradicts the header."""
    if (stream.rows, stream.columns) != shape:
        raise Rejected(
            Reason.CORRUPT_PIXELS,
            f"the code stream is {stream.rows} x {stream.columns}, not {shape[0]} x {shape[1]}",
        )
    if stream.components != 1:
        raise Rejected(Reason.NOT_GRAYSCALE, f"{stream.components} components in the code stream")
    if not 1 < stream.precision <= encoding.bits_allocated:
        raise Rejected(
            Reason.CORRUPT_PIXELS,
            f"{stream.precision} bits per sample in {encoding.bits_allocated} allocated",
        )


def _decode(
    decoder: Callable[[bytes], NDArray[np.generic]], frame: bytes, shape: tuple[int, int]
) -> NDArray[np.uint16]:
    """Decode samples of up to 16 bits; negative samples are in two's complement."""
    with contained(Reason.CORRUPT_PIXELS):
        decoded = decoder(frame)
    if decoded.shape != shape or decoded.dtype.kind not in "iu" or decoded.dtype.itemsize > 2:
        raise Rejected(Reason.CORRUPT_PIXELS, "decoded to another shape or type")
    return decoded.astype(np.uint16)


def _align(samples: NDArray[np.uint16], stream: CodeStream, encoding: PixelEncoding) -> Patterns:
    """Shift samples to the bit positions of a native image.

    A code stream with the high bit's width holds whole words; a narrower code stream only the
    stored bits.
    """
    if stream.precision <= encoding.high_bit:
        shift = encoding.high_bit + 1 - encoding.bits_stored
        samples = np.left_shift(samples, np.uint16(shift))
    return samples.astype(np.uint8) if encoding.bits_allocated == 8 else samples


def _align_signed(
    samples: NDArray[np.uint16], stream: CodeStream, encoding: PixelEncoding
) -> Patterns:
    """Shift signed samples of code streams; the precision may be less than Bits Stored.

    JPEG-LS has no sign, and JPEG 2000's sign may contradict Pixel Representation: the header's sign
    counts, and the sign bit is the code stream's highest bit.
    """
    highest = (1 << stream.precision) - 1
    samples = samples & np.uint16(highest)
    if encoding.signed and stream.precision < encoding.bits_stored:
        samples[samples > highest // 2] |= np.uint16(0xFFFF - highest)
    return _align(samples, stream, encoding)


_DECODERS: dict[str, Callable[[bytes, tuple[int, int], PixelEncoding], Patterns]] = {
    _ENCAPSULATED_UNCOMPRESSED: _decode_uncompressed,
    str(RLELossless): _decode_rle,
    str(JPEGBaseline8Bit): _decode_jpeg,
    str(JPEGExtended12Bit): _decode_jpeg,
    _JPEG_SPECTRAL_SELECTION: _decode_jpeg,
    _JPEG_FULL_PROGRESSION: _decode_jpeg,
    str(JPEGLossless): _decode_jpeg,
    str(JPEGLosslessSV1): _decode_jpeg,
    str(JPEGLSLossless): _decode_jpegls,
    str(JPEGLSNearLossless): _decode_jpegls,
    str(JPEG2000Lossless): _decode_j2k,
    str(JPEG2000): _decode_j2k,
    str(HTJ2KLossless): _decode_j2k,
    str(HTJ2KLosslessRPCL): _decode_j2k,
    str(HTJ2K): _decode_j2k,
}
