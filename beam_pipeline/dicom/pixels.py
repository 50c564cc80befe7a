"""The bytes of a data set's pixels to the bit patterns that they stand for.

One decoder serves each transfer syntax, whatever else is installed, so that the same file gives
the same pixels everywhere; all are called as functions of their own (imagecodecs), not as plugins
of pydicom, which takes the first that it finds and logs the messages of those that fail.
"""

from collections.abc import Callable

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
from beam_pipeline.dicom.dataset import PixelElement
from beam_pipeline.dicom.hounsfield import PixelEncoding
from beam_pipeline.dicom.third_party import contained
from beam_pipeline.errors import Reason, Rejected

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
# Retired in 2004 (DICOM PS3.5 2003 A.4.1), but written before.
_JPEG_SPECTRAL_SELECTION = "1.2.840.10008.1.2.4.53"
_JPEG_FULL_PROGRESSION = "1.2.840.10008.1.2.4.55"

_ITEM = b"\xfe\xff\x00\xe0"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0"


def is_supported(transfer_syntax: str) -> bool:
    """Whether pixels in this transfer syntax (a UID) can be read."""
    return transfer_syntax in NATIVE or transfer_syntax in _DECODERS


def check_native_length(
    pixels: PixelElement, size: int, shape: tuple[int, int], allocated: int
) -> None:
    """Raise unless all of an uncompressed image's pixels are there.

    Args:
        pixels: where they are said to be.
        size: of the body that they are in, bytes.
        shape: rows, columns.
        allocated: bits a pixel.

    Raises:
        Rejected: bytes are missing, or the file does not say how many there are.
    """
    if pixels.length is None:
        raise Rejected(Reason.CORRUPT_PIXELS, "encapsulated, in a native transfer syntax")
    found = min(pixels.length, size - pixels.offset)
    if pixels.vr == "OW":  # whole words: in big endian files the first half is the second pixel
        found -= found % 2
    _check_length(found, shape, allocated)


def native_pixels(
    body: bytes, pixels: PixelElement, shape: tuple[int, int], allocated: int, big_endian: bool
) -> Patterns:
    """An uncompressed image (DICOM PS3.5 8.1, annexes A.1 to A.3 and A.5).

    Args:
        body: what the pixels are in; they were checked to be all there.
        pixels: where they are.
        shape: rows, columns.
        allocated: bits a pixel, 8 or 16.
        big_endian: the order of bytes in words.

    Returns:
        uint8 or uint16 [rows, columns], read-only where it is a view of `body`.
    """
    count = shape[0] * shape[1]
    if allocated == 16:
        order = ">u2" if big_endian else "<u2"
        words = np.frombuffer(body, order, count, pixels.offset)
        return words.astype(np.uint16, copy=False).reshape(shape)
    if big_endian and pixels.vr == "OW":  # two pixels a word, the first in its low byte
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
    """A compressed image, decoded (DICOM PS3.5 8.2 and A.4).

    Args:
        body: what the pixels are in.
        pixels: where they are.
        shape: rows, columns.
        encoding: of the pixels, as the header has it.
        transfer_syntax: a supported one's UID.

    Returns:
        uint8 or uint16 [rows, columns], where a native image would have its bits.

    Raises:
        Rejected: the code stream is cut or broken, or is not the image the header describes.
    """
    frame = _single_frame(body, pixels)
    return _DECODERS[transfer_syntax](frame, shape, encoding)


def _check_length(found: int, shape: tuple[int, int], allocated: int) -> None:
    needed = shape[0] * shape[1] * allocated // 8
    if found < needed:
        raise Rejected(Reason.TRUNCATED_PIXELS, f"{max(found, 0)} of {needed} bytes")


def _single_frame(body: bytes, pixels: PixelElement) -> bytes:
    """The fragments of the only frame, joined; before them is an offset table (PS3.5 A.4)."""
    end = len(body) if pixels.length is None else min(len(body), pixels.offset + pixels.length)
    items, position = [], pixels.offset
    while position + 8 <= end:
        tag, length = body[position : position + 4], body[position + 4 : position + 8]
        size, position = int.from_bytes(length, "little"), position + 8
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM:
            raise Rejected(Reason.CORRUPT_PIXELS, "not encapsulated")
        if size > end - position:
            raise Rejected(Reason.TRUNCATED_PIXELS, f"{end - position} of {size} bytes")
        items.append(body[position : position + size])
        position += size
    if len(items) < 2:
        raise Rejected(Reason.TRUNCATED_PIXELS, "no code stream")
    if len(items[0]) > 4:
        raise Rejected(Reason.MULTI_FRAME, f"{len(items[0]) // 4} frames in the offset table")
    return b"".join(items[1:])


