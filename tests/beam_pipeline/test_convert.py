import numpy as np
import pytest

from beam_pipeline.convert import convert_slice, letterbox
from beam_pipeline.dicom import Header, Slice
from beam_pipeline.hounsfield import PixelEncoding, Repair, RepairPolicy
from beam_pipeline.windows import Window

WINDOWS = (Window("brain", 40, 80), Window("subdural", 80, 200), Window("bone", 600, 2800))
SIGNED = PixelEncoding(16, 16, 15, signed=True, slope=1.0, intercept=-1024.0)


def make_slice(pixels: np.ndarray, encoding: PixelEncoding = SIGNED) -> Slice:
    rows, columns = pixels.shape
    header = Header("", "p", "s", "e", 0.0, (0.5, 0.25), rows, columns, "1.2.840", encoding)
    return Slice(header, pixels.view(f"u{pixels.dtype.itemsize}"))


def oracle(hounsfield: np.ndarray) -> np.ndarray:
    """The windows as notebooks compute them, in float64."""
    channels = []
    for window in WINDOWS:
        lowest = window.center - window.width / 2
        channels.append(np.clip((hounsfield - lowest) / window.width, 0, 1) * 255)
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize("slope", [1.0, 0.5, 2.0])
def test_the_table_gives_what_float64_arithmetic_gives(slope: float) -> None:
    stored = np.arange(-32768, 32768, dtype=np.int16).reshape(256, 256)
    encoding = PixelEncoding(16, 16, 15, signed=True, slope=slope, intercept=-1000.0)
    image = convert_slice(make_slice(stored, encoding), WINDOWS, 256, RepairPolicy.AUTO)
    difference = image.pixels - oracle(stored.astype(float) * slope - 1000.0)
    assert np.abs(difference).max() <= 0.5
    assert image.repair is Repair.NONE
    assert not image.resized


@pytest.mark.parametrize("count", [1, 2, 3])
def test_there_is_a_channel_for_each_window(count: int) -> None:
    stored = np.arange(1024, 2048, dtype=np.int16).reshape(32, 32)
    image = convert_slice(make_slice(stored), WINDOWS[:count], 32, RepairPolicy.OFF)
    expected = np.floor(oracle(stored - 1024.0) + 0.5)[..., :count]
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.pixels.flags.c_contiguous


def test_a_wrapped_file_is_repaired_and_says_so() -> None:
    stored = np.full((32, 32), 3096, np.uint16)  # air of -1000 HU, wrapped
    stored[8:24, 8:24] = 40
    encoding = PixelEncoding(16, 12, 11, signed=False, slope=1.0, intercept=0.0)
    image = convert_slice(make_slice(stored, encoding), WINDOWS, 32, RepairPolicy.AUTO)
    assert image.repair is Repair.SHIFT
    assert image.pixels[0, 0].tolist() == [0, 0, 0]
    assert image.pixels[16, 16, 0] == 128


def test_another_size_is_fitted_and_the_spacing_follows() -> None:
    stored = np.full((64, 32), 1064, np.int16)  # 40 HU
    image = convert_slice(make_slice(stored), WINDOWS[:1], 32, RepairPolicy.AUTO)
    assert image.resized
    assert image.pixel_spacing == (1.0, 0.5)
    assert image.pixels.shape == (32, 32, 1)
    assert image.pixels[:, 8:24].min() == image.pixels[:, 8:24].max() == 128
    assert image.pixels[:, :8].max() == image.pixels[:, 24:].max() == 0


def test_shrinking_averages_areas() -> None:
    pixels = np.array([[[0], [100]], [[100], [200]]], np.uint8)
    assert letterbox(pixels, 1, np.zeros(1, np.uint8)).tolist() == [[[100]]]


def test_the_border_has_the_colour_given() -> None:
    pixels = np.full((2, 4, 2), 9, np.uint8)
    fitted = letterbox(pixels, 4, np.array([1, 2], np.uint8))
    assert fitted[0, 0].tolist() == fitted[3, 3].tolist() == [1, 2]
    assert fitted[1, 0].tolist() == fitted[2, 3].tolist() == [9, 9]
