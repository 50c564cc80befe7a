import dataclasses

import numpy as np
import pytest

from beam_pipeline.dicom.header import OTHER_FUNCTION, VOI_FUNCTIONS, Header
from beam_pipeline.dicom.hounsfield import PixelEncoding, Repair, RepairPolicy
from beam_pipeline.dicom.slices import Slice
from beam_pipeline.images.convert import convert_slice, letterbox
from beam_pipeline.options import ImageOptions
from headct.reasons import Rejected
from headct.windows import VoiFunction, Window, apply_windows

WINDOWS = (Window("brain", 40, 80), Window("subdural", 80, 200), Window("bone", 600, 2800))
WINDOWS += (Window("stroke", 40, 40),)
SIGNED = PixelEncoding(16, 16, 15, signed=True, slope=1.0, intercept=-1024.0)


def make_slice(
    pixels: np.ndarray,
    encoding: PixelEncoding = SIGNED,
    window: tuple[float, float] | None = None,
) -> Slice:
    rows, columns = pixels.shape
    header = Header(
        position_z=0.0,
        pixel_spacing=(0.5, 0.25),
        rows=rows,
        columns=columns,
        transfer_syntax="1.2.840.10008.1.2",
        encoding=encoding,
    )
    header = dataclasses.replace(header, window=window)
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
    options = ImageOptions(windows=WINDOWS, image_size=256, hu_repair=RepairPolicy.OFF)
    image = convert_slice(make_slice(stored, encoding), options)
    difference = image.pixels - oracle(stored.astype(float) * slope - 1000.0)
    assert np.abs(difference).max() <= 0.5
    assert image.repair is Repair.NONE
    assert not image.resized


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_there_is_a_channel_for_each_window(count: int) -> None:
    stored = np.arange(1024, 2048, dtype=np.int16).reshape(32, 32)
    image = convert_slice(make_slice(stored), ImageOptions(windows=WINDOWS[:count], image_size=32))
    expected = np.floor(oracle(stored - 1024.0) + 0.5)[..., :count]
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.pixels.strides[1:] == (count, 1)  # within a row nothing is between the samples


def test_hounsfield_units_are_stored_with_an_offset_and_clipped() -> None:
    stored = np.zeros((32, 32), np.int16)
    stored[0, :4] = [-2000, 0, 1024, 32767]  # -3024, -1024, 0 and 31743 HU
    image = convert_slice(make_slice(stored), ImageOptions(windows=(), image_size=32))
    assert image.pixels.dtype == ">u2"
    assert image.pixels.shape == (32, 32, 1)
    assert image.pixels[0, :4, 0].tolist() == [0, 0, 1024, 32767]


def test_hounsfield_units_above_what_16_bits_hold_are_clipped() -> None:
    # 65535 holds 65535 - 1024 HU; at a slope of 2 stored values are an even number of HU.
    encoding = dataclasses.replace(SIGNED, signed=False, slope=2.0)
    stored = np.full((32, 32), 65535, np.uint16)
    stored[0, :2] = [32767, 32768]
    options = ImageOptions(windows=(), image_size=32, hu_repair=RepairPolicy.OFF)
    image = convert_slice(make_slice(stored, encoding), options)
    assert image.pixels[0, :3, 0].tolist() == [65534, 65535, 65535]


def test_hounsfield_units_are_rounded_and_letterboxed_on_air() -> None:
    stored = np.full((32, 64), 3, np.int16)
    encoding = dataclasses.replace(SIGNED, slope=0.5, intercept=0.0)
    image = convert_slice(make_slice(stored, encoding), ImageOptions(windows=(), image_size=64))
    assert image.pixels[32, 32, 0] == 1024 + 2  # 1.5 HU, rounded half up
    assert image.pixels[0, 0, 0] == 0


def test_the_window_of_the_file_itself() -> None:
    stored = np.arange(1024, 2048, dtype=np.int16).reshape(32, 32)
    spec = ImageOptions(windows=(Window("dicom", None, None), WINDOWS[1]), image_size=32)
    image = convert_slice(make_slice(stored, window=(40.0, 80.0)), spec)
    np.testing.assert_array_equal(
        image.pixels[..., 0], np.floor(oracle(stored - 1024.0)[..., 0] + 0.5)
    )
    with pytest.raises(Rejected, match="WindowCenter, WindowWidth"):
        convert_slice(make_slice(stored), spec)


