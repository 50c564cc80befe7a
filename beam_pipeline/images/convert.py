"""A slice to the image that is stored: repair, window by look-up table, fit to size."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from beam_pipeline.dicom.hounsfield import (
    PADDING_HU,
    PixelEncoding,
    Repair,
    choose_repair,
    hounsfield_table,
)
from beam_pipeline.dicom.slices import Header, Slice
from beam_pipeline.errors import Reason, Rejected
from beam_pipeline.images.png import blank_image
from beam_pipeline.images.windows import VoiFunction, Window, apply_windows
from beam_pipeline.options import ImageOptions

# Slices are spread over processes. Threads within one gain nothing on top, and OpenCV's spend a
# fifth of the whole time on waiting for each other.
cv2.setNumThreads(1)

# Stored Hounsfield units are offset to be unsigned: a sample of 0 is the lowest, -1024 HU.
HU_OFFSET = -1024
_HIGHEST_HU = 65535 + HU_OFFSET

# One look-up reads all channels of a pixel: they are packed into one word.
_PACKED_CHANNELS = 4


@dataclass(frozen=True)
class Image:
    """A slice as it is stored.

    Attributes:
        pixels: uint8 [size, size, windows], or uint16 [size, size, 1]: HU - HU_OFFSET; a row's
            samples are adjacent, rows need not be.
        pixel_spacing: between rows and between columns of `pixels`, mm; NaN if unknown.
        repair: what was done to the file's values.
        resized: whether the file's matrix had another size.
    """

    pixels: NDArray[Any]
    pixel_spacing: tuple[float, float]
    repair: Repair
    resized: bool


def convert_slice(source: Slice, options: ImageOptions) -> Image:
    """Convert a slice.

    Raises:
        Rejected: its own window is asked for, and it has none.
    """
    encoding, spacing = source.header.encoding, source.header.pixel_spacing
    size, voi = options.image_size, options.voi
    repair = choose_repair(source.pixels, encoding, options.hu_repair)
    windows = _resolve(options.windows, source.header)
    pixels = _look_up(source.pixels, encoding, repair, windows, voi)
    if pixels.shape[:2] == (size, size):
        return Image(pixels, spacing, repair, resized=False)
    scale = size / max(pixels.shape[:2])
    fitted = letterbox(pixels, size, render(np.array(PADDING_HU), windows, voi))
    return Image(fitted, (spacing[0] / scale, spacing[1] / scale), repair, resized=True)


def _resolve(windows: tuple[Window, ...], header: Header) -> tuple[Window, ...]:
    if all(window.center is not None for window in windows):
        return windows
    if header.window is None:
        raise Rejected(Reason.MISSING_ATTRIBUTE, "WindowCenter, WindowWidth")
    center, width = header.window
    return tuple(
        Window(window.name, center, width) if window.center is None else window
        for window in windows
    )


def render(
    hounsfield: NDArray[np.float64], windows: tuple[Window, ...], voi: VoiFunction
) -> NDArray[Any]:
    """The samples that Hounsfield units are stored as: [*shape, channels]."""
    if windows:
        return apply_windows(hounsfield, windows, voi)
    clipped = np.clip(np.floor(hounsfield + 0.5), HU_OFFSET, _HIGHEST_HU) - HU_OFFSET
    return clipped.astype(np.uint16)[..., None]


def _look_up(
    pixels: NDArray[np.uint8] | NDArray[np.uint16],
    encoding: PixelEncoding,
    repair: Repair,
    windows: tuple[Window, ...],
    voi: VoiFunction,
) -> NDArray[Any]:
    found = np.asarray(cv2.LUT(pixels, _table(encoding, repair, windows, voi)))
    if not windows:
        return found[..., None]
    channels = found.view(np.uint8).reshape(*found.shape, _PACKED_CHANNELS)
    if len(windows) == 3:  # OpenCV drops the fourth byte fifty times faster than NumPy copies
        image = blank_image(found.shape[0], found.shape[1], 3)
        cv2.cvtColor(channels, cv2.COLOR_BGRA2BGR, dst=image)
        return image
    return np.ascontiguousarray(channels[..., : len(windows)])


@lru_cache(maxsize=64)  # a scanner's series share their encoding
def _table(
    encoding: PixelEncoding, repair: Repair, windows: tuple[Window, ...], voi: VoiFunction
) -> NDArray[Any]:
    """What every bit pattern is stored as: windows' gray levels packed in int32, or uint16."""
    samples = render(hounsfield_table(encoding, repair), windows, voi)
    if windows:
        packed = np.zeros((len(samples), _PACKED_CHANNELS), np.uint8)
        packed[:, : len(windows)] = samples
        samples = packed.view(np.int32)  # the only 32-bit integers that OpenCV knows
    table = samples.ravel()
    table.flags.writeable = False
    return table


def letterbox(pixels: NDArray[Any], size: int, border: NDArray[Any]) -> NDArray[Any]:
    """Scale to fit a square, keeping the shape, and centre it on a border.

    Shrinks by area averages, which keep thin bright rims; enlarges linearly.

    Args:
        pixels: uint8 or uint16 [height, width, channels].
        size: height and width of the result, pixels.
        border: [channels], the samples around.

    Returns:
        [size, size, channels], of the same dtype.
    """
    height, width, channels = pixels.shape
    scale = size / max(height, width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(pixels, inner, interpolation=method).reshape(inner[1], inner[0], channels)
    result = np.empty((size, size, channels), pixels.dtype)
    result[:] = border
    top, left = (size - inner[1]) // 2, (size - inner[0]) // 2
    result[top : top + inner[1], left : left + inner[0]] = scaled
    return result
