"""Conversion of stored pixel values to Hounsfield units; repair of badly encoded files.

A table holds the Hounsfield units of all bit patterns of a pixel (at most 65,536 entries), so that
a slice costs one look-up per pixel.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headct.reasons import Reason, Rejected

PADDING_HU = -1024.0  # the lowest value of the 12-bit range CT scanners use

Patterns = NDArray[np.uint8] | NDArray[np.uint16]

_WRAP = 4096  # values of a 12-bit word
_NEGATIVE = 2048  # the lowest 12-bit word that two's complement reads as negative
_LOWEST_WRAPPED = 3072  # -1024 HU, wrapped
_LOWEST_SHIFTED = 3096  # -1000 HU, wrapped
# More than a tenth of a head CT is air. Values at the top of the 12-bit range are wrapped air: bone
# is darker, and metal fills far less.
_WRAPPED_AIR_FRACTION = 0.05
# Noise of air has far more pixels below -1000 HU than metal has in the same few values.
_NOISE_FRACTION = 0.001
# The area outside the field of view contains only padding, no metal.
_PADDING_FRACTION = 0.01
_CORNER = 8  # a corner block, an eighth of the sides, lies outside the inscribed circle

# No scanner produces values beyond this range; metal and extended scales reach about 30,000 HU.
_LOWEST_HU, _HIGHEST_HU = -32768.0, 32767.0
_BONE_HU = 2000.0  # the densest cortical bone; teeth and metal are brighter, in few pixels
_AIR_HU = (-1200.0, -800.0)  # including noise
_SOFT_TISSUE_HU = (-150.0, 150.0)  # from fat to clotted blood
_PADDED_HU = -4096.0  # scanners do not pad with lower values
# Above this share of pixels brighter than bone, all values are examined; real head slices have at
# most 0.2 %. The corners are a sixteenth of the image.
_BRIGHT_FRACTION = 0.03
_ROWS_LOOKED_AT = 32  # evenly spaced rows for the fast check
_MOST = 0.5
_MUCH = 0.25  # more metal than any head has
_FEW = 0.01
_TISSUE_FRACTION = 0.0005  # such as in the last slice of a head, a cut through the skin
_NEARLY_ALL = 0.95


class Repair(StrEnum):
    """Repair of a badly encoded file's values."""

    NONE = "none"
    SHIFT = "shift"
    SIGN_EXTEND = "sign_extend"
    SIGNED = "signed"
    UNSIGNED = "unsigned"
    LOW_BITS = "low_bits"


class RepairPolicy(StrEnum):
    """Policy of repairs: chosen per file, off, or one of two repairs always."""

    AUTO = "auto"
    OFF = "off"
    SHIFT = "shift"
    SIGN_EXTEND = "sign_extend"


@dataclass(frozen=True)
class PixelEncoding:
    """Conversion of a stored pixel's bits to Hounsfield units (DICOM PS3.3 C.7.6.3, C.11.1).

    Attributes:
        bits_allocated: 8 or 16.
        bits_stored: number of bits of the value.
        high_bit: position of the value's most significant bit.
        signed: two's complement (Pixel Representation 1).
        slope: HU per stored unit.
        intercept: HU of stored value 0.
        padding: lowest and highest stored value of pixels outside the image, or None.
    """

    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None = None

    @property
    def may_be_wrapped(self) -> bool:
        """Whether the header fits the badly encoded files of RSNA 2019.

        12-bit unsigned values with an intercept near 0 cannot hold the -1000 HU of air.
        """
        unsigned_12_bit = self.bits_stored == 12 and not self.signed
        return unsigned_12_bit and self.slope == 1 and self.intercept > -100


