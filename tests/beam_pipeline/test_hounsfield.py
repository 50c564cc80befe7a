"""Stored bits to HU, with values worked out by hand, and the choice of a repair."""

from dataclasses import replace
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
from headct.reasons import Reason, Rejected

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
def test_no_policy_unwraps_a_file_whose_header_allows_no_wrap(
    encoding: PixelEncoding, policy: RepairPolicy
) -> None:
    pixels = head(3096)
    pixels[:28], pixels[-28:] = 0, 0  # a tenth of wrapped air is left, in the middle
    assert choose_repair(pixels, encoding, policy) is Repair.NONE


# Values that contradict the header


def words(hounsfield: np.ndarray, bits: int = 16) -> np.ndarray:
    """Integers in two's complement."""
    return (hounsfield.astype(int) % (1 << bits)).astype(np.uint16)


def slice_of(seed: int = 0, *, noise: float = 6, padding: int | None = None) -> np.ndarray:
    """Hounsfield units of a 64 x 64 head in air, int64; perhaps padded outside of the circle."""
    y, x = np.mgrid[-31.5:32, -31.5:32]
    distance = np.hypot(x / 0.8, y)
    hounsfield = np.select([distance < 26, distance < 30], [35.0, 1200.0], -1000.0)
    hounsfield += np.random.default_rng(seed).normal(0, noise, hounsfield.shape)
    hounsfield = np.rint(hounsfield).clip(-1024, 3000).astype(int)
    if padding is not None:
        hounsfield[np.hypot(x, y) > 32] = padding
    return hounsfield


def of_bits(
    bits: int,
    *,
    signed: bool = False,
    intercept: float = 0.0,
    slope: float = 1.0,
    high_bit: int | None = None,
    padding: int | None = None,
) -> PixelEncoding:
    high_bit = bits - 1 if high_bit is None else high_bit
    pads = None if padding is None else (padding, padding)
    return PixelEncoding(16, bits, high_bit, signed, slope, intercept, pads)


PADDED = slice_of(padding=-3024)
HEAD = slice_of()
CONTRADICTIONS = [
    # Pixel Representation 0 of signed words
    pytest.param(words(HEAD), of_bits(16), Repair.SIGNED, HEAD, id="signed"),
    pytest.param(words(PADDED), of_bits(16), Repair.SIGNED, PADDED, id="signed, padded"),
    pytest.param(
        words(PADDED + 1024), of_bits(16, intercept=-1024), Repair.SIGNED, PADDED, id="padding only"
    ),
    pytest.param(
        words(PADDED),
        of_bits(16, padding=65536 - 3024),
        Repair.SIGNED,
        PADDED.clip(-1024),
        id="padding that is marked, unsigned",
    ),
    pytest.param(
        words(PADDED, 13),
        of_bits(13, padding=-3024),
        Repair.SIGNED,
        PADDED.clip(-1024),
        id="padding that is marked, signed",
    ),
    pytest.param(
        words(HEAD * 10), of_bits(16, slope=0.1), Repair.SIGNED, HEAD, id="signed, in tenths"
    ),
    *(
        pytest.param(words(HEAD, bits), of_bits(bits), Repair.SIGNED, HEAD, id=f"{bits} bits")
        for bits in (13, 14, 15)
    ),
    *(
        pytest.param(
            words(PADDED + 1024, bits),
            of_bits(bits, intercept=-1024),
            Repair.SIGNED,
            PADDED,
            id=f"padding only, {bits} bits",
        )
        for bits in (13, 14, 15)
    ),
    pytest.param(
        words(slice_of(noise=25) + 1000),
        of_bits(16, intercept=-1000),
        Repair.SIGNED,
        slice_of(noise=25),
        id="noise of air only",
    ),
    # Pixel Representation 1 of unsigned words
    pytest.param(
        words(HEAD + 32768),
        of_bits(16, signed=True, intercept=-32768),
        Repair.UNSIGNED,
        HEAD,
        id="unsigned",
    ),
    # High Bit
    *(
        pytest.param(
            words(HEAD + 1024),
            of_bits(12, intercept=-1024, high_bit=high_bit),
            Repair.LOW_BITS,
            HEAD,
            id=f"High Bit {high_bit}",
        )
        for high_bit in (12, 13, 15)
    ),
    pytest.param(
        words(HEAD, 12), of_bits(12, signed=True, high_bit=15), Repair.LOW_BITS, HEAD, id="masked"
    ),
    pytest.param(
        words(HEAD), of_bits(12, signed=True, high_bit=15), Repair.LOW_BITS, HEAD, id="extended"
    ),
    pytest.param(
        words(HEAD + 1024) << 4,
        of_bits(12, intercept=-1024, high_bit=15),
        Repair.NONE,
        HEAD,
        id="where High Bit says",
    ),
    pytest.param(
        words(HEAD, 12) << 4,
        of_bits(12, signed=True, high_bit=15),
        Repair.NONE,
        HEAD,
        id="where High Bit says, signed",
    ),
]


