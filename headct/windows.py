"""VOI windows of the DICOM standard: from Hounsfield units to gray levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

# Center and width, HU.
PRESETS = {
    # Brain, subdural and bone as first chosen for RSNA 2019 and since common for head CT.
    "brain": (40.0, 80.0),
    "subdural": (80.0, 200.0),
    "bone": (600.0, 2800.0),
    # Turner and Holdsworth, Br J Radiol 2011;84:1061, doi 10.1259/bjr/99730184.
    "stroke": (40.0, 40.0),
    # Radiology teaching gives soft tissue W 350-400, L 20-60 for the head.
    "soft_tissue": (40.0, 375.0),
    # Radiology teaching gives blood W 130-300, L 50-100: the middle of both ranges.
    "hematoma": (75.0, 215.0),
}
FROM_FILE = "dicom"


class VoiFunction(StrEnum):
    """Function from Hounsfield units to gray levels."""

    LINEAR_EXACT = "linear_exact"
    LINEAR = "linear"
    SIGMOID = "sigmoid"


@dataclass(frozen=True)
class Window:
    """A range of Hounsfield units shown from black to white.

    Attributes:
        name: name of the channel in the manifest.
        center: HU shown as mid-gray; None for the file's own window.
        width: HU from black to white, above 0; None like `center`.
    """

    name: str
    center: float | None
    width: float | None

    def __post_init__(self) -> None:
        """Raise if the window shows nothing."""
        if self.center is None or self.width is None:
            return
        if not (np.isfinite(self.center) and np.isfinite(self.width) and self.width > 0):
            raise ValueError(
                f"window {self.name!r} needs a finite center and a width above 0, "
                f"not {self.center:g} and {self.width:g}"
            )

    def __str__(self) -> str:
        """Return the text that `parse_window` parses."""
        if self.center is None or PRESETS.get(self.name) == (self.center, self.width):
            return self.name
        numbers = (repr(value).removesuffix(".0") for value in (self.center, self.width))
        return ":".join([self.name, *numbers])


def parse_window(text: str) -> Window:
    """Parse a preset's name, `dicom` for the file's own window, or `name:center:width` in HU.

    Raises:
        ValueError: the text is none of these.
    """
    name, *numbers = text.strip().split(":")
    if not numbers and name in PRESETS:
        return Window(name, *PRESETS[name])
    if not numbers and name == FROM_FILE:
        return Window(name, None, None)
    try:
        center, width = map(float, numbers)
    except ValueError:
        known = ", ".join([*PRESETS, FROM_FILE])
        raise ValueError(
            f"window {text!r} is neither name:center:width nor one of {known}"
        ) from None
    return Window(name, center, width)


def apply_windows(
    hounsfield: NDArray[np.float64],
    windows: Sequence[Window],
    functions: VoiFunction | Sequence[VoiFunction] = VoiFunction.LINEAR_EXACT,
) -> NDArray[np.uint8]:
    """Return the gray levels per window, rounded half up.

    Args:
        hounsfield: HU, any shape.
        windows: one window with center and width per channel.
        functions: one function for all windows, or one per window. LINEAR_EXACT (DICOM PS3.3
            C.11.2.1.3.2) is black at center - width/2 and below, white at center + width/2 and
            above. LINEAR (C.11.2.1.2.1), made for whole numbers, is black at center - width/2 too,
            and white at center + width/2 - 1. SIGMOID (C.11.2.1.3.1) has the slope of LINEAR_EXACT
            in its center, and reaches neither black nor white.

    Returns:
        uint8 [*shape, len(windows)].
    """
    if isinstance(functions, VoiFunction):
        functions = [functions] * len(windows)
    levels = [
        _exact_levels(hounsfield, window, function)
        for window, function in zip(windows, functions, strict=True)
    ]
    rounded: NDArray[np.uint8] = np.floor(np.stack(levels, axis=-1) + 0.5).astype(np.uint8)
    return rounded


def _exact_levels(
    hounsfield: NDArray[np.float64], window: Window, function: VoiFunction
) -> NDArray[np.float64]:
    """Return gray levels, 0.0 to 255.0, of a window with center and width."""
    center, width = np.float64(window.center), np.float64(window.width)
    if function is VoiFunction.SIGMOID:
        with np.errstate(over="ignore"):  # 255 / inf is 0
            exponential = np.exp(-4.0 * (hounsfield - center) / width)
        sigmoid: NDArray[np.float64] = 255.0 / (1.0 + exponential)
        return sigmoid
    lowest = center - width / 2
    if function is VoiFunction.LINEAR:
        # A width of 1 or less has no values between black and white.
        width = np.maximum(width - 1, 1e-9)
    # Multiply before dividing, so that halves of a gray level are exact and round alike.
    linear: NDArray[np.float64] = np.clip((hounsfield - lowest) * 255.0 / width, 0.0, 255.0)
    return linear
