"""Stored bits to HU, with values worked out by hand, and the choice of a repair."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipeline.dicom.hounsfield import (
    PADDING_HU,
    PixelEncoding,
    Repair,
    RepairPolicy,
    choose_repair,
    hounsfield_table,
    stored_values,
)
from beam_pipeline.dicom.slices import read_slice

WRAPPED = PixelEncoding(16, 12, 11, signed=False, slope=1.0, intercept=0.0)


@st.composite
def encodings(draw: st.DrawFn) -> PixelEncoding:
    allocated = draw(st.sampled_from([8, 16]))
    high_bit = draw(st.integers(0, allocated - 1))
    stored = draw(st.integers(1, high_bit + 1))
    signed = draw(st.booleans())
    return PixelEncoding(allocated, stored, high_bit, signed=signed, slope=1.0, intercept=0.0)


@given(encodings(), st.data())
def test_a_value_placed_in_its_bits_is_read_back_whatever_the_other_bits(
    encoding: PixelEncoding, data: st.DataObject
) -> None:
    span = 1 << encoding.bits_stored
    lowest = -(span // 2) if encoding.signed else 0
    value = data.draw(st.integers(lowest, lowest + span - 1))
    noise = data.draw(st.integers(0, (1 << encoding.bits_allocated) - 1))
    shift = encoding.high_bit + 1 - encoding.bits_stored
    mask = (span - 1) << shift
    pattern = ((value % span) << shift) | (noise & ~mask)
    assert stored_values(encoding)[pattern] == value


@pytest.mark.parametrize(
    ("encoding", "pattern", "value"),
    [
        (PixelEncoding(16, 16, 15, True, 1, 0), 0xF830, -2000),
        (PixelEncoding(16, 16, 15, False, 1, 0), 0xF830, 63536),
        (PixelEncoding(16, 12, 11, True, 1, 0), 0x0C18, -1000),
        (PixelEncoding(16, 12, 11, True, 1, 0), 0xFC18, -1000),
        (PixelEncoding(16, 12, 15, True, 1, 0), 0xC18F, -1000),
        (PixelEncoding(16, 12, 11, False, 1, 0), 0x8C18, 3096),
        (PixelEncoding(8, 8, 7, True, 1, 0), 0xFF, -1),
        (PixelEncoding(8, 7, 7, False, 1, 0), 0xFF, 127),
    ],
)
def test_stored_values_worked_out_by_hand(
    encoding: PixelEncoding, pattern: int, value: int
) -> None:
    assert stored_values(encoding)[pattern] == value


@pytest.mark.parametrize(("allocated", "patterns"), [(8, 256), (16, 65536)])
def test_a_table_has_an_entry_for_each_bit_pattern(allocated: int, patterns: int) -> None:
    encoding = PixelEncoding(allocated, 7, 6, signed=False, slope=1.0, intercept=0.0)
    assert stored_values(encoding).shape == (patterns,)
    assert hounsfield_table(encoding, Repair.NONE).shape == (patterns,)


def test_slope_and_intercept() -> None:
    encoding = PixelEncoding(16, 12, 11, signed=False, slope=2.5, intercept=-4047.0)
    table = hounsfield_table(encoding, Repair.NONE)
    assert table[[0, 1, 2, 4095]].tolist() == [-4047.0, -4044.5, -4042.0, 6190.5]


def test_padding_is_air_both_ends_included() -> None:
    encoding = PixelEncoding(16, 16, 15, True, 1.0, -1024.0, padding=(-2000, -1998))
    patterns = np.array([-2001, -2000, -1999, -1998, -1997], np.int16).view(np.uint16)
    table = hounsfield_table(encoding, Repair.NONE)
    assert table[patterns].tolist() == [-3025, PADDING_HU, PADDING_HU, PADDING_HU, -3021]


def test_the_two_repairs_agree_but_from_2048_to_3095() -> None:
    shift = hounsfield_table(WRAPPED, Repair.SHIFT)[:4096]
    extend = hounsfield_table(WRAPPED, Repair.SIGN_EXTEND)[:4096]
    places = [0, 40, 2047, 2048, 3071, 3072, 3095, 3096, 4095]
    assert shift[places].tolist() == [0, 40, 2047, 2048, 3071, 3072, 3095, -1000, -1]
    assert extend[places].tolist() == [0, 40, 2047, -2048, -1025, -1024, -1001, -1000, -1]
    assert np.flatnonzero(shift != extend).tolist() == list(range(2048, 3096))


@given(st.lists(st.integers(0, 4095), min_size=1))
def test_shift_is_the_repair_published_for_rsna_2019(stored: list[int]) -> None:
    pixels = np.array(stored) + 1000
    pixels[pixels >= 4096] -= 4096
    expected = pixels - 1000  # the published intercept
    assert hounsfield_table(WRAPPED, Repair.SHIFT)[stored].tolist() == expected.tolist()


def head(air: int, corner: int | None = None) -> np.ndarray:
    """A 64 x 64 head of 40 HU with a skull of 1800, in air."""
    pixels = np.full((64, 64), air, np.uint16)
    pixels[16:48, 16:48] = 1800
    pixels[18:46, 18:46] = 40
    if corner is not None:
        y, x = np.mgrid[-31.5:32, -31.5:32]
        pixels[np.hypot(y, x) > 32] = corner
    return pixels


def noisy(pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(7).normal(0, 5, pixels.shape).round().astype(int)
    return (pixels.astype(int) + noise).clip(0, 4095).astype(np.uint16)


def with_metal(pixels: np.ndarray, value: int) -> np.ndarray:
    pixels[30:32, 20:40] = value
    return pixels


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        pytest.param(head(0), Repair.NONE, id="air cut off at 0"),
        pytest.param(noisy(head(24)), Repair.NONE, id="air near 0"),
        pytest.param(with_metal(head(0), 4095), Repair.NONE, id="metal and no wrap"),
        pytest.param(with_metal(head(0), 3080), Repair.NONE, id="metal at -1016, if wrapped"),
        pytest.param(head(3096), Repair.SHIFT, id="air clipped at -1000"),
        pytest.param(head(3096, corner=0), Repair.SHIFT, id="padded with 0"),
        pytest.param(with_metal(head(3096), 2600), Repair.SHIFT, id="metal of 2600 HU"),
        pytest.param(with_metal(head(3096), 3095), Repair.SHIFT, id="metal clipped at 3095 HU"),
        pytest.param(head(3072), Repair.SIGN_EXTEND, id="air clipped at -1024"),
        pytest.param(noisy(head(3096)), Repair.SIGN_EXTEND, id="noise around -1000"),
        pytest.param(head(3096, corner=3072), Repair.SIGN_EXTEND, id="padded with -1024"),
        pytest.param(head(3096, corner=2096), Repair.SIGN_EXTEND, id="padded with -2000"),
    ],
)
def test_auto_looks_at_the_values(pixels: np.ndarray, expected: Repair) -> None:
    assert choose_repair(pixels, WRAPPED, RepairPolicy.AUTO) is expected


def in_air(*where: tuple[int, int], value: int) -> np.ndarray:
    """80 x 80 pixels of wrapped air of -1000 HU, with a value in some places."""
    pixels = np.full((80, 80), 3096, np.uint16)
    for place in where:
        pixels[place] = value
    return pixels


def middle(count: int) -> list[tuple[int, int]]:
    """Places outside of the corners' blocks, which are of 10 x 10 pixels."""
    return [(40, column) for column in range(count)]


