"""A slice to the image that is stored: repair, window by look-up table, fit to size."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from beam_pipeline.dicom import Slice
from beam_pipeline.hounsfield import (
    PADDING_HU,
    PixelEncoding,
    Repair,
    RepairPolicy,
    choose_repair,
    hounsfield_table,
)
from beam_pipeline.windows import Window, apply_windows

# One look-up reads all channels of a pixel: they are packed into one word.
_MAX_CHANNELS = 4


@dataclass(frozen=True)
class Image:
    """A slice as it is stored.

    Attributes:
        pixels: uint8 [size, size, windows].
        pixel_spacing: between rows and between columns of `pixels`, mm; NaN if unknown.
        repair: what was done to the file's values.
        resized: whether the file's matrix had another size.
    """

    pixels: NDArray[np.uint8]
    pixel_spacing: tuple[float, float]
    repair: Repair
    resized: bool


def convert_slice(
    source: Slice, windows: tuple[Window, ...], size: int, policy: RepairPolicy
) -> Image:
    """Convert a slice.

    Args:
        source: as read from its file.
        windows: one a channel, at most four.
        size: height and width of the result, pixels.
        policy: which repair of badly encoded values to apply.
    """
    encoding, spacing = source.header.encoding, source.header.pixel_spacing
    repair = choose_repair(source.pixels, encoding, policy)
    table = _window_table(encoding, repair, windows)
    packed = np.take(table, source.pixels, mode="clip")
    channels = packed.view(np.uint8).reshape(*packed.shape, _MAX_CHANNELS)
    pixels = np.ascontiguousarray(channels[..., : len(windows)])
    if pixels.shape[:2] == (size, size):
        return Image(pixels, spacing, repair, resized=False)
    scale = size / max(pixels.shape[:2])
    border = apply_windows(np.array(PADDING_HU), windows)
    fitted = letterbox(pixels, size, border)
    return Image(fitted, (spacing[0] / scale, spacing[1] / scale), repair, resized=True)


@lru_cache(maxsize=64)  # a scanner's series share their encoding
def _window_table(
    encoding: PixelEncoding, repair: Repair, windows: tuple[Window, ...]
) -> NDArray[np.uint32]:
    """The grey levels of every bit pattern, packed: uint32 [2 ** bits_allocated]."""
    levels = apply_windows(hounsfield_table(encoding, repair), windows)
    packed = np.zeros((len(levels), _MAX_CHANNELS), np.uint8)
    packed[:, : levels.shape[1]] = levels
    table = packed.view(np.uint32).ravel()
    table.flags.writeable = False
    return table


def letterbox(pixels: NDArray[np.uint8], size: int, border: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Scale to fit a square, keeping the shape, and centre it on a border.

    Shrinks by area averages, which keep thin bright rims; enlarges linearly.

    Args:
        pixels: uint8 [height, width, channels].
        size: height and width of the result, pixels.
        border: uint8 [channels], the grey levels around.

    Returns:
        uint8 [size, size, channels].
    """
    height, width = pixels.shape[:2]
    scale = size / max(height, width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(pixels, inner, interpolation=method).reshape(inner[1], inner[0], -1)
    result = np.empty((size, size, pixels.shape[2]), np.uint8)
    result[:] = border
    top, left = (size - inner[1]) // 2, (size - inner[0]) // 2
    result[top : top + inner[1], left : left + inner[0]] = scaled
    return result
