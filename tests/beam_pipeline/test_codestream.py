"""Headers of code streams, worked out by hand, and of any bytes at all."""

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from beam_pipeline.dicom.slices import CodeStream, describe_j2k, describe_jpeg
from headct.reasons import Reason, Rejected

APP0 = bytes.fromhex("ffe0 0006 4a464946")
SOF3 = bytes.fromhex("ffc3 000b 10 0200 0100 01 010000")  # 16 bits, 512 x 256, 1 component
SOF55 = bytes.fromhex("fff7 000b 0c 0001 ffff 01 010000")
SIZ = bytes.fromhex(
    "ff4fff51 0029 0000 00000110 00000204 00000010 00000004"  # 256 x 512, with offsets
    "00000110 00000204 00000000 00000000 0001 8b 01 01"  # one signed component of 12 bits
)
END = b"\xff\xd9"


def test_jpeg() -> None:
    assert describe_jpeg(b"\xff\xd8" + APP0 + SOF3 + END) == CodeStream(512, 256, 1, 16)


def test_jpeg_ls() -> None:
    assert describe_jpeg(b"\xff\xd8" + SOF55 + END + b"\0") == CodeStream(1, 65535, 1, 12)


def test_jpeg_2000() -> None:
    assert describe_j2k(SIZ + END) == CodeStream(512, 256, 1, 12)


@pytest.mark.parametrize(("depth", "precision"), [(0x0B, 12), (0x7F, 128), (0x80, 1)])
def test_the_sign_of_a_jpeg_2000_sample_is_no_part_of_its_depth(depth: int, precision: int) -> None:
    stream = describe_j2k(SIZ[:40] + bytes([1, 3, depth, 1, 1]) + END)
    assert (stream.precision, stream.components) == (precision, 0x0103)


@pytest.mark.parametrize("marker", range(0xBF, 0xD0))
def test_a_frame_starts_at_the_markers_of_table_b_1(marker: int) -> None:
    frame = b"\xff\xd8\xff" + bytes([marker]) + SOF3[2:] + END
    # Reserved, Huffman tables, an extension, arithmetic conditioning
    if marker in (0xBF, 0xC4, 0xC8, 0xCC):
        with pytest.raises(Rejected, match="no frame header"):
            describe_jpeg(frame)
    else:
        assert describe_jpeg(frame).rows == 512


@pytest.mark.parametrize(
    "between", ["ff01", "ffd0", "ffd7", "ffd8", "ff", "ffff", "ff02 0003 ff", "ffda 0002", "ffd9"]
)
def test_what_stands_before_the_frame_header_is_passed_over(between: str) -> None:
    frame = b"\xff\xd8" + bytes.fromhex(between) + SOF3 + END
    if between[:4] in ("ffda", "ffd9"):  # after the scan, and the end, there is none
        with pytest.raises(Rejected, match="no frame header"):
            describe_jpeg(frame)
    else:
        assert describe_jpeg(frame).rows == 512


def test_a_frame_header_is_described_if_all_of_it_is_there() -> None:
    frame = bytes.fromhex("ffd8 ffc3 0008 10 ffd9 0100 01")  # an end marker is in its rows
    assert describe_jpeg(frame + END) == CodeStream(0xFFD9, 0x0100, 1, 16)
    with pytest.raises(Rejected, match="no end"):
        describe_jpeg(frame)
    with pytest.raises(Rejected, match="no frame header"):
        describe_jpeg(frame[:-1])


SOS = bytes.fromhex("ffda 0008 01 0100 01 0000")
JPEG_DATA = bytes.fromhex("ff00 1234 ffd0 ff00 d9")  # stuffed, with a restart
JPEG_LS_DATA = bytes.fromhex("ff7f ff00 d9 ff01")


def test_a_thousand_scans_are_the_most() -> None:
    frame = b"\xff\xd8" + SOF3 + SOS * 1000
    assert describe_jpeg(frame + END).rows == 512
    assert describe_jpeg(frame + END + SOS).rows == 512
    with pytest.raises(Rejected, match="more than 1000 scans"):
        describe_jpeg(frame + SOS + END)


