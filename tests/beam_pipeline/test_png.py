"""OpenCV and TensorFlow, which share no code with us, read what we write."""

import os
import struct
import zlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from beam_pipeline.images.convert import blank_scanlines, encode_png
from tests.processes import run_python

KINDS = [(1, "uint8"), (2, "uint8"), (3, "uint8"), (4, "uint8"), (1, "uint16")]
IMAGE = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def encoded(image: np.ndarray) -> bytes:
    """A PNG of an image, [height, width, channels]."""
    scanlines, pixels = blank_scanlines(*image.shape, image.dtype.name)
    pixels[:] = image
    return encode_png(scanlines, pixels)


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
    decoded = read_with_opencv(encoded(image), channels)
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_tensorflow_reads_it(channels: int, dtype: str) -> None:
    tf = pytest.importorskip("tensorflow")
    image = noise(channels, dtype)
    # 0 leaves the file's own channels; TensorFlow does not take 2.
    decoded = tf.io.decode_png(encoded(image), 0, tf.as_dtype(dtype)).numpy()
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_scanlines_are_the_image_in_pngs_layout(channels: int, dtype: str) -> None:
    image = noise(channels, dtype)
    scanlines, pixels = blank_scanlines(*image.shape, dtype)
    pixels[:] = image
    assert scanlines[:, 0].tolist() == [0] * 5
    assert scanlines[:, 1:].tobytes() == image.astype(image.dtype.newbyteorder(">")).tobytes()


# Images whose later rows begin as the first does: with 100 gray levels, few other rows repeat.
ENCODE_MANY = """
import hashlib
import numpy as np
from beam_pipeline.images.convert import blank_scanlines, encode_png

generator = np.random.default_rng(0)
checksum = hashlib.sha256()
scanlines, pixels = blank_scanlines(12, 40, 1, "uint8")
for _ in range(20_000):
    image = generator.integers(0, 100, (12, 40, 1), np.uint8)
    image[7:, :6] = image[0, :6]
    pixels[:] = image
    checksum.update(encode_png(scanlines, pixels))
print(checksum.hexdigest())
"""


def test_every_process_encodes_alike(full: bool) -> None:
    """Each has its memory elsewhere, which the bytes must not depend on."""
    assert len({run_python("-c", ENCODE_MANY).stdout for _ in range(8 if full else 4)}) == 1


@st.composite
def images(draw: st.DrawFn) -> np.ndarray:
    channels, dtype = draw(st.sampled_from(KINDS))
    size = st.integers(1, 20)
    shape = draw(size), draw(size), channels
    return draw(arrays.arrays(dtype, shape))


@given(images())
@settings(deadline=None, max_examples=50)
def test_round_trip(image: np.ndarray) -> None:
    np.testing.assert_array_equal(read_with_opencv(encoded(image), image.shape[2]), image)


def test_a_pixel_by_hand() -> None:
    """One gray pixel of 16 bits: the filter byte, then the value, big-endian."""
    png = encoded(np.full((1, 1, 1), 0x1234, np.uint16))
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
