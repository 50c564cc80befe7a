"""Stored pixel values to Hounsfield units, and the repairs of badly encoded files.

Everything here is computed once for each possible bit pattern of a pixel (a look-up table of at
most 65,536 entries), so that a slice costs one table look-up a pixel.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

PADDING_HU = -1024.0  # the lowest value of the 12-bit range CT scanners use

_WRAP = 4096  # values of a 12-bit word
_SHIFT = 1000
_NEGATIVE = 2048  # the lowest 12-bit word that two's complement reads as negative
_LOWEST_WRAPPED = 3072  # -1024 HU, wrapped
_LOWEST_SHIFTED = 3096  # -1000 HU, wrapped
# A head CT is more than a tenth air. Where air is at the top of the 12-bit range, it was wrapped:
# no bone gets there, and metal fills far less.
_WRAPPED_AIR_FRACTION = 0.05
# Noise of air reaches below -1000 HU in far more pixels than metal has in the same few values.
_NOISE_FRACTION = 0.001
# Outside of the field of view there is no metal, only what the scanner pads with.
_PADDING_FRACTION = 0.01
_CORNER = 8  # a block of an eighth of the sides at a corner lies outside of the inscribed circle


class Repair(StrEnum):
    """What was done to a badly encoded file's values."""

    NONE = "none"
    SHIFT = "shift"
    SIGN_EXTEND = "sign_extend"


class RepairPolicy(StrEnum):
    """Which repair to apply: decided file by file, never, or always one of the two."""

    AUTO = "auto"
    OFF = "off"
    SHIFT = "shift"
    SIGN_EXTEND = "sign_extend"


@dataclass(frozen=True)
class PixelEncoding:
    """How the bits of a stored pixel become Hounsfield units (DICOM PS3.3 C.7.6.3, C.11.1).

    Attributes:
        bits_allocated: 8 or 16.
        bits_stored: how many of them hold the value.
        high_bit: where its most significant bit is.
        signed: two's complement (Pixel Representation 1).
        slope: HU a stored unit.
        intercept: HU of stored value 0.
        padding: lowest and highest stored value that mark pixels outside the image, or None.
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
        """Whether the header is that of the badly encoded files known from RSNA 2019.

        12-bit unsigned values with an intercept near 0 cannot hold the -1000 HU of air.
        """
        unsigned_12_bit = self.bits_stored == 12 and not self.signed
        return unsigned_12_bit and self.slope == 1 and self.intercept > -100


def stored_values(encoding: PixelEncoding) -> NDArray[np.int64]:
    """The stored value of every bit pattern of a pixel.

    Bits outside of the stored ones are ignored (DICOM PS3.5 8.1.1: they may hold anything).

    Returns:
        int64 [2 ** bits_allocated].
    """
    patterns = np.arange(1 << encoding.bits_allocated, dtype=np.int64)
    span = 1 << encoding.bits_stored
    values = (patterns >> (encoding.high_bit + 1 - encoding.bits_stored)) & (span - 1)
    if encoding.signed:
        values = np.where(values >= span // 2, values - span, values)
    return values


def hounsfield_table(encoding: PixelEncoding, repair: Repair) -> NDArray[np.float64]:
    """The Hounsfield units of every bit pattern of a pixel.

    Returns:
        float64 [2 ** bits_allocated], HU; padding is PADDING_HU.
    """
    values = stored_values(encoding)
    if repair is Repair.NONE:
        hounsfield = values.astype(np.float64) * encoding.slope + encoding.intercept
    else:
        hounsfield = _unwrap(values, repair).astype(np.float64)
    if encoding.padding is not None:
        lowest, highest = encoding.padding
        hounsfield[(values >= lowest) & (values <= highest)] = PADDING_HU
    return hounsfield


def _unwrap(values: NDArray[np.int64], repair: Repair) -> NDArray[np.int64]:
    """Undo the wrap of negative values in a 12-bit unsigned word.

    SHIFT is the repair published for RSNA 2019 (add 1000, wrap at 4096, intercept -1000): -1000 to
    3095. SIGN_EXTEND reads 12-bit two's complement: -2048 to 2047.
    """
    if repair is Repair.SHIFT:
        shifted = values + _SHIFT
        return np.where(shifted >= _WRAP, shifted - _WRAP, shifted) - _SHIFT
    return np.where(values >= _WRAP // 2, values - _WRAP, values)


def choose_repair(
    pixels: NDArray[np.uint8] | NDArray[np.uint16], encoding: PixelEncoding, policy: RepairPolicy
) -> Repair:
    """Which repair a file needs.

    `auto` looks at the values of a file whose header allows a wrap. Where no air is at the top of
    the range, nothing is wrong. Else both repairs read 3096 to 4095 as -1000 to -1 HU, and differ
    from 2048 to 3095: the published shift keeps these as they are, as bone and metal, sign
    extension makes them less than -1000 HU. They are that if air is noise around -1000 HU instead
    of clipped there, or if the corners, where no metal can be, hold such values as padding.

    Args:
        pixels: bit patterns, uint8 or uint16 [rows, columns].
        encoding: of the same file.
        policy: forced repairs too apply only where the header allows a wrap.
    """
    if not encoding.may_be_wrapped or policy is RepairPolicy.OFF:
        return Repair.NONE
    if policy is not RepairPolicy.AUTO:
        return Repair(policy.value)
    values = stored_values(encoding)[pixels]
    if np.mean(values >= _LOWEST_WRAPPED) < _WRAPPED_AIR_FRACTION:
        return Repair.NONE
    return Repair.SIGN_EXTEND if _reaches_below_air(values) else Repair.SHIFT


def _reaches_below_air(values: NDArray[np.int64]) -> bool:
    """Whether wrapped values are, in part, less than -1000 HU."""
    # 3095 by itself is where a range of -1000 to 3095 HU clips metal.
    noise = (values >= _LOWEST_WRAPPED) & (values < _LOWEST_SHIFTED - 1)
    if np.mean(noise) >= _NOISE_FRACTION:
        return True
    corners = _corners(values)
    padding = (corners >= _NEGATIVE) & (corners < _LOWEST_SHIFTED)
    return bool(np.mean(padding) >= _PADDING_FRACTION)


def _corners(values: NDArray[np.int64]) -> NDArray[np.int64]:
    height, width = (-(-side // _CORNER) for side in values.shape)
    rows = np.r_[:height, -height:0]
    columns = np.r_[:width, -width:0]
    corners: NDArray[np.int64] = values[np.ix_(rows, columns)]
    return corners