def _decode_jpeg(frame: bytes, shape: tuple[int, int], encoding: PixelEncoding) -> Patterns:
    stream = describe_jpeg(frame)
    _check_stream(stream, shape, encoding)
    return _place(_decode(imagecodecs.jpeg8_decode, frame, shape), stream, encoding)


def _decode_jpegls(frame: bytes, shape: tuple[int, int], encoding: PixelEncoding) -> Patterns:
    stream = describe_jpeg(frame)
    _check_stream(stream, shape, encoding)
    return _place_signed(_decode(imagecodecs.jpegls_decode, frame, shape), stream, encoding)


def _decode_j2k(frame: bytes, shape: tuple[int, int], encoding: PixelEncoding) -> Patterns:
    frame = bare_j2k(frame)
    stream = describe_j2k(frame)
    _check_stream(stream, shape, encoding)
    return _place_signed(_decode(imagecodecs.jpeg2k_decode, frame, shape), stream, encoding)


def _decode_rle(frame: bytes, shape: tuple[int, int], encoding: PixelEncoding) -> Patterns:
    """Byte planes, each packed by itself (DICOM PS3.5 annex G)."""
    segments = int.from_bytes(frame[:4], "little")
    if segments != encoding.bits_allocated // 8:
        raise Rejected(Reason.CORRUPT_PIXELS, "segments are not the bytes of a pixel")
    dtype = np.dtype(f"<u{segments}")
    buffer = bytearray(shape[0] * shape[1] * segments)
    with contained(Reason.CORRUPT_PIXELS):
        decoded = imagecodecs.dicomrle_decode(frame, dtype, out=buffer)
    _check_length(len(decoded), shape, encoding.bits_allocated)
    return np.frombuffer(decoded, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def _decode_uncompressed(frame: bytes, shape: tuple[int, int], encoding: PixelEncoding) -> Patterns:
    allocated = encoding.bits_allocated
    _check_length(len(frame), shape, allocated)
    return native_pixels(frame, PixelElement("PixelData", "OB", 0, None), shape, allocated, False)


def _check_stream(stream: CodeStream, shape: tuple[int, int], encoding: PixelEncoding) -> None:
    """Raise unless a code stream is the image that the header describes, which is bounded."""
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
            f"{stream.precision} bits a sample in {encoding.bits_allocated} allocated",
        )


def _decode(
    decoder: Callable[[bytes], NDArray[np.generic]], frame: bytes, shape: tuple[int, int]
) -> NDArray[np.uint16]:
    """Samples of up to 16 bits in two's complement."""
    with contained(Reason.CORRUPT_PIXELS):
        decoded = decoder(frame)
    if decoded.shape != shape or decoded.dtype.kind not in "iu" or decoded.dtype.itemsize > 2:
        raise Rejected(Reason.CORRUPT_PIXELS, "decoded to another shape or type")
    return decoded.astype(np.uint16)


def _place(samples: NDArray[np.uint16], stream: CodeStream, encoding: PixelEncoding) -> Patterns:
    """Put samples where a native image has its stored bits.

    A code stream as wide as the high bit holds whole words; a narrower one the stored bits alone.
    """
    if stream.precision <= encoding.high_bit:
        shift = encoding.high_bit + 1 - encoding.bits_stored
        samples = np.left_shift(samples, np.uint16(shift))
    return samples.astype(np.uint8) if encoding.bits_allocated == 8 else samples


def _place_signed(
    samples: NDArray[np.uint16], stream: CodeStream, encoding: PixelEncoding
) -> Patterns:
    """The same for code streams whose precision may be less than Bits Stored.

    JPEG-LS has no sign, and JPEG 2000's may disagree with Pixel Representation: the header's
    counts, and the sign bit is the code stream's highest.
    """
    highest = (1 << stream.precision) - 1
    samples = samples & np.uint16(highest)
    if encoding.signed and stream.precision < encoding.bits_stored:
        samples[samples > highest // 2] |= np.uint16(0xFFFF - highest)
    return _place(samples, stream, encoding)


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
