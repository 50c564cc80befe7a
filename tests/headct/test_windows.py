import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.pixels import apply_windowing

from headct.windows import PRESETS, VoiFunction, Window, apply_windows, parse_window

BRAIN = Window("brain", 40, 80)


def test_levels_of_the_brain_window_are_those_worked_out_by_hand() -> None:
    # Black at 0 HU and below, white at 80 HU and above, 255 / 80 gray levels a HU between.
    hounsfield = np.array([-1000.0, 0.0, 20.0, 40.0, 79.0, 80.0, 3000.0])
    levels = apply_windows(hounsfield, [BRAIN])
    assert levels.tolist() == [[0], [0], [64], [128], [252], [255], [255]]
    assert levels.dtype == np.uint8


def test_levels_of_the_linear_function_are_those_of_the_standard() -> None:
    # PS3.3 C.11.2.1.2.1 with center 40, width 80: black to 0, white above 79 (39.5 + 39.5).
    hounsfield = np.array([-1.0, 0.0, 1.0, 39.5, 78.0, 79.0, 80.0])
    levels = apply_windows(hounsfield, [BRAIN], VoiFunction.LINEAR)[:, 0]
    assert levels.tolist() == [0, 0, 3, 128, 252, 255, 255]


def test_a_linear_window_of_width_one_is_a_threshold() -> None:
    # PS3.3 C.11.2.1.2.1: black up to center - 0.5, white above.
    levels = apply_windows(np.array([9.0, 9.5, 10.0]), [Window("", 10, 1)], VoiFunction.LINEAR)
    assert levels[:, 0].tolist() == [0, 0, 255]


def test_levels_of_the_sigmoid_function_are_those_of_the_standard() -> None:
    # PS3.3 C.11.2.1.3.1 with center 40, width 80: 255 / (1 + exp(-4 (x - 40) / 80)).
    hounsfield = np.array([-1e9, -3000.0, 0.0, 20.0, 40.0, 60.0, 80.0, 1e9])
    levels = apply_windows(hounsfield, [BRAIN], VoiFunction.SIGMOID)[:, 0]
    assert levels.tolist() == [0, 0, 30, 69, 128, 186, 225, 255]


@pytest.mark.parametrize("function", VoiFunction)
@pytest.mark.parametrize(
    ("center", "width"), [(40.0, 80.0), (35.5, 100.0), (600.0, 2800.0), (0, 1.5)]
)
def test_levels_are_those_of_pydicom(function: VoiFunction, center: float, width: float) -> None:
    hounsfield = np.arange(-2048.0, 2048.0)
    dataset = Dataset()
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsStored, dataset.PixelRepresentation = 12, 1
    dataset.WindowCenter, dataset.WindowWidth = center, width
    dataset.VOILUTFunction = function.name
    with np.errstate(over="ignore"):
        expected = (apply_windowing(hounsfield, dataset) + 2048) * 255 / 4095
    levels = apply_windows(hounsfield, [Window("w", center, width)], function)[:, 0]
    # LINEAR is black just above center - width/2 in pydicom: half a level, if the width is large.
    assert np.abs(levels - expected).max() <= 0.5 + 1e-9


def test_each_window_may_have_a_function_of_its_own() -> None:
    hounsfield = np.arange(-100.0, 200.0)
    windows = [BRAIN, Window("own", 50, 100), Window("third", 0, 300)]
    together = apply_windows(hounsfield, windows, [*VoiFunction])
    for channel, (window, function) in enumerate(zip(windows, VoiFunction, strict=True)):
        alone = apply_windows(hounsfield, [window], function)[:, 0]
        assert np.array_equal(together[:, channel], alone)


def test_each_window_is_a_channel_in_the_order_given() -> None:
    windows = [BRAIN, Window("wide", 0, 2000)]
    levels = apply_windows(np.array([[0.0, 1000.0]]), windows)
    assert levels.tolist() == [[[0, 128], [255, 255]]]


@given(
    st.lists(st.floats(-5000, 5000), min_size=2, max_size=20),
    st.floats(-1000, 1000),
    st.floats(0.5, 4000),
    st.sampled_from(VoiFunction),
)
def test_more_hounsfield_is_never_darker(
    values: list[float], center: float, width: float, function: VoiFunction
) -> None:
    levels = apply_windows(np.sort(values), [Window("any", center, width)], function)[:, 0]
    assert (np.diff(levels.astype(int)) >= 0).all()


def test_presets_and_other_windows_are_parsed() -> None:
    assert parse_window("subdural") == Window("subdural", 80, 200)
    assert parse_window(" narrow:32:8 ") == Window("narrow", 32, 8)
    assert parse_window("dicom") == Window("dicom", None, None)
    for text in ("subdural", "dicom", "narrow:32:8", "brain:40:90", "brain:50:80", "a:0.5:1e-05"):
        assert str(parse_window(text)) == text
    assert str(parse_window("brain:40:80")) == "brain"


def test_presets_are_those_that_were_published() -> None:
    # Center and width. The first three are those of the notebooks of RSNA 2019, the fourth is of
    # Turner and Holdsworth, Br J Radiol 2011;84:1061.
    published = {"brain": (40, 80), "subdural": (80, 200), "bone": (600, 2800), "stroke": (40, 40)}
    # Teaching gives ranges: L 20-60, W 350-400 for soft tissue, L 50-100, W 130-300 for blood.
    published["soft_tissue"] = ((20 + 60) / 2, (350 + 400) / 2)
    published["hematoma"] = ((50 + 100) / 2, (130 + 300) / 2)
    assert published == PRESETS


@pytest.mark.parametrize("text", ["lung", "a:1", "a:1:2:3", "a:b:c", ""])
def test_an_unknown_window_is_named_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="neither name:center:width nor one of brain"):
        parse_window(text)


@pytest.mark.parametrize("text", ["a:0:0", "a:0:-5", "a:nan:5", "a:0:inf"])
def test_a_window_that_shows_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="width above 0"):
        parse_window(text)


def test_each_window_has_a_function_or_all_have_one() -> None:
    with pytest.raises(ValueError, match="zip"):
        apply_windows(np.zeros(1), [Window("a", 40, 80)], [VoiFunction.LINEAR] * 2)