@pytest.mark.parametrize(("pixels", "encoding", "repair", "expected"), CONTRADICTIONS)
def test_values_tell_where_the_header_is_wrong(
    pixels: np.ndarray, encoding: PixelEncoding, repair: Repair, expected: np.ndarray
) -> None:
    assert choose_repair(pixels, encoding, RepairPolicy.AUTO) is repair
    found = hounsfield_table(encoding, repair)[pixels]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert choose_repair(pixels, encoding, RepairPolicy.OFF) is Repair.NONE


def with_block(hounsfield: np.ndarray, share: float, value: int) -> np.ndarray:
    """A square in the middle of another value."""
    changed, side = hounsfield.copy(), round(32 * share**0.5)
    changed[32 - side : 32 + side, 32 - side : 32 + side] = value
    return changed


@pytest.mark.parametrize(
    ("pixels", "encoding"),
    [
        pytest.param(HEAD + 1024, of_bits(16, intercept=-1024), id="unsigned"),
        pytest.param(words(HEAD), of_bits(16, signed=True), id="signed"),
        pytest.param(words(HEAD), of_bits(12, signed=True), id="12 bits, extended"),
        pytest.param(words(HEAD, 12), of_bits(12, signed=True), id="12 bits, masked"),
        pytest.param(words(PADDED + 1024), of_bits(16, signed=True, intercept=-1024), id="padded"),
        pytest.param(
            words(slice_of(padding=-33792) + 1024),
            of_bits(16, signed=True, intercept=-1024),
            id="padded with the lowest word",
        ),
        *(
            pytest.param(
                words(with_block(HEAD, share, 26452) + 1024),
                of_bits(16, signed=signed, intercept=-1024),
                id=f"metal in {share:g}, signed {signed}",
            )
            for share in (0.002, 0.1, 0.2)
            for signed in (False, True)
        ),
        pytest.param(
            (HEAD + 8192), of_bits(16, intercept=-8192), id="an extended scale, as of Siemens"
        ),
    ],
)
def test_no_false_alarm(pixels: np.ndarray, encoding: PixelEncoding) -> None:
    pixels = pixels.astype(np.uint16)
    assert choose_repair(pixels, encoding, RepairPolicy.AUTO) is Repair.NONE