@pytest.mark.parametrize(
    ("value", "count", "expected"),
    [
        (3096, 319, Repair.NONE),  # of 6400: 5 % are 320
        (3096, 320, Repair.SHIFT),
        (3072, 320, Repair.SIGN_EXTEND),
        (3071, 320, Repair.NONE),  # -1025 HU is not air of a 12-bit range
    ],
)
def test_a_twentieth_of_wrapped_air_shows_a_wrap(value: int, count: int, expected: Repair) -> None:
    pixels = np.zeros((80, 80), np.uint16)
    pixels.reshape(-1)[1600 : 1600 + count] = value
    assert choose_repair(pixels, WRAPPED, RepairPolicy.AUTO) is expected


@pytest.mark.parametrize(
    ("value", "count", "expected"),
    [
        (3094, 6, Repair.SHIFT),  # of 6400: a thousandth are 6.4
        (3094, 7, Repair.SIGN_EXTEND),
        (3072, 7, Repair.SIGN_EXTEND),
        (3071, 7, Repair.SHIFT),
        (3095, 7, Repair.SHIFT),  # where metal is clipped
    ],
)
def test_a_thousandth_of_noise_shows_sign_extension(
    value: int, count: int, expected: Repair
) -> None:
    pixels = in_air(*middle(count), value=value)
    assert choose_repair(pixels, WRAPPED, RepairPolicy.AUTO) is expected


def test_a_thousandth_itself_is_noise() -> None:
    pixels = np.full((100, 100), 3096, np.uint16)
    pixels[50, :10] = 3094
    assert choose_repair(pixels, WRAPPED, RepairPolicy.AUTO) is Repair.SIGN_EXTEND


INNERMOST = [(9, 9), (9, 70), (70, 9), (70, 70)]  # of the four blocks of 10 x 10 pixels


