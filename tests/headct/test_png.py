import io
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from headct import png as module
from headct.manifest import ImageSpec
from headct.png import check_png, decode_pngs
from tests.trainer.png_files import (
    chunk,
    header,
    interlaced_png,
    palette_png,
    plain_png,
    png,
    png_of_parts,
    png_with_chunks,
    unfiltered,
)

KINDS = [(channels, dtype) for channels in (1, 2, 3, 4) for dtype in ("uint8", "uint16")]


def noise(channels: int, dtype: str, height: int = 13, width: int = 9) -> np.ndarray:
    random = np.random.default_rng(channels)
    return random.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def spec_of(image: np.ndarray) -> ImageSpec:
    return ImageSpec(*image.shape, str(image.dtype), 0)


def decoded(data: bytes, image: ImageSpec) -> np.ndarray:
    pixels = np.full((1, image.height, image.width, image.channels), 77, image.dtype)
    decode_pngs([data], image, pixels)
    return pixels[0]


def by_tensorflow(data: bytes, image: ImageSpec) -> np.ndarray:
    channels = 0 if image.channels == 2 else image.channels
    return tf.io.decode_png(data, channels, tf.as_dtype(image.dtype)).numpy()


def by_cv2(image: np.ndarray) -> bytes:
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[image.shape[2]]
    return cv2.imencode(".png", image[..., order])[1].tobytes()


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_plain_pngs_need_no_other_decoder(
    channels: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(channels, dtype)
    data = plain_png(image)
    expected = by_tensorflow(data, spec_of(image))
    monkeypatch.delattr(module, "_decode_any")
    np.testing.assert_array_equal(decoded(data, spec_of(image)), image)
    np.testing.assert_array_equal(expected, image)


def test_several_pngs_are_each_in_their_place() -> None:
    images = np.stack([noise(3, "uint8") + i for i in range(5)]).astype(np.uint8)
    others = {1: interlaced_png, 3: png_with_chunks}
    data = [others.get(i, plain_png)(image) for i, image in enumerate(images)]
    pixels = np.zeros((10, *images.shape[1:]), np.uint8)
    decode_pngs(data, spec_of(images[0]), pixels[::2])
    np.testing.assert_array_equal(pixels[::2], images)
    assert not pixels[1::2].any()


WRITERS: list[Callable[[np.ndarray], bytes]] = [
    lambda image: tf.io.encode_png(image).numpy(),
    interlaced_png,
    png_with_chunks,
    lambda image: png_of_parts(image, (1, 30)),
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_pngs_of_other_writers_have_the_same_pixels(
    channels: int, dtype: str, write: Callable[[np.ndarray], bytes]
) -> None:
    image = noise(channels, dtype)
    data = write(image)
    np.testing.assert_array_equal(decoded(data, spec_of(image)), image)
    np.testing.assert_array_equal(by_tensorflow(data, spec_of(image)), image)


@pytest.mark.parametrize(("channels", "dtype"), [k for k in KINDS if k[0] != 2])
def test_pngs_of_opencv(channels: int, dtype: str) -> None:
    image = np.cumsum(noise(channels, dtype), axis=1).astype(dtype)
    np.testing.assert_array_equal(decoded(by_cv2(image), spec_of(image)), image)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_pngs_of_pillow(channels: int, mode: str) -> None:
    image = np.cumsum(noise(channels, "uint8"), axis=1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.frombytes(mode, (9, 13), image.tobytes()).save(buffer, "png", optimize=True)
    np.testing.assert_array_equal(decoded(buffer.getvalue(), spec_of(image)), image)


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_a_single_filtered_row_is_seen(channels: int, dtype: str, kind: int) -> None:
    image = noise(channels, dtype)
    rows = bytearray(unfiltered(image))
    rows[(len(rows) // 13) * 12] = kind
    data = plain_png(image, bytes(rows))
    found = decoded(data, spec_of(image))
    np.testing.assert_array_equal(found, by_tensorflow(data, spec_of(image)))
    assert (found != image).any()


def test_gray_and_palettes_stand_for_rgb() -> None:
    gray, rgb = noise(1, "uint8"), ImageSpec(13, 9, 3, "uint8", 0)
    np.testing.assert_array_equal(decoded(plain_png(gray), rgb), np.repeat(gray, 3, axis=2))
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    data = palette_png(gray[..., 0], palette)
    np.testing.assert_array_equal(decoded(data, rgb), palette[gray[..., 0]])


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ((3, "uint8"), (1, "uint8")),
        ((4, "uint8"), (3, "uint8")),
        ((3, "uint8"), (4, "uint8")),
        ((1, "uint8"), (2, "uint8")),
        ((2, "uint8"), (3, "uint8")),
        ((1, "uint8"), (1, "uint16")),
        ((1, "uint16"), (1, "uint8")),
    ],
)
def test_nothing_is_converted_in_silence(stored: tuple[int, str], wanted: tuple[int, str]) -> None:
    with pytest.raises(
        ValueError, match=rf"13 x 9 x {stored[0]} {stored[1]}, where .* {wanted[1]}"
    ):
        decoded(plain_png(noise(*stored)), ImageSpec(13, 9, *wanted, 0))


@pytest.mark.parametrize(("height", "width"), [(13, 10), (12, 9), (9, 13), (60000, 60000)])
def test_another_size_is_known_from_the_header(height: int, width: int) -> None:
    image = noise(1, "uint8")
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = plain_png(image).replace(header(image), size)
    with pytest.raises(ValueError, match=f"its PNG has {height} x {width} x 1 uint8, where"):
        decoded(data, spec_of(image))


IMAGE = noise(3, "uint8")
ROWS = unfiltered(IMAGE)
PLAIN = plain_png(IMAGE)


def with_data(data: bytes) -> bytes:
    return png(header(IMAGE), chunk(b"IDAT", data))


DAMAGED = {
    "nothing": b"",
    "no png": b"GIF89a" + PLAIN[6:],
    "signature": PLAIN[:8],
    "header only": PLAIN[:29],
    "cut": PLAIN[:-30],
    "no end": PLAIN[:-12],
    "no data": png(header(IMAGE)),
    "row missing": plain_png(IMAGE, ROWS[:-28]),
    "byte missing": plain_png(IMAGE, ROWS[:-1]),
    "byte too many": plain_png(IMAGE, ROWS + b"\0"),
    "endless": plain_png(IMAGE, ROWS + bytes(1 << 24)),
    "unknown filter": plain_png(IMAGE, b"\x09" + ROWS[1:]),
    "adler": with_data(zlib.compress(ROWS)[:-1] + b"\0"),
    "no adler": with_data(zlib.compress(ROWS)[:-4]),
    "no zlib": with_data(zlib.compress(ROWS)[2:]),
    "stored pixel": with_data(zlib.compress(ROWS, 0).replace(ROWS[100:110], bytes(10))),
    "filtered and cut": tf.io.encode_png(IMAGE).numpy()[:-40],
}


def test_a_whole_png_has_all_its_chunks() -> None:
    for write in (plain_png, *WRITERS):
        check_png(write(IMAGE))
    ends = [PLAIN[:length] for length in range(len(PLAIN))]
    flips = [PLAIN[:at] + bytes([PLAIN[at] ^ 4]) + PLAIN[at + 1 :] for at in range(len(PLAIN))]
    for data in (*ends, *flips, PLAIN + b"\0"):
        with pytest.raises(ValueError, match="its PNG is damaged"):
            check_png(data)


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"its PNG is damaged|its image is no PNG"):
        decoded(DAMAGED[name], spec_of(IMAGE))
