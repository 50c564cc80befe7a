"""Crop to the head: the square around it, found in each image itself, resized on the device.

A pixel is foreground if any channel is above a threshold. The image is divided into cells, 64 along
the longer side; a cell counts if half of it is foreground and half of each cell around it. This
leaves out what is thinner than three cells, such as a head rest. The box around these cells,
widened by the cells around them and a margin, becomes a square.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from headct.manifest import ImageSpec
from trainer.networks.image_layers import Resize

_CELLS = 64  # along the longer side
_MARGIN = 0.05  # per side, as a fraction of the box
# Smallest side of a square, as a fraction of the image's longer side: slices near the vertex show
# little of the head, and are not magnified as much as noise.
_SMALLEST = 0.5
# Foreground: gray levels of windows, or the skin's in Hounsfield units.
_GRAY_LEVEL, _HOUNSFIELD = 25.0, -500.0


def foreground_threshold(image: ImageSpec) -> float:
    """Return the stored value above which a pixel is foreground."""
    return _HOUNSFIELD - image.hu_offset if image.is_hounsfield else _GRAY_LEVEL


@keras.saving.register_keras_serializable("headct")
class CropHead(Resize):
    """Any [B, H, W, C] → float32 [B, size, size, C], same unit: the square around the head.

    An image without a head is resized as a whole. A square that reaches beyond the image is moved
    into it; where the image is too narrow for that, the rest is zero.

    Args:
        size: side of the resized images, pixels.
        threshold: stored value above which a pixel is foreground.
        middle: as for `Resize`.
    """

    arguments = ("size", "threshold", "middle")

    def __init__(self, size: int, threshold: float, middle: float = 0.0, **kwargs: Any) -> None:
        super().__init__(size, middle, **kwargs)
        self.threshold = threshold

    def call(self, images: Any) -> Any:
        """Crop and resize rows, then columns, each by a matrix per image."""
        rows, columns, channels = images.shape[1:]
        images = ops.cast(images, "float32")
        top, left, side = self.find_squares(images)
        images = images - self.middle if self.middle else images
        images = ops.reshape(images, (-1, rows, columns * channels))
        of_rows = _resize_matrices(top, side, rows, self.size)
        images = ops.reshape(ops.matmul(of_rows, images), (-1, self.size, columns, channels))
        of_columns = _resize_matrices(left, side, columns, self.size)
        images = ops.matmul(ops.expand_dims(of_columns, 1), images)
        if not self.middle:
            return images
        inside = [ops.sum(each, axis=-1) for each in (of_rows, of_columns)]  # 1, or 0 outside
        return images + self.middle * ops.einsum("bi,bj->bij", *inside)[..., None]

    def find_squares(self, images: Any) -> tuple[Any, Any, Any]:
        """Return upper edge, left edge and side of each image's square, pixels, float32 [B] each.

        Args:
            images: float32 [B, H, W, C].
        """
        rows, columns = images.shape[1:3]
        longer = max(rows, columns)
        cell = max(1, longer // _CELLS)
        mask = ops.cast(ops.max(images, axis=-1, keepdims=True) > self.threshold, "float32")
        # The outer cells may be partly outside; average pooling counts what is inside.
        shares = ops.average_pool(mask, cell, cell, "same")
        # Outside counts as head, so that a head that touches an edge is not worn away there.
        solid = -ops.max_pool(-ops.cast(shares >= 0.5, "float32"), 3, 1, "same")
        edges = [
            _first_and_last(ops.max(solid, axis=axes), cell, pixels)
            for axes, pixels in (((2, 3), rows), ((1, 3), columns))
        ]
        lengths = [last - first for first, last in edges]
        side = ops.maximum(*lengths) * (1 + 2 * _MARGIN)
        side = ops.clip(side, _SMALLEST * longer, float(longer))
        # An axis without foreground has its full length, and so has the other one.
        top, left = (
            ops.where(
                side <= pixels,
                ops.minimum(ops.maximum((first + last - side) / 2, 0.0), pixels - side),
                (pixels - side) / 2,
            )
            for (first, last), pixels in zip(edges, (rows, columns), strict=True)
        )
        return top, left, side

    def place(
        self, maps: npt.NDArray[np.float32], images: npt.NDArray[Any]
    ) -> npt.NDArray[np.float32]:
        """Interpolate maps of the squares at 64 x 64 points of the images; 0 outside."""
        squares = self.find_squares(ops.convert_to_tensor(images.astype(np.float32)))
        top, left, side = (ops.convert_to_numpy(each)[:, None] for each in squares)
        steps = (np.arange(_CELLS) + 0.5) / _CELLS
        factors = []
        for start, pixels, count in zip(
            (top, left), images.shape[1:3], maps.shape[1:], strict=True
        ):
            points = (steps * pixels - start) / side * count - 0.5
            nearest = np.clip(points, 0, count - 1)
            weights = np.maximum(0, 1 - np.abs(nearest[:, :, None] - np.arange(count)))
            factors.append(weights * (np.abs(points - nearest) <= 0.5)[:, :, None])
        rows, columns = factors
        return np.asarray(rows @ maps @ columns.transpose(0, 2, 1), np.float32)

    def portable(self, images: Any) -> Any:
        """Crop and resize by operations of Keras."""
        return self.call(images)


def _first_and_last(found: Any, cell: int, pixels: int) -> tuple[Any, ...]:
    """Return where the foreground begins and ends along an axis, with a cell on each side.

    Args:
        found: 1 or 0 per cell, float32 [B, n].
        cell: pixels per cell.
        pixels: length of the axis.

    Returns:
        Pixels, float32 [B] each: 0 and `pixels` without foreground.
    """
    cells = found.shape[1]
    outside = (cells * cell - pixels) // 2  # of the first cell
    numbers = np.arange(cells, dtype=np.float32)  # ONNX loses constants that are tensors
    first = ops.min(ops.where(found > 0, numbers, float(cells)), axis=1) - 1
    last = ops.max(ops.where(found > 0, numbers, -1.0), axis=1) + 2
    first = ops.where(last > 1, first, 0.0)
    last = ops.where(last > 1, last, float(cells))
    edges = (each * cell - outside for each in (first, last))
    return tuple(ops.clip(edge, 0.0, float(pixels)) for edge in edges)


def _resize_matrices(start: Any, side: Any, size_in: int, size_out: int) -> Any:
    """Return `image_layers.resize_matrix` for a part of each image's axis.

    Args:
        start: where the part begins, pixels, [B].
        side: its length, pixels, [B].
        size_in: length of the axis, pixels.
        size_out: pixels of the result.

    Returns:
        float32 [B, size_out, size_in]; rows sum to 1, or to 0 outside the image.
    """
    scale = ops.reshape(side / size_out, (-1, 1, 1))
    steps = np.arange(size_out, dtype=np.float32)[None, :, None] + np.float32(0.5)
    centers = ops.reshape(start, (-1, 1, 1)) + scale * steps - 0.5
    pixels = np.arange(size_in, dtype=np.float32)[None, None, :]
    weights = ops.relu(1 - ops.abs(centers - pixels) / ops.maximum(scale, 1.0))
    return weights / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-6)