@pytest.mark.parametrize(
    ("places", "value", "expected"),
    [
        (INNERMOST, 2048, Repair.SIGN_EXTEND),  # of 400: a hundredth are 4
        (INNERMOST[:3], 2048, Repair.SHIFT),
        (INNERMOST, 3095, Repair.SIGN_EXTEND),
        (INNERMOST, 2047, Repair.SHIFT),  # +2047 HU by both
        ([*INNERMOST[:3], (70, 69)], 2048, Repair.SHIFT),
        ([*INNERMOST[:3], (69, 70)], 2048, Repair.SHIFT),
        ([*INNERMOST[1:], (9, 10)], 2048, Repair.SHIFT),
        ([*INNERMOST[1:], (10, 9)], 2048, Repair.SHIFT),
        ([(0, 0), (0, 79), (79, 0), (79, 79)], 2048, Repair.SIGN_EXTEND),
    ],
)
def test_a_hundredth_of_the_corners_shows_padding(
    places: list[tuple[int, int]], value: int, expected: Repair
) -> None:
    pixels = in_air(*places, value=value)
    assert choose_repair(pixels, WRAPPED, RepairPolicy.AUTO) is expected


def test_an_eighth_of_a_side_is_rounded_up() -> None:
    pixels = np.full((81, 33), 3096, np.uint16)  # blocks of 11 x 5: 220 pixels
    for place in [(10, 4), (10, 28), (70, 28)]:
        pixels[place] = 2048
    assert choose_repair(pixels, WRAPPED, RepairPolicy.AUTO) is Repair.SIGN_EXTEND


@pytest.mark.parametrize(
    ("bits", "intercept", "may"),
    [(12, -99, True), (12, -100, False), (11, 0, False), (13, 0, False)],
)
def test_12_bits_with_an_intercept_above_minus_100_may_be_wrapped(
    bits: int, intercept: float, may: bool
) -> None:
    encoding = PixelEncoding(16, bits, bits - 1, signed=False, slope=1.0, intercept=intercept)
    assert encoding.may_be_wrapped is may


def test_bits_outside_the_stored_ones_do_not_decide() -> None:
    assert choose_repair(head(3096) | 0xF000, WRAPPED, RepairPolicy.AUTO) is Repair.SHIFT


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (RepairPolicy.AUTO, Repair.SIGN_EXTEND),
        (RepairPolicy.OFF, Repair.NONE),
        (RepairPolicy.SHIFT, Repair.SHIFT),
        (RepairPolicy.SIGN_EXTEND, Repair.SIGN_EXTEND),
    ],
)
def test_the_policy_decides_over_the_values(policy: RepairPolicy, expected: Repair) -> None:
    assert choose_repair(head(3072), WRAPPED, policy) is expected


@pytest.mark.parametrize(
    "encoding",
    [
        PixelEncoding(16, 12, 11, signed=False, slope=1.0, intercept=-1024.0),
        PixelEncoding(16, 12, 11, signed=False, slope=1.0, intercept=-1000.0),
        PixelEncoding(16, 12, 11, signed=False, slope=2.0, intercept=0.0),
        PixelEncoding(16, 12, 11, signed=True, slope=1.0, intercept=0.0),
        PixelEncoding(16, 16, 15, signed=False, slope=1.0, intercept=0.0),
    ],
)
@pytest.mark.parametrize("policy", RepairPolicy)
def test_no_policy_touches_a_file_whose_header_allows_no_wrap(
    encoding: PixelEncoding, policy: RepairPolicy
) -> None:
    assert choose_repair(head(3096), encoding, policy) is Repair.NONE


def test_no_real_file_of_a_usual_intercept_is_repaired(real_data: Path) -> None:
    for path in sorted((real_data / "rsna" / "slices").iterdir()):
        source = read_slice(path.read_bytes())
        encoding = source.header.encoding
        assert encoding.intercept in (-1024, -1000)
        for policy in RepairPolicy:
            assert choose_repair(source.pixels, encoding, policy) is Repair.NONE


@pytest.mark.parametrize(("lowest", "highest"), [(-1024, 2047), (-2048, 2047), (-1000, 3095)])
def test_real_slices_wrapped_on_purpose_are_made_whole(
    real_data: Path, lowest: int, highest: int
) -> None:
    for path in sorted((real_data / "rsna" / "slices").iterdir())[::9]:
        source = read_slice(path.read_bytes())
        table = hounsfield_table(source.header.encoding, Repair.NONE)
        hounsfield = table[source.pixels].clip(lowest, highest)
        wrapped = (hounsfield.astype(int) % 4096).astype(np.uint16)
        repair = choose_repair(wrapped, WRAPPED, RepairPolicy.AUTO)
        assert np.array_equal(hounsfield_table(WRAPPED, repair)[wrapped], hounsfield)
