"""Conversion of a slice to the stored image: repair, windows by look-up table, resizing."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from beam_pipeline.dicom.header import OTHER_FUNCTION, VOI_FUNCTIONS, Header
from beam_pipeline.dicom.hounsfield import (
    PADDING_HU,
    PixelEncoding,
    Repair,
    choose_repair,
    hounsfield_table,
)
from beam_pipeline.dicom.slices import Slice
from beam_pipeline.images.png import Scanlines
from beam_pipeline.images.windows import VoiFunction, Window, apply_windows
from beam_pipeline.options import ImageOptions
from headct.reasons import Reason, Rejected

# Processes already run in parallel: OpenCV's threads would wait for a fifth of the time.
cv2.setNumThreads(1)

# Stored Hounsfield units are offset to be unsigned: a sample of 0 is -1024 HU.
HU_OFFSET = -1024
_HIGHEST_HU = 65535 + HU_OFFSET

# A word packs all channels of a pixel, so that one look-up reads all channels.
_PACKED_CHANNELS = 4
# OpenCV drops the last of four channels fifty times faster than NumPy copies the other three.
_DROPPED_TO = 3


@dataclass(frozen=True)
class Image:
    """The stored image of a slice.

    Attributes:
        scanlines: pixels in PNG's layout.
        pixel_spacing: between rows and between columns of `pixels`, mm; NaN if unknown.
        repair: repair applied to the file's values.
        resized: whether the file's matrix has another size.
    """

    scanlines: Scanlines
    pixel_spacing: tuple[float, float]
    repair: Repair
    resized: bool

    @property
    def pixels(self) -> NDArray[Any]:
        """uint8 [size, size, windows], or uint16 [size, size, 1]: HU - HU_OFFSET.

        Samples of a row are contiguous; rows may not be.
        """
        return self.scanlines.pixels


def convert_slice(source: Slice, options: ImageOptions) -> Image:
    """Convert a slice.

    Raises:
        Rejected: the file's own window is requested but absent, or its values are not CT's.
    """
    encoding, spacing = source.header.encoding, source.header.pixel_spacing
    size = options.image_size
    repair = choose_repair(source.pixels, encoding, options.hu_repair)
    windows, voi = _resolve(options, source.header)
    stored = np.asarray(cv2.LUT(source.pixels, _table(encoding, repair, windows, voi)))
    if stored.shape == (size, size):
        return Image(_lay_out(stored, len(windows)), spacing, repair, resized=False)
    scale = size / max(stored.shape)
    border = render(np.array(PADDING_HU), windows, voi)
    fitted = Scanlines.of(letterbox(_unpack(stored, len(windows)), size, border))
    return Image(fitted, (spacing[0] / scale, spacing[1] / scale), repair, resized=True)


def _resolve(
    options: ImageOptions, header: Header
) -> tuple[tuple[Window, ...], tuple[VoiFunction, ...]]:
    """Return window and VOI function per channel; fill in the file's own window."""
    windows, functions = options.windows, (options.voi,) * len(options.windows)
    if all(window.center is not None for window in windows):
        return windows, functions
    if header.window is None:
        raise Rejected(Reason.MISSING_ATTRIBUTE, "WindowCenter, WindowWidth")
    own = voi_function_of(header, options.voi)
    center, width = header.window
    return tuple(
        Window(window.name, center, width) if window.center is None else window
        for window in windows
    ), tuple(own if window.center is None else options.voi for window in windows)


def voi_function_of(header: Header, default: VoiFunction) -> VoiFunction:
    """Return the VOI function of a file's own window, or the default if the file has none.

    Raises:
        Rejected: the file has a function that DICOM does not define.
    """
    if header.voi_function == OTHER_FUNCTION:
        names = ", ".join(VOI_FUNCTIONS)
        raise Rejected(Reason.INVALID_ATTRIBUTE, f"VOILUTFunction is none of {names}")
    return VoiFunction(header.voi_function.lower()) if header.voi_function else default


def render(
    hounsfield: NDArray[np.float64], windows: tuple[Window, ...], voi: tuple[VoiFunction, ...]
) -> NDArray[Any]:
    """Return the stored samples for Hounsfield units: [*shape, channels]."""
    if windows:
        return apply_windows(hounsfield, windows, voi)
    clipped = np.clip(np.floor(hounsfield + 0.5), HU_OFFSET, _HIGHEST_HU) - HU_OFFSET
    return clipped.astype(np.uint16)[..., None]


def _lay_out(stored: NDArray[Any], windows: int) -> Scanlines:
    """Return looked-up words, [height, width], in PNG's layout."""
    if windows != _DROPPED_TO:
        return Scanlines.of(_unpack(stored, windows))
    height, width = stored.shape
    lines = Scanlines.blank(height, width, _DROPPED_TO)
    cv2.cvtColor(_packed(stored), cv2.COLOR_BGRA2BGR, dst=lines.pixels)
    return lines


def _unpack(stored: NDArray[Any], windows: int) -> NDArray[Any]:
    """Return looked-up words as [height, width, channels]."""
    if not windows:
        return stored[..., None]
    if windows == _DROPPED_TO:
        return np.asarray(cv2.cvtColor(_packed(stored), cv2.COLOR_BGRA2BGR))
    return np.ascontiguousarray(_packed(stored)[..., :windows])


def _packed(stored: NDArray[Any]) -> NDArray[np.uint8]:
    return stored.view(np.uint8).reshape(*stored.shape, _PACKED_CHANNELS)


@lru_cache(maxsize=64)  # series of a scanner share an encoding
def _table(
    encoding: PixelEncoding,
    repair: Repair,
    windows: tuple[Window, ...],
    voi: tuple[VoiFunction, ...],
) -> NDArray[Any]:
    """Return the stored samples per bit pattern: packed gray levels in int32, or uint16."""
    samples = render(hounsfield_table(encoding, repair), windows, voi)
    if windows:
        packed = np.zeros((len(samples), _PACKED_CHANNELS), np.uint8)
        packed[:, : len(windows)] = samples
        samples = packed.view(np.int32)  # OpenCV has no uint32
    table = samples.ravel()
    table.flags.writeable = False
    return table


def letterbox(pixels: NDArray[Any], size: int, border: NDArray[Any]) -> NDArray[Any]:
    """Scale an image to fit a square, keeping its aspect ratio, and center it on a border.

    Shrinks by area averages, to keep thin bright rims; enlarges linearly.

    Args:
        pixels: uint8 or uint16 [height, width, channels].
        size: height and width of the result, pixels.
        border: samples of the border, [channels].

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
