"""OpenCV and TensorFlow, which share no code with us, read what we write."""

import os
import struct
import subprocess
import sys
import zlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from beam_pipeline.images.png import (
    PngHeader,
    Scanlines,
    decode_png,
    encode_png,
    read_png_header,
)

KINDS = [(1, "uint8"), (2, "uint8"), (3, "uint8"), (4, "uint8"), (1, "uint16")]
IMAGE = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def noise(channels: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1 << 16, (5, 7, channels)).astype(dtype)


def read_with_opencv(png: bytes, channels: int) -> np.ndarray:
    """The image in our order of channels; OpenCV's is BGR, and gray with alpha becomes BGRA."""
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    order = {1: ..., 2: [0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    return decoded[..., None] if channels == 1 else decoded[..., order]


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_opencv_reads_it(channels: int, dtype: str) -> None:
    image = noise(channels, dtype)
    decoded = read_with_opencv(encode_png(Scanlines.of(image)), channels)
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_tensorflow_reads_it(channels: int, dtype: str) -> None:
    tf = pytest.importorskip("tensorflow")
    image = noise(channels, dtype)
    # 0 leaves the file's own channels; TensorFlow does not take 2.
    decoded = tf.io.decode_png(encode_png(Scanlines.of(image)), 0, tf.as_dtype(dtype)).numpy()
    np.testing.assert_array_equal(decoded, image)


def test_an_image_that_was_filled_in_is_encoded_as_any_other() -> None:
    lines = Scanlines.blank(*IMAGE.shape)
    lines.pixels[:] = IMAGE
    assert encode_png(lines) == encode_png(Scanlines.of(IMAGE))


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_scanlines_keep_the_image_that_they_are_of(channels: int, dtype: str) -> None:
    image = noise(channels, dtype)
    lines = Scanlines.of(image)
    np.testing.assert_array_equal(lines.pixels, image)
    assert lines.rows[:, 0].tolist() == [0] * 5
    assert lines.rows[:, 1:].tobytes() == image.astype(image.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("first", [0, 7])
def test_a_view_of_memory_like_that_of_scanlines_is_encoded_as_any_other(first: int) -> None:
    whole = np.full((5, 8), 200, np.uint8)
    whole[:, 0] = first
    part = whole[:, 1:].reshape(5, 7, 1)
    assert encode_png(Scanlines.of(part)) == encode_png(Scanlines.of(part.copy()))


# Images whose later rows begin as the first does: with 100 gray levels, few other rows repeat.
ENCODE_MANY = """
import hashlib
import numpy as np
from beam_pipeline.images.png import Scanlines, encode_png

generator = np.random.default_rng(0)
checksum = hashlib.sha256()
for _ in range(20_000):
    image = generator.integers(0, 100, (12, 40, 1), np.uint8)
    image[7:, :6] = image[0, :6]
    checksum.update(encode_png(Scanlines.of(image)))
print(checksum.hexdigest())
"""


def test_every_process_encodes_alike() -> None:
    """Each has its memory elsewhere, which the bytes must not depend on."""
    command = [sys.executable, "-c", ENCODE_MANY]
    runs = [subprocess.run(command, capture_output=True, check=True) for _ in range(4)]
    assert len({run.stdout for run in runs}) == 1


@st.composite
def images(draw: st.DrawFn) -> np.ndarray:
    channels, dtype = draw(st.sampled_from(KINDS))
    size = st.integers(1, 20)
    shape = draw(size), draw(size), channels
    return draw(arrays.arrays(dtype, shape))


@given(images())
@settings(deadline=None, max_examples=50)
def test_round_trip(image: np.ndarray) -> None:
    png = encode_png(Scanlines.of(image))
    np.testing.assert_array_equal(read_with_opencv(png, image.shape[2]), image)
    header = read_png_header(png)
    assert header == PngHeader(image.shape, str(image.dtype))
    decoded = decode_png(png, header)
    np.testing.assert_array_equal(decoded, image)
    assert decoded.dtype == image.dtype


def test_a_pixel_by_hand() -> None:
    """One gray pixel of 16 bits: the filter byte, then the value, big-endian."""
    png = encode_png(Scanlines.of(np.full((1, 1, 1), 0x1234, np.uint16)))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert png[8:33] == (
        struct.pack(">I", 13)
        + b"IHDR"
        + struct.pack(">IIBBBBB", 1, 1, 16, 0, 0, 0, 0)
        + struct.pack(">I", zlib.crc32(png[12:29]))
    )
    (length,) = struct.unpack(">I", png[33:37])
    assert zlib.decompress(png[41 : 41 + length]) == b"\x00\x12\x34"
    assert png[-12:] == b"\x00\x00\x00\x00IEND\xae\x42\x60\x82"


def test_an_image_that_is_not_contiguous() -> None:
    image = np.arange(10 * 14 * 3, dtype=np.uint8).reshape(10, 14, 3)[::2, ::-2]
    np.testing.assert_array_equal(read_with_opencv(encode_png(Scanlines.of(image)), 3), image)


def test_the_same_image_is_the_same_bytes() -> None:
    assert encode_png(Scanlines.of(IMAGE)) == encode_png(Scanlines.of(IMAGE.copy()))


@pytest.mark.parametrize(
    "shape", [(5, 7), (5, 7, 5), (5, 7, 0), (0, 7, 3), (5, 0, 3), (1, 5, 7, 3)]
)
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot write shape"):
        encode_png(Scanlines.of(np.zeros(shape, np.uint8)))


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "float32", "bool"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"cannot write dtype {dtype}"):
        encode_png(Scanlines.of(np.zeros((5, 7, 1), dtype)))


def as_png(header: bytes, *streams: bytes) -> bytes:
    """A PNG of any IHDR content, with an IDAT chunk for each part of its stream."""
    chunks = [(b"IHDR", header), *((b"IDAT", stream) for stream in streams), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


HEADER = struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0)  # 2 x 3 gray pixels of 8 bits
ROWS = b"\0\1\2\3\0\4\5\6"


@pytest.mark.parametrize(
    "png",
    [
        pytest.param(as_png(HEADER, zlib.compress(ROWS)), id="as we write it"),
        pytest.param(as_png(HEADER, zlib.compress(b"\1\1\1\1\2\3\3\3")), id="filtered rows"),
        pytest.param(as_png(HEADER, zlib.compress(ROWS)[:5], zlib.compress(ROWS)[5:]), id="2 IDAT"),
        pytest.param(
            as_png(HEADER[:-1] + b"\1", zlib.compress(b"\0\1\0\3\0\2\0\4\5\6")), id="interlaced"
        ),
    ],
)
def test_pngs_of_other_writers_are_decoded(png: bytes) -> None:
    pixels = decode_png(png, read_png_header(png))
    np.testing.assert_array_equal(pixels[..., 0], [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(zlib.compress(ROWS[:-1]), id="a pixel less"),
        pytest.param(zlib.compress(ROWS + b"\0"), id="a pixel more"),
        pytest.param(zlib.compress(ROWS)[:-1] + b"\xff", id="another checksum"),
        pytest.param(zlib.compress(ROWS)[:-4], id="no checksum"),
        pytest.param(b"nothing deflated", id="no stream"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_damaged_stream_in_sound_chunks_is_found(stream: bytes) -> None:
    png = as_png(HEADER, stream)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_png(png, read_png_header(png))


def test_every_flipped_bit_is_found() -> None:
    png = encode_png(Scanlines.of(IMAGE))
    for place in range(8 * len(png)):
        damaged = bytearray(png)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match="PNG"):
            read_png_header(bytes(damaged))


def test_every_cut_is_found() -> None:
    png = encode_png(Scanlines.of(IMAGE))
    for length in range(len(png)):
        with pytest.raises(ValueError, match="PNG"):
            read_png_header(png[:length])


def test_a_png_of_another_kind() -> None:
    palette = struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 1, 1, 8, 3, 0, 0, 0)
    palette += struct.pack(">I", zlib.crc32(palette[4:]))
    rest = encode_png(Scanlines.of(IMAGE))[33:]
    with pytest.raises(ValueError, match="another kind"):
        read_png_header(b"\x89PNG\r\n\x1a\n" + palette + rest)