@pytest.mark.parametrize(
    ("pixels", "encoding", "detail"),
    [
        pytest.param(
            words(HEAD), of_bits(16, intercept=-1024), "HU, which no scanner", id="both wrong"
        ),
        pytest.param(
            words(slice_of(noise=0)), of_bits(16, intercept=-1024), "HU", id="both, no noise"
        ),
        pytest.param(words(HEAD, 12), of_bits(12, intercept=-1024), "HU", id="both, 12 bits"),
        pytest.param(
            words(HEAD + 1024), of_bits(16, signed=True, intercept=1024), "HU", id="sign lost"
        ),
        pytest.param(
            words(HEAD + 1024),
            of_bits(16, signed=True, slope=10, intercept=-1024),
            "HU",
            id="slope",
        ),
        pytest.param(
            with_block(HEAD + 1024, 0.005, 65535),
            of_bits(16, intercept=-1024),
            "values of -10.. to 64511 HU, which no scanner produces: see PixelRepresentation",
            id="a mark of one value",
        ),
        pytest.param(
            (HEAD + 1024 << 4) | 5, of_bits(12, intercept=-1024, high_bit=15), "HighBit 15, but"
        ),
        pytest.param(
            HEAD + 1024 | 0x8000, of_bits(12, intercept=-1024, high_bit=15), "HighBit 15, but"
        ),
        pytest.param(words(HEAD, 12), of_bits(12, high_bit=15), "HighBit and PixelRepresentation"),
    ],
)
def test_impossible_values_that_nothing_certain_explains_are_rejected(
    pixels: np.ndarray, encoding: PixelEncoding, detail: str
) -> None:
    pixels = pixels.astype(np.uint16)
    for policy in (RepairPolicy.AUTO, RepairPolicy.SHIFT):
        if encoding.high_bit == 15 and encoding.may_be_wrapped and policy is RepairPolicy.SHIFT:
            continue
        with pytest.raises(Rejected, match=detail) as caught:
            choose_repair(pixels, encoding, policy)
        assert caught.value.reason is Reason.INVALID_ATTRIBUTE
    assert choose_repair(pixels, encoding, RepairPolicy.OFF) is Repair.NONE


@pytest.mark.parametrize("value", [2000, 2001])
def test_a_slice_brighter_than_bone_in_a_third_is_rejected(value: int) -> None:
    pixels = (with_block(HEAD, 1 / 3, value) + 1024).astype(np.uint16)
    encoding = of_bits(16, intercept=-1024)
    if value == 2000:  # the densest bone
        assert choose_repair(pixels, encoding, RepairPolicy.AUTO) is Repair.NONE
    else:
        with pytest.raises(Rejected, match=r"values of -10\d\d to 2001 HU"):
            choose_repair(pixels, encoding, RepairPolicy.AUTO)


@pytest.mark.parametrize(
    ("values", "possible"),
    [
        ([32767], True),
        ([32768], False),
        ([-32768, -32767], True),
        ([-32769], True),  # one low value may be padding
        ([-32769, -32770], False),
    ],
)
def test_no_scanner_has_more_than_16_bits_of_hounsfield_units(
    values: list[int], possible: bool
) -> None:
    hounsfield = HEAD.copy()
    hounsfield[30, 30 : 30 + len(values)] = values
    signed = values[0] < 0
    encoding = of_bits(16, signed=signed, intercept=-1024)
    if possible:
        assert choose_repair(words(hounsfield + 1024), encoding, RepairPolicy.AUTO) is Repair.NONE
    else:
        with pytest.raises(Rejected, match="which no scanner produces"):
            choose_repair(words(hounsfield + 1024), encoding, RepairPolicy.AUTO)


@pytest.mark.parametrize(
    ("rows", "bright", "values", "possible"),
    [
        (64, 0, [32768], False),
        (64, 30, [-32769, -32770], True),  # black in any window
        (64, 31, [-32769, -32770], False),  # more than 1.5 % of 32 rows are brighter than bone
        (63, 0, [-32769, -32770], False),
        (31, 0, [-32769, -32770], False),
    ],
)
def test_one_row_of_two_is_searched_for_low_values_in_64_rows_and_all_for_high_ones(
    rows: int, bright: int, values: list[int], possible: bool
) -> None:
    hounsfield = HEAD[:rows].copy()
    hounsfield[28, 10 : 10 + bright] = 2500
    hounsfield[29, 30 : 30 + len(values)] = values
    encoding = of_bits(16, signed=values[0] < 0, intercept=-1024)
    if possible:
        assert choose_repair(words(hounsfield + 1024), encoding, RepairPolicy.AUTO) is Repair.NONE
    else:
        with pytest.raises(Rejected, match="which no scanner produces"):
            choose_repair(words(hounsfield + 1024), encoding, RepairPolicy.AUTO)


@pytest.mark.parametrize("value", [2000, 2001])
def test_corners_brighter_than_bone_are_no_air(value: int) -> None:
    hounsfield = with_block(slice_of(padding=value), 0.1, 3000)
    pixels, encoding = (hounsfield + 1024).astype(np.uint16), of_bits(16, intercept=-1024)
    if value == 2000:
        assert choose_repair(pixels, encoding, RepairPolicy.AUTO) is Repair.NONE
    else:
        with pytest.raises(Rejected, match="to 3000 HU, which no scanner produces"):
            choose_repair(pixels, encoding, RepairPolicy.AUTO)


