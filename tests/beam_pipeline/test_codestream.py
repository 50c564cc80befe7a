"""Headers of code streams, worked out by hand, and of any bytes at all."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from beam_pipeline.dicom.codestream import CodeStream, bare_j2k, describe_j2k, describe_jpeg
from beam_pipeline.errors import Reason, Rejected

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
    assert describe_j2k(SIZ + END) == CodeStream(512, 256, 1, 12, signed=True)


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
        (SIZ[:-1] + b"\x02" + END, Reason.CORRUPT_PIXELS),
        (SIZ, Reason.TRUNCATED_PIXELS),
    ],
)
def test_what_is_no_whole_jpeg_2000(frame: bytes, reason: Reason) -> None:
    with pytest.raises(Rejected) as caught:
        describe_j2k(frame)
    assert caught.value.reason is reason


def test_jp2_boxes_are_taken_off() -> None:
    boxes = bytes.fromhex("0000000c 6a502020 0d0a870a 00000014 66747970")
    assert bare_j2k(boxes + SIZ) == SIZ
    assert bare_j2k(SIZ) == SIZ


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