COMMENT = bytes.fromhex("fffe 0004 ffd9")
TILE = bytes.fromhex("ff90 000a 0000 00000014 0001 ff93 ffff 1234 5678")  # of 20 bytes
LAST_TILE = bytes.fromhex("ff90 000a 0000 00000000 0001 ff93 1234")  # up to the end
EMPTY_TILE = bytes.fromhex("ff90 000a 0000 0000000e 0001 ff93")  # of 14 bytes, the fewest
J2K_COMMENT = bytes.fromhex("ff64 0005 ffd9 00")


@pytest.mark.parametrize(
    ("describe", "frame"),
    [
        (describe_jpeg, b"\xff\xd8" + SOF3 + SOS + JPEG_DATA + END),
        (describe_jpeg, b"\xff\xd8" + SOF3 + COMMENT + SOS + JPEG_DATA + SOS + JPEG_DATA + END),
        (describe_jpeg, b"\xff\xd8" + SOF55 + SOS + JPEG_LS_DATA + END),
        (describe_j2k, SIZ + TILE + TILE + END),
        (describe_j2k, SIZ + EMPTY_TILE + END),
        (describe_j2k, SIZ + J2K_COMMENT + TILE + END),
    ],
)
@pytest.mark.parametrize("behind", [b"", b"\0", bytes(15), bytes(5000), END, b"\1\2\xff\xd9\3" * 9])
def test_an_image_ends_at_its_own_end(
    describe: Callable[[bytes], CodeStream], frame: bytes, behind: bytes
) -> None:
    assert describe(frame + behind).size == len(frame)
    with pytest.raises(Rejected, match="no end"):
        describe(frame[:-2] + bytes(20))


def test_a_tile_part_of_unknown_or_wrong_length_lasts_to_the_last_end() -> None:
    for tile in (LAST_TILE, TILE.replace(b"\x14", b"\x15"), TILE.replace(b"\x14", b"\x04")):
        frame = SIZ + tile + END
        assert describe_j2k(frame + bytes(100)).size == len(frame)


def test_another_image_in_the_data_of_a_jpeg_is_none_of_it() -> None:
    frame = b"\xff\xd8" + SOF3 + SOS + JPEG_DATA
    with pytest.raises(Rejected, match="another image begins"):
        describe_jpeg(frame + b"\xff\xd8" + SOF3 + END)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", Reason.CORRUPT_PIXELS),
        (b"\xff\xd8" + APP0 + SOF3, Reason.TRUNCATED_PIXELS),
        (b"\xff\xd8" + APP0 + END, Reason.CORRUPT_PIXELS),
        (b"\xff\xd8" + SOF3[:6] + END, Reason.CORRUPT_PIXELS),
        (b"\xff\xd8" + b"\xff\xda\0\2" + SOF3 + END, Reason.CORRUPT_PIXELS),
        (b"\xff\xd8" + b"\0" + SOF3 + END, Reason.CORRUPT_PIXELS),
    ],
)
def test_what_is_no_whole_jpeg(frame: bytes, reason: Reason) -> None:
    with pytest.raises(Rejected) as caught:
        describe_jpeg(frame)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", Reason.CORRUPT_PIXELS),
        (SIZ[:-1] + END[:1], Reason.TRUNCATED_PIXELS),
        (SIZ[:-2], Reason.CORRUPT_PIXELS),
        (SIZ[:-1], Reason.CORRUPT_PIXELS),
        (SIZ[:-2] + b"\x02\x01" + END, Reason.CORRUPT_PIXELS),
        (SIZ[:-1] + b"\x02" + END, Reason.CORRUPT_PIXELS),
        (SIZ, Reason.TRUNCATED_PIXELS),
    ],
)
def test_what_is_no_whole_jpeg_2000(frame: bytes, reason: Reason) -> None:
    with pytest.raises(Rejected) as caught:
        describe_j2k(frame)
    assert caught.value.reason is reason


@given(st.binary(max_size=64), st.sampled_from([describe_jpeg, describe_j2k]))
@example(b"\xff", describe_jpeg)
@example(b"\xff" * 10, describe_jpeg)
def test_any_bytes_are_described_or_rejected(data: bytes, describe: object) -> None:
    assert callable(describe)
    for beginning in (b"", b"\xff\xd8\xff", SIZ[:20]):
        try:
            stream = describe(beginning + data + END)
        except Rejected:
            continue
        assert isinstance(stream, CodeStream)
