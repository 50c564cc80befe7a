"""Conversion of a slice to the stored PNG: repair, windows by look-up table, resizing, encoding.

PNG is a W3C Recommendation, ISO/IEC 15948. CT slices in narrow windows are mostly flat: unfiltered
rows deflate to fewer bytes than filtered ones, in a fraction of the time.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from isal import isal_zlib
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
from beam_pipeline.options import ImageOptions
from headct.png import COLOR_TYPES, END, HEADER, SIGNATURE
from headct.reasons import Reason, Rejected
from headct.windows import VoiFunction, Window, apply_windows

# Processes already run in parallel: OpenCV's threads would wait for a fifth of the time.
cv2.setNumThreads(1)

# Stored Hounsfield units are offset to be unsigned: a sample of 0 is -1024 HU.
HU_OFFSET = -1024
_HIGHEST_HU = 65535 + HU_OFFSET

# A word packs all channels of a pixel, so that one look-up reads all channels.
_PACKED_CHANNELS = 4
# OpenCV drops the last of four channels fifty times faster than NumPy copies the other three.
_DROPPED_TO = 3

# On windowed CT slices, ISA-L's level 2 compresses like level 3, and is as fast as level 0.
_DEFLATE_LEVEL = 2
# For the first bytes ISA-L computes a hash from a register that holds an address (.write_first_byte
# in igzip_icf_body_h1_gr_bt.asm), so that the output may differ between processes. A first write
# shorter than ISA-L's look-ahead avoids this code, also for all later bytes.
_FLUSHED_FIRST = 16


@dataclass(frozen=True)
class Image:
    """The stored image of a slice.

    Attributes:
        scanlines: the image in the layout of a PNG's deflated data, so that encoding copies
            nothing: see `blank_scanlines`.
        pixels: a view of the scanlines: uint8 [size, size, windows], or big-endian uint16
            [size, size, 1]: HU - HU_OFFSET.
        pixel_spacing: between rows and between columns of the image, mm; NaN if unknown.
        repair: repair applied to the file's values.
        resized: whether the file's matrix has another size.
    """

    scanlines: NDArray[np.uint8]
    pixels: NDArray[Any]
    pixel_spacing: tuple[float, float]
    repair: Repair
    resized: bool


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
    channels = max(1, len(windows))
    lines, pixels = blank_scanlines(size, size, channels, "uint8" if windows else "uint16")
    resized = stored.shape != (size, size)
    if resized:
        border = render(np.array(PADDING_HU), windows, voi)
        whole = np.ascontiguousarray(_channels(stored, len(windows)))
        pixels[:] = letterbox(whole, size, border)
        scale = size / max(stored.shape)
        spacing = spacing[0] / scale, spacing[1] / scale
    elif len(windows) == _DROPPED_TO:
        _channels(stored, len(windows), pixels)
    else:
        pixels[:] = _channels(stored, len(windows))
    return Image(lines, pixels, spacing, repair, resized)


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


def _channels(
    stored: NDArray[Any], windows: int, into: NDArray[np.uint8] | None = None
) -> NDArray[Any]:
    """Return looked-up words, [height, width], as [height, width, channels]."""
    if not windows:
        return stored[..., None]
    packed = stored.view(np.uint8).reshape(*stored.shape, _PACKED_CHANNELS)
    if windows == _DROPPED_TO:
        return np.asarray(cv2.cvtColor(packed, cv2.COLOR_BGRA2BGR, dst=into))
    return packed[..., :windows]


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
    return samples.ravel()


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


def blank_scanlines(
    height: int, width: int, channels: int, dtype: str
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return the scanlines of an image, with a view of its undefined pixels.

    Returns:
        uint8 [height, 1 + bytes per row]: per row a filter byte (0: no filter) and the samples;
        uint8 or big-endian uint16 [height, width, channels], not contiguous.
    """
    samples = np.dtype(dtype).newbyteorder(">")
    rows = np.empty((height, 1 + width * channels * samples.itemsize), np.uint8)
    rows[:, 0] = 0
    return rows, rows[:, 1:].view(samples).reshape(height, width, channels)


def encode_png(scanlines: NDArray[np.uint8], pixels: NDArray[Any]) -> bytes:
    """Return the bytes of a PNG file, identical in every process.

    `pixels` are the pixels of the scanlines, for their shape and dtype: see `blank_scanlines`.
    """
    height, width, channels = pixels.shape
    depth = 8 * pixels.itemsize
    header = HEADER.pack(width, height, depth, COLOR_TYPES[channels], 0, 0, 0)
    stream = isal_zlib.compressobj(_DEFLATE_LEVEL)
    data = scanlines.ravel()
    first = stream.compress(data[:_FLUSHED_FIRST]) + stream.flush(isal_zlib.Z_SYNC_FLUSH)
    deflated = first + stream.compress(data[_FLUSHED_FIRST:]) + stream.flush()
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", deflated) + END


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))