@pytest.mark.parametrize("voi", VoiFunction)
@pytest.mark.parametrize("written", ["", *VOI_FUNCTIONS])
def test_the_window_of_the_file_itself_has_the_function_that_the_file_names(
    voi: VoiFunction, written: str
) -> None:
    stored = np.arange(1024, 2048, dtype=np.int16).reshape(32, 32)
    source = make_slice(stored, window=(40.0, 80.0))
    source = Slice(dataclasses.replace(source.header, voi_function=written), source.pixels)
    windows = (WINDOWS[1], Window("dicom", None, None))
    image = convert_slice(source, ImageOptions(windows=windows, image_size=32, voi=voi))
    own = VoiFunction(written.lower()) if written else voi
    expected = [
        apply_windows(stored - 1024.0, [WINDOWS[1]], voi),
        apply_windows(stored - 1024.0, [WINDOWS[0]], own),
    ]
    np.testing.assert_array_equal(image.pixels, np.concatenate(expected, axis=-1))


def test_another_function_is_rejected_where_the_window_of_the_file_itself_is_asked_for() -> None:
    stored = np.arange(1024, 2048, dtype=np.int16).reshape(32, 32)
    source = make_slice(stored, window=(40.0, 80.0))
    source = Slice(dataclasses.replace(source.header, voi_function=OTHER_FUNCTION), source.pixels)
    convert_slice(source, ImageOptions(windows=WINDOWS, image_size=32))
    with pytest.raises(Rejected, match="VOILUTFunction is none of LINEAR, LINEAR_EXACT, SIGMOID"):
        convert_slice(source, ImageOptions(windows=(Window("dicom", None, None),)))


def test_the_function_of_the_windows_is_an_option() -> None:
    stored = np.full((32, 32), 1024 + 79, np.int16)  # 79 HU
    stored[0, 0] = 0
    exact = convert_slice(make_slice(stored), ImageOptions(windows=WINDOWS[:1], image_size=32))
    linear = convert_slice(
        make_slice(stored), ImageOptions(windows=WINDOWS[:1], image_size=32, voi=VoiFunction.LINEAR)
    )
    assert (exact.pixels.max(), linear.pixels.max()) == (252, 255)


def test_a_wrapped_file_is_repaired_and_says_so() -> None:
    stored = np.full((32, 32), 3096, np.uint16)  # air of -1000 HU, wrapped
    stored[8:24, 8:24] = 40
    encoding = PixelEncoding(16, 12, 11, signed=False, slope=1.0, intercept=0.0)
    image = convert_slice(
        make_slice(stored, encoding), ImageOptions(windows=WINDOWS, image_size=32)
    )
    assert image.repair is Repair.SHIFT
    assert image.pixels[0, 0].tolist() == [0, 0, 0, 0]
    assert image.pixels[16, 16, 0] == 128


def test_another_size_is_fitted_and_the_spacing_follows() -> None:
    stored = np.full((64, 32), 1064, np.int16)  # 40 HU
    image = convert_slice(make_slice(stored), ImageOptions(windows=WINDOWS[:1], image_size=32))
    assert image.resized
    assert image.pixel_spacing == (1.0, 0.5)
    assert image.pixels.shape == (32, 32, 1)
    assert image.pixels[:, 8:24].min() == image.pixels[:, 8:24].max() == 128
    assert image.pixels[:, :8].max() == image.pixels[:, 24:].max() == 0


def test_shrinking_averages_areas() -> None:
    pixels = np.array([[[0], [100]], [[100], [200]]], np.uint8)
    assert letterbox(pixels, 1, np.zeros(1, np.uint8)).tolist() == [[[100]]]
    rim = np.zeros((8, 8, 1), np.uint8)
    rim[:, 0] = 200  # a quarter of what becomes one pixel
    assert letterbox(rim, 2, np.zeros(1, np.uint8))[..., 0].tolist() == [[50, 0], [50, 0]]


def test_enlarging_is_linear() -> None:
    pixels = np.array([[[0], [100]], [[0], [100]]], np.uint8)
    assert letterbox(pixels, 4, np.zeros(1, np.uint8))[0, :, 0].tolist() == [0, 25, 75, 100]


@pytest.mark.parametrize("thin", [(100, 1), (1, 100)])
def test_what_is_thinner_than_a_pixel_is_one_wide_and_left_of_the_middle(
    thin: tuple[int, int],
) -> None:
    fitted = letterbox(np.full((*thin, 1), 9, np.uint8), 10, np.zeros(1, np.uint8))[..., 0]
    line = fitted.any(axis=0 if thin[1] == 1 else 1)
    assert np.flatnonzero(line).tolist() == [4]


def test_the_border_has_the_color_given() -> None:
    pixels = np.full((2, 4, 2), 9, np.uint8)
    fitted = letterbox(pixels, 4, np.array([1, 2], np.uint8))
    assert fitted[0, 0].tolist() == fitted[3, 3].tolist() == [1, 2]
    assert fitted[1, 0].tolist() == fitted[2, 3].tolist() == [9, 9]