def stored_values(encoding: PixelEncoding) -> NDArray[np.int64]:
    """Return the stored value per bit pattern of a pixel.

    Ignores bits outside the stored bits: their content is arbitrary (DICOM PS3.5 8.1.1).

    Returns:
        int64 [2 ** bits_allocated].
    """
    patterns = np.arange(1 << encoding.bits_allocated, dtype=np.int64)
    span = 1 << encoding.bits_stored
    values = (patterns >> (encoding.high_bit + 1 - encoding.bits_stored)) & (span - 1)
    if encoding.signed:
        values = np.where(values >= span // 2, values - span, values)
    return values


@lru_cache(maxsize=8)  # series of a scanner share an encoding
def hounsfield_table(encoding: PixelEncoding, repair: Repair) -> NDArray[np.float64]:
    """Return the Hounsfield units per bit pattern of a pixel.

    Negative values that are wrapped in a 12-bit unsigned word are unwrapped by SHIFT, the repair
    published for RSNA 2019 (add 1000, wrap at 4096, intercept -1000), to -1000 to 3095, and by
    SIGN_EXTEND, 12-bit two's complement, to -2048 to 2047.

    Returns:
        float64 [2 ** bits_allocated], HU, read-only; padding is PADDING_HU.
    """
    values = stored_values(_reading(encoding, repair))
    if repair in (Repair.SHIFT, Repair.SIGN_EXTEND):
        first = _LOWEST_SHIFTED if repair is Repair.SHIFT else _NEGATIVE
        hounsfield = np.where(values >= first, values - _WRAP, values).astype(np.float64)
    else:
        hounsfield = values.astype(np.float64) * encoding.slope + encoding.intercept
    if encoding.padding is not None:
        lowest, highest = encoding.padding
        is_padding = (values >= lowest) & (values <= highest)
        if repair in (Repair.SIGNED, Repair.UNSIGNED):  # the padding may have either sign
            values = stored_values(encoding)
            is_padding |= (values >= lowest) & (values <= highest)
        hounsfield[is_padding] = PADDING_HU
    hounsfield.flags.writeable = False
    return hounsfield


def _reading(encoding: PixelEncoding, repair: Repair) -> PixelEncoding:
    """Return the encoding that a repair reads values with."""
    if repair is Repair.LOW_BITS:
        return replace(encoding, high_bit=encoding.bits_stored - 1)
    if repair in (Repair.SIGNED, Repair.UNSIGNED):
        return replace(encoding, signed=repair is Repair.SIGNED)
    return encoding


def choose_repair(pixels: Patterns, encoding: PixelEncoding, policy: RepairPolicy) -> Repair:
    """Return the repair that a file's values need.

    Args:
        pixels: bit patterns, uint8 or uint16 [rows, columns].
        encoding: the file's encoding.
        policy: OFF trusts the header; the two forced repairs apply if the header allows a wrap of
            12-bit words.

    Raises:
        Rejected: the values are impossible for a scanner, and no repair is certain.
    """
    if policy is RepairPolicy.OFF:
        return Repair.NONE
    if encoding.high_bit != encoding.bits_stored - 1 and _are_in_low_bits(pixels, encoding):
        low = _reading(encoding, Repair.LOW_BITS)
        if choose_repair(pixels, low, policy) is not Repair.NONE:
            raise Rejected(Reason.INVALID_ATTRIBUTE, "HighBit and PixelRepresentation")
        return Repair.LOW_BITS
    if not encoding.may_be_wrapped:
        return _choose_sign(pixels, encoding)
    if policy is not RepairPolicy.AUTO:
        return Repair(policy.value)
    return _choose_unwrapping(stored_values(encoding)[pixels])


def _are_in_low_bits(pixels: Patterns, encoding: PixelEncoding) -> bool:
    """Return whether values are in a word's lowest bits, contrary to High Bit.

    High Bit shall be Bits Stored - 1 (DICOM PS3.3 C.7.6.3.1); pydicom and GDCM ignore High Bit and
    read the lowest bits. Here High Bit counts if the bits below its range are empty.

    Raises:
        Rejected: bits below High Bit's range and bits above the lowest Bits Stored are in use.
    """
    below = (1 << (encoding.high_bit + 1 - encoding.bits_stored)) - 1
    if not int(np.bitwise_or.reduce(pixels, axis=None)) & below:
        return False
    above = pixels >> encoding.bits_stored
    extended = np.zeros((), bool)
    if encoding.signed:
        sign = pixels >> (encoding.bits_stored - 1)
        extended = sign == (1 << (encoding.bits_allocated - encoding.bits_stored + 1)) - 1
    if not ((above == 0) | extended).all():
        stored, high_bit = encoding.bits_stored, encoding.high_bit
        detail = f"BitsStored {stored} and HighBit {high_bit}, but other bits are used"
        raise Rejected(Reason.INVALID_ATTRIBUTE, detail)
    return True


def _choose_unwrapping(values: NDArray[np.int64]) -> Repair:
    """Return the repair of 12-bit words whose header allows a wrap.

    Values are correct without air at the top of the range. Otherwise both repairs read 3096 to 4095
    as -1000 to -1 HU, but differ from 2048 to 3095: the published shift keeps these values as bone
    and metal, sign extension reads them below -1000 HU. Sign extension is right if air is noise
    around -1000 HU instead of clipped at -1000 HU, or if the corners, free of metal, are padded
    with values from 2048 to 3095.
    """
    if np.mean(values >= _LOWEST_WRAPPED) < _WRAPPED_AIR_FRACTION:
        return Repair.NONE
    # A range of -1000 to 3095 HU clips metal at 3095.
    noise = (values >= _LOWEST_WRAPPED) & (values < _LOWEST_SHIFTED - 1)
    corners = _corners(values)
    padding = (corners >= _NEGATIVE) & (corners < _LOWEST_SHIFTED)
    is_signed = np.mean(noise) >= _NOISE_FRACTION or np.mean(padding) >= _PADDING_FRACTION
    return Repair.SIGN_EXTEND if is_signed else Repair.SHIFT


def _choose_sign(pixels: Patterns, encoding: PixelEncoding) -> Repair:
    """Return the repair of values with a wrong sign in Pixel Representation.

    The sign is wrong if the header's sign gives values impossible for a scanner, or air as bright
    as metal, and the other sign gives the values of a CT slice.

    Raises:
        Rejected: neither sign gives the values of a CT slice.
    """
    grades = _grades(encoding)
    some = grades.take(pixels[:: max(1, len(pixels) // _ROWS_LOOKED_AT)])
    is_dark = np.count_nonzero(some) < _BRIGHT_FRACTION / 2 * some.size
    # A fast check whether nearly all values fit a CT slice. Too low values are displayed as black
    # anyway; a wrong sign produces many such values.
    if is_dark and some.max() < 2 and (grades.max() < 3 or grades.take(pixels).max() < 3):
        return Repair.NONE
    as_said = hounsfield_table(encoding, Repair.NONE)
    other_sign = Repair.UNSIGNED if encoding.signed else Repair.SIGNED
    counts = np.bincount(pixels.ravel(), minlength=len(as_said))
    patterns = np.flatnonzero(counts)
    said = _Distribution(as_said[patterns], counts[patterns])
    other = _Distribution(hounsfield_table(encoding, other_sign)[patterns], counts[patterns])
    white_corners = np.mean(as_said[_corners(pixels)] > _BONE_HU)
    is_wrong = said.is_impossible() or bool(white_corners > _MOST)
    if _is_certain(said, other, is_wrong=is_wrong):
        return other_sign
    if is_wrong or said.share_above_bone() > _MUCH:
        lowest, highest = said.values.min(), said.values.max()
        raise Rejected(
            Reason.INVALID_ATTRIBUTE,
            f"values of {lowest:.0f} to {highest:.0f} HU, which no scanner produces: see "
            "PixelRepresentation, RescaleIntercept and RescaleSlope",
        )
    return Repair.NONE


def _is_certain(said: "_Distribution", other: "_Distribution", *, is_wrong: bool) -> bool:
    """Return whether the other sign certainly gives the values of a CT slice.

    `said` are the values with the header's sign, perhaps wrong: impossible for a CT slice.
    """
    changed = said.values != other.values
    share = other.share(changed)
    if not (share >= _FEW or np.count_nonzero(changed) > 1):  # perhaps a burned-in mark
        return False
    is_likely = other.share(changed & other.are_in(_PADDED_HU, _BONE_HU)) >= _NEARLY_ALL * share
    has_tissue = other.share(other.are_in(*_SOFT_TISSUE_HU)) >= _TISSUE_FRACTION
    is_air = other.share(changed & other.are_in(*_AIR_HU)) >= _MOST * share
    is_shown = (has_tissue and (is_wrong or is_air)) or (is_air and said.is_impossible())
    return other.is_ct_slice() and is_likely and is_shown


@lru_cache(maxsize=16)
def _grades(encoding: PixelEncoding) -> NDArray[np.uint8]:
    """Return per bit pattern: 1 brighter than bone, 2 too low for a scanner, 3 too high, or 0."""
    table = hounsfield_table(encoding, Repair.NONE)
    grades = [table < _LOWEST_HU, table > _HIGHEST_HU, table > _BONE_HU]
    return np.select(grades, [2, 3, 1], 0).astype(np.uint8)


@dataclass(frozen=True)
class _Distribution:
    """Distribution of the values in an image.

    Attributes:
        values: float64 [n], HU.
        counts: int64 [n], pixels.
    """

    values: NDArray[np.float64]
    counts: NDArray[np.int64]

    def share(self, which: NDArray[np.bool_]) -> float:
        """Return the share of pixels with the selected values."""
        return float(self.counts[which].sum() / max(self.counts.sum(), 1))

    def share_above_bone(self) -> float:
        return self.share(self.values > _BONE_HU)

    def is_impossible(self) -> bool:
        """Return whether values are impossible for scanners; a single low value may be padding."""
        below = np.count_nonzero(self.values < _LOWEST_HU)
        return bool(below > 1 or (self.values > _HIGHEST_HU).any())

    def are_in(self, lowest: float, highest: float) -> NDArray[np.bool_]:
        """Return a mask of the values in a range, both ends included."""
        return (self.values >= lowest) & (self.values <= highest)

    def is_ct_slice(self) -> bool:
        """Return whether a CT slice may have the values; one value below air may be padding."""
        below = np.sort(self.counts[self.values < _AIR_HU[0]])
        return bool(
            not self.is_impossible()
            and self.share_above_bone() < _BRIGHT_FRACTION
            and below[:-1].sum() < _FEW * self.counts.sum()
        )


def _corners(values: NDArray[Any]) -> NDArray[Any]:
    height, width = (-(-side // _CORNER) for side in values.shape)
    rows = np.r_[:height, -height:0]
    columns = np.r_[:width, -width:0]
    corners: NDArray[Any] = values[np.ix_(rows, columns)]
    return corners