@pytest.mark.parametrize(("count", "shown"), [(40, True), (41, False)])
def test_a_hundredth_of_values_below_air_may_be_beside_the_padding(count: int, shown: bool) -> None:
    hounsfield = slice_of(noise=0, padding=-3024)  # of 4096 pixels
    hounsfield[30:32].reshape(-1)[:count] = -2000
    check_sign(words(hounsfield + 1024), of_bits(16, intercept=-1024), shown=shown)


@pytest.mark.parametrize(
    ("tissue", "shown"), [(-151, False), (-150, True), (150, True), (151, False)]
)
def test_padding_alone_shows_a_sign_only_beside_soft_tissue(tissue: int, shown: bool) -> None:
    hounsfield = slice_of(noise=0, padding=-3024)
    hounsfield[hounsfield == 35] = tissue
    check_sign(words(hounsfield + 1024), of_bits(16, intercept=-1024), shown=shown)


@pytest.mark.parametrize(
    ("air", "shown"), [(-1201, False), (-1200, True), (-800, True), (-799, False)]
)
def test_without_soft_tissue_a_sign_is_shown_by_air(air: int, shown: bool) -> None:
    hounsfield = slice_of(noise=0)
    hounsfield[hounsfield == 35] = 1200
    hounsfield[hounsfield == -1000] = air
    check_sign(words(hounsfield), of_bits(16), shown=shown)


@pytest.mark.parametrize(("padding", "shown"), [(-4096, True), (-4097, False)])
def test_padding_is_at_most_a_12_bit_word_below_zero(padding: int, shown: bool) -> None:
    hounsfield = slice_of(noise=0, padding=padding)
    check_sign(words(hounsfield + 1024), of_bits(16, intercept=-1024), shown=shown)


def check_sign(pixels: np.ndarray, encoding: PixelEncoding, *, shown: bool) -> None:
    """Impossible values are signed ones, or nothing tells what they are."""
    if shown:
        assert choose_repair(pixels, encoding, RepairPolicy.AUTO) is Repair.SIGNED
    else:
        with pytest.raises(Rejected, match="which no scanner produces"):
            choose_repair(pixels, encoding, RepairPolicy.AUTO)


@pytest.mark.parametrize("repair", [Repair.NONE, Repair.SHIFT])
def test_a_table_that_series_share_cannot_be_changed(repair: Repair) -> None:
    with pytest.raises(ValueError, match="read-only"):
        hounsfield_table(WRAPPED, repair)[0] = 1


def test_real_slices_said_to_have_the_other_sign_are_made_whole_or_were_so(real_data: Path) -> None:
    seen = set()
    for path in sorted((real_data / "rsna" / "slices").iterdir())[::5]:
        source = read_slice(path.read_bytes())
        expected = hounsfield_table(source.header.encoding, Repair.NONE)[source.pixels]
        in_hounsfield = expected.astype(int)
        for encoding, pixels in (
            (
                replace(source.header.encoding, bits_stored=16, high_bit=15, signed=False),
                source.pixels,
            ),
            (of_bits(16), words(in_hounsfield)),
            (of_bits(12, signed=True, high_bit=15), words(in_hounsfield.clip(-2048, 2047))),
            (of_bits(16, signed=True, intercept=-32768), words(in_hounsfield + 32768)),
            (of_bits(13), words(in_hounsfield.clip(-4096, 4095), 13)),
        ):
            repair = choose_repair(pixels, encoding, RepairPolicy.AUTO)
            found = hounsfield_table(encoding, repair)[pixels]
            limit = {12: 2047, 13: 4095}.get(encoding.bits_stored, 32767)
            assert np.array_equal(found, expected.clip(-limit - 1, limit)), path.name
            seen.add(repair)
    assert seen == {Repair.NONE, Repair.SIGNED, Repair.UNSIGNED, Repair.LOW_BITS}


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
