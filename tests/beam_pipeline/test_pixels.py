"""Pixels of every encoding, against a second decoder or the uncompressed twin."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import uid
from pydicom.pixels import pixel_array

from beam_pipeline.dicom.hounsfield import Repair, hounsfield_table, stored_values
from beam_pipeline.dicom.slices import (
    Slice,
    describe_j2k,
    describe_jpeg,
    fingerprint,
    fingerprint_range,
    read_slice,
)
from headct.reasons import Reason, Rejected
from tests.beam_pipeline.dicom_files import NATIVE, make_dicom, relabeled

JPEG_SPECTRAL_SELECTION = "1.2.840.10008.1.2.4.53"
JPEG_FULL_PROGRESSION = "1.2.840.10008.1.2.4.55"
UNCOMPRESSED = "1.2.840.10008.1.2.1.98"


def stored(source: Slice) -> np.ndarray:
    return stored_values(source.header.encoding)[source.pixels]


def hounsfield(source: Slice) -> np.ndarray:
    return hounsfield_table(source.header.encoding, Repair.NONE)[source.pixels]


def rejection(data: bytes) -> tuple[Reason, str]:
    with pytest.raises(Rejected) as caught:
        read_slice(data)
    return caught.value.reason, caught.value.detail


def ramp(dtype: str, size: int = 32) -> np.ndarray:
    """Every eighth value of a 16-bit type once, or each of an 8-bit one several times."""
    bits = np.dtype(dtype).itemsize * 8
    values = np.linspace(0, (1 << bits) - 1, size * size).astype(f"u{bits // 8}")
    return values.reshape(size, size).view(dtype)


# Native


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("dtype", ["int16", "uint16", "int8", "uint8"])
def test_native_pixels_are_as_written(syntax: str, dtype: str) -> None:
    pixels = ramp(dtype)
    source = read_slice(make_dicom(pixels, syntax=syntax))
    assert source.header.transfer_syntax == syntax
    assert source.pixels.dtype == pixels.view(f"u{pixels.dtype.itemsize}").dtype
    assert not source.pixels.flags.writeable
    if syntax == uid.ExplicitVRBigEndian and pixels.dtype.itemsize == 1:
        pixels = pixels.reshape(-1, 2)[:, ::-1].reshape(pixels.shape)  # two pixels an OW word
    assert np.array_equal(stored(source), pixels)


def test_an_odd_number_of_8_bit_pixels_is_read_without_its_padding() -> None:
    pixels = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert np.array_equal(read_slice(make_dicom(pixels)).pixels, pixels)


def test_an_odd_number_of_swapped_pixels_needs_its_last_word_whole() -> None:
    pixels = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
    words = bytes([2, 1, 4, 3, 6, 5, 8, 7, 0, 9])
    data = make_dicom(pixels, syntax=uid.ExplicitVRBigEndian, PixelData=words)
    assert np.array_equal(read_slice(data).pixels, pixels)
    assert rejection(data[:-1]) == (Reason.TRUNCATED_PIXELS, "8 of 9 bytes")


@pytest.mark.parametrize("dtype", ["int16", "uint8"])
def test_big_endian_bytes_are_swapped_only_where_a_pixel_has_two(dtype: str) -> None:
    pixels = ramp(dtype)
    words = make_dicom(pixels, syntax=uid.ExplicitVRBigEndian)
    data = words.replace(b"\x7f\xe0\x00\x10OW", b"\x7f\xe0\x00\x10OB")
    assert data != words
    assert np.array_equal(stored(read_slice(data)), pixels)


@pytest.mark.parametrize("allocated", [8, 16])
def test_pixels_with_other_bits_in_the_word(allocated: int) -> None:
    pixels = np.array([[0b10110101, 0b01001010]], f"u{allocated // 8}")
    data = make_dicom(pixels, BitsStored=4, HighBit=5, PixelRepresentation=1)
    assert stored(read_slice(data)).tolist() == [[-3, 2]]


@given(arrays(np.int16, (3, 5)), st.sampled_from([uid.ExplicitVRBigEndian, uid.RLELossless]))
@settings(max_examples=30, deadline=None)
def test_any_pixels_survive(pixels: np.ndarray, syntax: str) -> None:
    pixels[0, :2] = 0, 1
    planes = [pixels.astype(">i2").tobytes()[plane::2] for plane in range(2)]
    frame = pack_rle(planes) if syntax == uid.RLELossless else None
    assert np.array_equal(
        stored(read_slice(make_dicom(pixels, syntax=syntax, frame=frame))), pixels
    )


def pack_rle(planes: list[bytes]) -> bytes:
    """DICOM RLE of literal runs of one byte only (PS3.5 annex G)."""
    segments = [b"".join(bytes([0, byte]) for byte in plane) for plane in planes]
    segments = [segment + bytes(len(segment) % 2) for segment in segments]
    offsets = [64 + sum(map(len, segments[:i])) for i in range(len(segments))]
    words = [len(segments), *offsets, *[0] * (15 - len(segments))]
    return np.array(words, "<u4").tobytes() + b"".join(segments)


# Code streams, made here, read by another decoder or known


def jls(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpegls_encode(pixels.view(f"u{pixels.dtype.itemsize}")))


def j2k(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, mct=False))


def htj2k(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.htj2k_encode(pixels, reversible=True))


def lossless_jpeg(pixels: np.ndarray) -> bytes:
    unsigned = pixels.view(f"u{pixels.dtype.itemsize}")
    return bytes(imagecodecs.jpeg8_encode(unsigned, lossless=True, predictor=1))


LOSSLESS = [
    (uid.JPEGLossless, lossless_jpeg),
    (uid.JPEGLosslessSV1, lossless_jpeg),
    (uid.JPEGLSLossless, jls),
    (uid.JPEG2000Lossless, j2k),
    (uid.JPEG2000, j2k),
    (uid.HTJ2KLossless, htj2k),
    (uid.HTJ2KLosslessRPCL, htj2k),
    (uid.HTJ2K, htj2k),
    (UNCOMPRESSED, lambda pixels: pixels.tobytes()),
]


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8"])
@pytest.mark.parametrize(("syntax", "encode"), LOSSLESS)
def test_lossless_code_streams_give_what_went_in(
    syntax: str, encode: Callable[[np.ndarray], bytes], dtype: str
) -> None:
    pixels = ramp(dtype)
    source = read_slice(make_dicom(pixels, syntax=syntax, frame=encode(pixels)))
    assert np.array_equal(stored(source), pixels)


def test_htj2k_as_a_second_decoder_reads_it() -> None:
    pixels = ramp("int16")
    frame = htj2k(pixels)
    source = read_slice(make_dicom(pixels, syntax=uid.HTJ2K, frame=frame))
    assert np.array_equal(stored(source), imagecodecs.htj2k_decode(frame))  # OpenJPH


def test_lossless_jpeg_as_two_other_decoders_read_it() -> None:
    pixels = ramp("uint16")
    frame = lossless_jpeg(pixels)
    source = read_slice(make_dicom(pixels, syntax=uid.JPEGLossless, frame=frame))
    assert np.array_equal(stored(source), imagecodecs.ljpeg_decode(frame))
    assert np.array_equal(stored(source), imagecodecs.jpegsof3_decode(frame))


@pytest.mark.parametrize("signed_stream", [False, True])
@pytest.mark.parametrize("representation", [0, 1])
def test_the_headers_sign_counts_not_the_code_streams(
    signed_stream: bool, representation: int
) -> None:
    pixels = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
    written = pixels if signed_stream else (pixels & 0xFFF).astype(np.uint16)
    stream = j2k_12_bit(written)
    assert describe_j2k(stream).precision == 12
    assert imagecodecs.jpeg2k_decode(stream).dtype == written.dtype
    data = make_dicom(
        pixels,
        syntax=uid.JPEG2000Lossless,
        frame=stream,
        PixelRepresentation=representation,
        BitsStored=12,
        HighBit=11,
    )
    assert np.array_equal(stored(read_slice(data)), pixels if representation else pixels & 0xFFF)


def test_the_sign_of_a_narrower_code_stream_is_extended() -> None:
    pixels = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
    stream = j2k_12_bit((pixels & 0xFFF).astype(np.uint16))
    data = make_dicom(pixels, syntax=uid.JPEG2000Lossless, frame=stream)  # 16 bits stored
    assert np.array_equal(stored(read_slice(data)), pixels)


def j2k_12_bit(pixels: np.ndarray) -> bytes:
    options = {"codecformat": "j2k", "reversible": True, "bitspersample": 12}
    return bytes(imagecodecs.jpeg2k_encode(pixels, **options))


@pytest.mark.parametrize(
    ("stored_bits", "high_bit", "expected"),
    [(16, 15, -1000), (12, 11, -1000), (12, 15, -1000)],
)
def test_a_12_bit_code_stream_in_words_of_any_layout(
    stored_bits: int, high_bit: int, expected: int
) -> None:
    pixels = np.array([[-1000, 40], [0, 80]], np.int16)
    frame = j2k_12_bit((np.kron(pixels, np.ones((16, 16))).astype(int) & 0xFFF).astype(np.uint16))
    data = make_dicom(
        np.zeros((32, 32), np.int16),
        syntax=uid.JPEG2000Lossless,
        frame=frame,
        BitsStored=stored_bits,
        HighBit=high_bit,
    )
    assert stored(read_slice(data))[::16, ::16].tolist() == [[expected, 40], [0, 80]]


def test_jp2_boxes_around_the_code_stream_are_ignored() -> None:
    pixels = ramp("uint16")
    frame = bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="jp2", reversible=True))
    assert frame[4:8] == b"jP  "
    source = read_slice(make_dicom(pixels, syntax=uid.JPEG2000Lossless, frame=frame))
    assert np.array_equal(stored(source), pixels)


def test_a_frame_in_several_fragments_is_joined() -> None:
    pixels = ramp("uint16")
    frame = lossless_jpeg(pixels)
    frame += bytes(len(frame) % 2)
    parts = [b"", frame[:100], frame[100:102], frame[102:]]
    data = make_dicom(pixels, syntax=uid.JPEGLossless, frame=b"\0\0", PixelData=fragments(parts))
    assert np.array_equal(stored(read_slice(data)), pixels)


def fragments(parts: list[bytes], end: bytes = b"") -> bytes:
    items = [b"\xfe\xff\x00\xe0" + len(part).to_bytes(4, "little") + part for part in parts]
    return b"".join(items) + end


def test_a_fragment_that_is_cut_is_counted_by_all_four_bytes_of_its_length() -> None:
    value = fragments([b""]) + b"\xfe\xff\x00\xe0" + (0x01000008).to_bytes(4, "little") + bytes(4)
    data = with_pixel_data(UNCOMPRESSED, value)
    assert rejection(data) == (Reason.TRUNCATED_PIXELS, "4 of 16777224 bytes")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (10, (100, 10)),
        (16384, (100, 16384)),
        (16385, (100, 16384)),
        (524288, (100 + 253952, 16384)),
    ],
)
def test_a_fingerprint_is_of_the_middle(size: int, expected: tuple[int, int]) -> None:
    assert fingerprint_range(100, size) == expected


@pytest.mark.parametrize("middle", [b"\5\0" * 4, b"\5\0" * 3 + b"\6\0", b"\5\5" * 2 + b"\5\6"])
def test_all_pixels_count_where_the_middle_is_uniform(middle: bytes) -> None:
    whole = b"\1\0" + middle
    counted = whole if middle == b"\5\0\5\0\5\0\5\0" else middle
    digest = hashlib.blake2b(counted, digest_size=8).digest()
    assert fingerprint(middle, lambda: whole) == int.from_bytes(digest, "little")


# Whole images, and what writers leave around them


def packed(pixels: np.ndarray, pad: bytes = b"\0", behind: bytes = b"") -> bytes:
    """DICOM RLE of 16-bit pixels, in literal runs of up to 128 bytes, with bytes behind each."""
    segments = []
    for plane in range(2):
        data = pixels.astype(">u2").tobytes()[plane::2]
        runs = [data[i : i + 128] for i in range(0, len(data), 128)]
        segment = b"".join(bytes([len(run) - 1]) + run for run in runs) + behind
        segments.append(segment + pad * (len(segment) % 2))
    words = [2, 64, 64 + len(segments[0]), *[0] * 13]
    return np.array(words, "<u4").tobytes() + b"".join(segments)


def lossy(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels >> 4, bitspersample=12, level=95))


COMPRESSED = [*LOSSLESS[1:-1], (uid.RLELossless, packed), (uid.JPEGExtended12Bit, lossy)]
ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def odd(frame: bytes) -> bytes:
    """A frame of an odd size: without its pad byte, or with one more."""
    return frame if len(frame) % 2 else frame + b"\0"


def with_pixel_data(syntax: str, value: bytes) -> bytes:
    """A file that ends with its encapsulated pixels, whatever they are."""
    data = make_dicom(ramp("uint16"), syntax=syntax, frame=b"\0\0")
    return data[: data.index(b"\xe0\x7f\x10\x00") + 12] + value


@pytest.mark.parametrize(("syntax", "encode"), COMPRESSED)
@pytest.mark.parametrize(
    "around",
    [
        pytest.param(lambda f: fragments([b"", f + bytes(64)], DELIMITER + bytes(4)), id="zeros"),
        pytest.param(lambda f: fragments([b"", f + b"\x7f\1 junk" * 9], DELIMITER), id="junk"),
        pytest.param(lambda f: fragments([b"", f]), id="no delimiter"),
        pytest.param(lambda f: fragments([b"", f], bytes(8)), id="zeroed delimiter"),
        pytest.param(lambda f: fragments([b"", f], bytes(3)), id="cut delimiter"),
        pytest.param(lambda f: fragments([b"", f], b"\xfc\xff\xfc\xffOB\0\0"), id="other element"),
        pytest.param(lambda f: fragments([b"", odd(f)], b"\0" + DELIMITER), id="pad of an odd one"),
        pytest.param(lambda f: fragments([b"", odd(f)], DELIMITER + bytes(4)), id="odd, no pad"),
        pytest.param(
            lambda f: fragments([b"", f[:99]], b"\0") + fragments([f[99:]], DELIMITER + bytes(4)),
            id="pad in the middle",
        ),
        pytest.param(
            lambda f: fragments([b"", b"", f[:2], b"", f[2:100], f[100:], b""], DELIMITER),
            id="empty fragments",
        ),
        pytest.param(lambda f: fragments([bytes(4), f[:80], f[80:]]), id="table of the frame"),
        pytest.param(
            lambda f: fragments([np.array([0, 88], "<u4").tobytes(), f[:80], f[80:]]),
            id="table of the fragments",
        ),
        pytest.param(lambda f: fragments([b"\7\0\0\0\x63\0\0\0", f]), id="table of nothing"),
        pytest.param(lambda f: fragments([b"abc", f]), id="broken table"),
        pytest.param(
            lambda f: fragments([b"", f])[: -len(f) - 4] + (len(f) + 9).to_bytes(4, "little") + f,
            id="fragment said to be longer",
        ),
    ],
)
def test_a_whole_image_is_read_whatever_is_around_it(
    syntax: str, encode: Callable[[np.ndarray], bytes], around: Callable[[bytes], bytes]
) -> None:
    frame = encode(ramp("uint16"))
    expected = read_slice(make_dicom(ramp("uint16"), syntax=syntax, frame=frame)).pixels
    found = read_slice(with_pixel_data(syntax, around(frame))).pixels
    assert np.array_equal(found, expected)
    if encode is not lossy:
        assert np.array_equal(found, ramp("uint16"))


@pytest.mark.parametrize("size", [31, 32, 33])
@pytest.mark.parametrize("pad", [b"\0", b" ", b"\xff"])
@pytest.mark.parametrize(
    "behind", [b"", b"\0\7", b"\xff\7", bytes(9), b"\x80", b"\x7f", b"\xff" * 500]
)
def test_rle_segments_are_read_up_to_the_pixels_that_there_are(
    size: int, pad: bytes, behind: bytes
) -> None:
    pixels = ramp("uint16", size)
    data = make_dicom(pixels, syntax=uid.RLELossless, frame=packed(pixels, pad, behind))
    assert np.array_equal(read_slice(data).pixels, pixels)


def test_rle_of_8_bits_with_more_pixels_than_there_are() -> None:
    run = bytes([257 - 128, 7])
    frame = np.array([1, 64, *[0] * 14], "<u4").tobytes() + b"\1\1\2\x80" + run * 100
    source = read_slice(make_dicom(ramp("uint8"), syntax=uid.RLELossless, frame=frame))
    assert source.pixels.reshape(-1)[:4].tolist() == [1, 2, 7, 7]


@pytest.mark.parametrize("cut", [4, 200, 1000])
@pytest.mark.parametrize("behind", [b"", bytes(1)])
def test_rle_cut_in_its_last_segment_is_truncated(cut: int, behind: bytes) -> None:
    frame = packed(ramp("uint16"))[:-cut] + behind
    data = make_dicom(ramp("uint16"), syntax=uid.RLELossless, frame=frame)
    assert rejection(data)[0] is Reason.TRUNCATED_PIXELS


def test_rle_cut_in_its_first_segment_is_corrupt() -> None:
    whole = packed(ramp("uint16"))
    for offsets in ((64, 300), (64, 64), (300, 64)):
        frame = np.array([2, *offsets], "<u4").tobytes() + whole[12:]
        data = make_dicom(ramp("uint16"), syntax=uid.RLELossless, frame=frame)
        assert rejection(data)[0] is Reason.CORRUPT_PIXELS


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("behind", [1, 2, 1000, 1 << 20])
def test_native_pixels_with_bytes_behind_them(syntax: str, behind: int) -> None:
    pixels = ramp("int16")
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    value = pixels.astype(f"{order}i2").tobytes() + b"\7" * behind
    data = make_dicom(pixels, syntax=syntax, PixelData=value + bytes(len(value) % 2))
    assert np.array_equal(stored(read_slice(data)), pixels)
    whole = make_dicom(pixels, syntax=syntax)
    assert np.array_equal(stored(read_slice(whole + b"\7" * behind)), pixels)


@pytest.mark.parametrize(("syntax", "encode"), COMPRESSED)
@pytest.mark.parametrize(
    "behind", [b"", bytes(64), b"\x12\x34" * 50, b"\x12\x34\xff\xd9" + bytes(64)]
)
def test_a_cut_image_is_none_whatever_follows_it(
    syntax: str, encode: Callable[[np.ndarray], bytes], behind: bytes
) -> None:
    frame = encode(ramp("uint16"))
    for part in (0.5, 0.9):
        value = fragments([b"", frame[: int(len(frame) * part)] + behind], DELIMITER + bytes(4))
        reason, _ = rejection(with_pixel_data(syntax, value))
        assert reason in (Reason.TRUNCATED_PIXELS, Reason.CORRUPT_PIXELS)


# Code streams that are not what the header says: found before a decoder runs


def with_size(frame: bytes, place: int, size: int, width: int = 2) -> bytes:
    return frame[:place] + size.to_bytes(width, "big") + frame[place + width :]


def sof(frame: bytes) -> int:
    """Where a JPEG says its height."""
    return next(i for i in range(len(frame)) if frame[i : i + 2] in (b"\xff\xc3", b"\xff\xf7")) + 5


@pytest.mark.parametrize(
    ("syntax", "frame"),
    [
        (uid.JPEGLossless, with_size(f := lossless_jpeg(ramp("uint16")), sof(f), 65535)),
        (uid.JPEGLSLossless, with_size(f := jls(ramp("uint16")), sof(f) + 2, 65535)),
        (uid.JPEG2000Lossless, with_size(j2k(ramp("uint16")), 8, 1 << 31, 4)),
        (uid.HTJ2K, with_size(htj2k(ramp("uint16")), 12, 1 << 31, 4)),
    ],
    ids=["jpeg", "jpeg-ls", "jpeg 2000", "htj2k"],
)
def test_a_code_stream_of_another_size_is_never_decoded(syntax: str, frame: bytes) -> None:
    reason, detail = rejection(make_dicom(ramp("uint16"), syntax=syntax, frame=frame))
    assert reason is Reason.CORRUPT_PIXELS
    assert detail.startswith("the code stream is ")
    assert detail.endswith(", not 32 x 32")


@pytest.mark.parametrize(("syntax", "encode"), LOSSLESS)
def test_a_cut_code_stream_is_truncated(syntax: str, encode: Callable[[np.ndarray], bytes]) -> None:
    frame = encode(ramp("uint16"))
    data = make_dicom(ramp("uint16"), syntax=syntax, frame=frame[: len(frame) // 2])
    assert rejection(data)[0] is Reason.TRUNCATED_PIXELS


def test_a_file_that_ends_within_its_code_stream_is_truncated() -> None:
    frame = j2k(ramp("uint16"))
    data = make_dicom(ramp("uint16"), syntax=uid.JPEG2000, frame=frame)
    reason, detail = rejection(data[:-100])
    assert reason is Reason.TRUNCATED_PIXELS
    assert detail.endswith(" bytes")
    assert rejection(data[: data.index(frame) - 8])[0] is Reason.TRUNCATED_PIXELS


def test_a_code_stream_with_its_middle_cut_out_is_corrupt() -> None:
    frame = j2k(ramp("uint16"))
    data = make_dicom(ramp("uint16"), syntax=uid.JPEG2000, frame=frame[:200] + frame[-20:])
    assert rejection(data)[0] is Reason.CORRUPT_PIXELS


def test_color_in_the_code_stream_alone() -> None:
    frame = bytes(imagecodecs.jpeg8_encode(np.zeros((32, 32, 3), np.uint8)))
    data = make_dicom(ramp("uint8"), syntax=uid.JPEGBaseline8Bit, frame=frame)
    assert rejection(data) == (Reason.NOT_GRAYSCALE, "3 components in the code stream")


def test_more_bits_than_are_allocated() -> None:
    data = make_dicom(ramp("uint8"), syntax=uid.JPEG2000, frame=j2k(ramp("uint16")))
    assert rejection(data) == (Reason.CORRUPT_PIXELS, "16 bits per sample in 8 allocated")


def test_a_progressive_jpeg_of_countless_scans_is_not_decoded() -> None:
    frame = lossless_jpeg(ramp("uint16"))
    frame = frame[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 1001 + frame[-2:]
    data = make_dicom(ramp("uint16"), syntax=uid.JPEGExtended12Bit, frame=frame)
    assert rejection(data) == (Reason.CORRUPT_PIXELS, "more than 1000 scans")


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEG2000, uid.JPEGLSLossless])
def test_bytes_that_are_no_code_stream(syntax: str) -> None:
    data = make_dicom(ramp("uint16"), syntax=syntax, frame=b"no code stream" * 10)
    assert rejection(data)[0] is Reason.CORRUPT_PIXELS


def test_rle_of_more_planes_than_a_pixel_has_bytes() -> None:
    frame = pack_rle([bytes(1024)] * 3)
    data = make_dicom(ramp("uint16"), syntax=uid.RLELossless, frame=frame)
    assert rejection(data) == (Reason.CORRUPT_PIXELS, "segments are not the bytes of a pixel")


def test_rle_of_more_bytes_than_the_image_is_not_unpacked() -> None:
    run = bytes([257 - 128, 7]) * 10_000  # 1.28 million sevens
    frame = np.array([2, 64, 66, *[0] * 13], "<u4").tobytes() + run
    data = make_dicom(ramp("uint16"), syntax=uid.RLELossless, frame=frame)
    assert rejection(data)[0] is Reason.CORRUPT_PIXELS


def test_two_frames_in_the_offset_table_are_two_frames() -> None:
    frame = lossless_jpeg(ramp("uint16"))
    table = np.array([0, len(frame) + 8], "<u4").tobytes()
    encapsulated = fragments([table, frame, frame])
    data = make_dicom(
        ramp("uint16"), syntax=uid.JPEGLossless, frame=b"\0\0", PixelData=encapsulated
    )
    assert rejection(data)[0] is Reason.MULTI_FRAME


def test_native_pixels_in_a_compressed_transfer_syntax() -> None:
    data = relabeled(make_dicom(), uid.ExplicitVRLittleEndian, uid.JPEG2000)
    assert rejection(data) == (Reason.CORRUPT_PIXELS, "not encapsulated")


def test_a_code_stream_in_a_native_transfer_syntax() -> None:
    data = make_dicom(ramp("uint16"), syntax=uid.JPEG2000, frame=j2k(ramp("uint16")))
    data = relabeled(data, uid.JPEG2000, uid.ExplicitVRLittleEndian)
    reason = (Reason.CORRUPT_PIXELS, "encapsulated, in a native transfer syntax")
    assert rejection(data) == reason


def test_fill_bytes_and_other_segments_before_the_frame_header_are_skipped() -> None:
    frame = lossless_jpeg(ramp("uint16"))
    filled = frame[:2] + b"\xff\xff\xfe\x00\x06note" + frame[2:]
    assert describe_jpeg(filled) == describe_jpeg(frame)


# Files of other writers that pydicom brings along


def read_pydicom_file(name: str) -> Slice:
    """One of pydicom's test files, made a CT slice."""
    dataset = pydicom.dcmread(TEST_FILES / name)
    keywords = ["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"]
    values = {keyword: dataset[keyword].value for keyword in [*keywords, "PixelData"]}
    syntax = dataset.file_meta.TransferSyntaxUID
    frame = b"encapsulated" if syntax.is_encapsulated else None
    return read_slice(make_dicom(syntax=syntax, frame=frame, **values))


TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"],
)
def test_pydicoms_files_as_it_reads_them(name: str) -> None:
    assert np.array_equal(stored(read_pydicom_file(name)), pixel_array(TEST_FILES / name, raw=True))


@pytest.mark.parametrize("name", ["693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pydicoms_jpeg_2000_as_pillow_reads_it(name: str) -> None:
    pytest.importorskip("PIL", reason="Pillow, the second decoder, is not installed")
    expected = pixel_array(TEST_FILES / name, raw=True, decoding_plugin="pillow")
    assert np.array_equal(stored(read_pydicom_file(name)), expected)


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_pydicoms_lossless_files_as_their_uncompressed_twin(name: str) -> None:
    twin = pixel_array(TEST_FILES / "MR_small.dcm", raw=True)
    assert np.array_equal(stored(read_pydicom_file(name)), twin)


@pytest.mark.parametrize(
    ("name", "total", "column"),
    [
        # GDCM 3.2.6, pylibjpeg-libjpeg 2.5.0 and pyjpegls 1.5.1 give the same.
        ("JPEGLSNearLossless_08.dcm", 25000, [255, 65, 15, 5, 0]),
        ("JPEGLSNearLossless_16.dcm", 6007250, [65535, 16385, 1025, 15, 0]),
        # 12-bit: pylibjpeg-libjpeg 2.5.0 is nowhere more than 1 from it.
        ("JPGExtended.dcm", 3767007, [1, 68, 14, 1]),
        ("JPEG-lossy.dcm", 3767007, [1, 68, 14, 1]),
    ],
)
def test_pydicoms_lossy_files_have_the_values_of_other_decoders(
    name: str, total: int, column: list[int]
) -> None:
    values = stored(read_pydicom_file(name))
    height, width = values.shape
    assert values.sum() == total
    assert values[:: height // 4, width // 2].tolist() == column


# One real CT slice in fourteen files


@pytest.fixture(scope="module")
def encodings(real_data: Path) -> dict[str, list[Slice]]:
    """The slices by transfer syntax, read from the files, not from their names."""
    slices: dict[str, list[Slice]] = {}
    for path in sorted((real_data / "encodings").iterdir()):
        source = read_slice(path.read_bytes())
        slices.setdefault(source.header.transfer_syntax, []).append(source)
    return slices


@pytest.fixture(scope="module")
def twin(encodings: dict[str, list[Slice]]) -> Slice:
    return encodings[uid.ExplicitVRLittleEndian][0]


def test_all_fourteen_files_are_read(encodings: dict[str, list[Slice]]) -> None:
    assert sorted(encodings) == sorted([*SAME, *map(str, LOSSY)])
    assert sum(map(len, encodings.values())) == 14


SAME = [
    *NATIVE,
    uid.RLELossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
]
LOSSY = {
    # 256 gray levels, 32 HU apart; one of the two files is compressed harder.
    uid.JPEGBaseline8Bit: 30,
    # 12 bits, 2 HU apart
    JPEG_SPECTRAL_SELECTION: 6,
    JPEG_FULL_PROGRESSION: 6,
    uid.JPEG2000: 6,
    uid.JPEGLSNearLossless: 1,
}


@pytest.mark.parametrize("syntax", SAME)
def test_real_lossless_encodings_are_the_uncompressed_twin(
    encodings: dict[str, list[Slice]], twin: Slice, syntax: str
) -> None:
    for source in encodings[syntax]:
        assert np.array_equal(source.pixels, twin.pixels)


@pytest.mark.parametrize(("syntax", "deviation"), LOSSY.items())
def test_real_lossy_encodings_are_near_the_uncompressed_twin(
    encodings: dict[str, list[Slice]], twin: Slice, syntax: str, deviation: float
) -> None:
    expected = hounsfield(twin)
    inside = expected > -1024
    for source in encodings[syntax]:
        assert (hounsfield(source) - expected)[inside].std() < deviation


def test_near_lossless_is_within_its_claim(encodings: dict[str, list[Slice]], twin: Slice) -> None:
    (source,) = encodings[uid.JPEGLSNearLossless]
    assert np.abs(stored(source) - stored(twin)).max() == 1  # NEAR of T.87


def test_both_progressive_jpegs_hold_the_same_coefficients(
    encodings: dict[str, list[Slice]],
) -> None:
    (first,), (second,) = encodings[JPEG_SPECTRAL_SELECTION], encodings[JPEG_FULL_PROGRESSION]
    assert np.array_equal(first.pixels, second.pixels)
    assert (first.pixels.min(), first.pixels.max()) == (497, 2708)
    # pylibjpeg-libjpeg 2.5.0 is nowhere more than 1 from it.
