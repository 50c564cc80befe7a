"""Hounsfield units to grey levels, as the DICOM standard defines a linear VOI window."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Centers and widths (HU) as in common use for head CT: brain, subdural and bone as radiology
# teaching files give them (Radiopaedia, "Windowing (CT)"); bone as in the RSNA 2019 challenge.
PRESETS = {
    "brain": (40.0, 80.0),
    "subdural": (80.0, 200.0),
    "bone": (600.0, 2800.0),
}


@dataclass(frozen=True)
class Window:
    """A range of Hounsfield units shown from black to white.

    Attributes:
        name: names the channel in the manifest.
        center: HU shown as mid-grey.
        width: HU from black to white, above 0.
    """

    name: str
    center: float
    width: float

    def __post_init__(self) -> None:
        """Refuse a window that shows nothing."""
        if not (np.isfinite(self.center) and np.isfinite(self.width) and self.width > 0):
            raise ValueError(
                f"window {self.name!r} needs a finite center and a width above 0, "
                f"not {self.center:g} and {self.width:g}"
            )


def parse_window(text: str) -> Window:
    """A preset's name, or `name:center:width` in HU.

    Raises:
        ValueError: neither of the two.
    """
    name, *numbers = text.strip().split(":")
    if not numbers and name in PRESETS:
        return Window(name, *PRESETS[name])
    try:
        center, width = map(float, numbers)
    except ValueError:
        raise ValueError(
            f"window {text!r} is neither name:center:width nor one of {', '.join(PRESETS)}"
        ) from None
    return Window(name, center, width)


def apply_windows(hounsfield: NDArray[np.float64], windows: Sequence[Window]) -> NDArray[np.uint8]:
    """Grey levels of every window, rounded half up.

    The linear-exact function of DICOM PS3.3 C.11.2.1.3.2: black at center - width/2 and below,
    white at center + width/2 and above.

    Args:
        hounsfield: HU, any shape.
        windows: one a channel.

    Returns:
        uint8 [*shape, len(windows)].
    """
    centers = np.array([window.center for window in windows])
    widths = np.array([window.width for window in windows])
    # Multiplied before divided, so that halves of a grey level are exact and round alike.
    exact = (hounsfield[..., None] - (centers - widths / 2)) * 255.0 / widths
    levels: NDArray[np.uint8] = np.floor(np.clip(exact, 0.0, 255.0) + 0.5).astype(np.uint8)
    return levels
