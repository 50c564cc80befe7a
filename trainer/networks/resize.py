"""Antialiased resizing as two matrix products.

A GPU multiplies matrices faster than it gathers pixels, XLA compiles it, and both backends
give the same numbers; TensorFlow's own antialiased resize has no GPU kernel.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops


def resize_matrix(size_in: int, size_out: int) -> npt.NDArray[np.float32]:
    """The linear map from `size_in` pixels of a row to `size_out` pixels.

    A triangle filter, widened by the scale where the image shrinks, at half-pixel centres:
    `tf.image.resize(method="bilinear", antialias=True)` and `jax.image.resize`.

    Returns:
        float32 [size_out, size_in]; every row sums to 1.
    """
    scale = size_in / size_out
    reach = max(scale, 1.0)
    centers = (np.arange(size_out) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(size_in)[None, :] - centers[:, None])
    weights = np.maximum(0.0, 1.0 - distance / reach)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


@keras.saving.register_keras_serializable("headct")
class Resize(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """Any [B, H, W, C] → float32 [B, size, size, C], same unit."""

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **{k: v for k, v in kwargs.items() if k != "dtype"})
        self.size = size

    def call(self, images: Any) -> Any:
        """Resizes rows, then columns."""
        images = ops.cast(images, "float32")
        _, height, width, _ = images.shape
        if height != self.size:
            rows = ops.convert_to_tensor(resize_matrix(height, self.size))
            images = ops.einsum("oh,bhwc->bowc", rows, images)
        if width != self.size:
            columns = ops.convert_to_tensor(resize_matrix(width, self.size))
            images = ops.einsum("ow,bhwc->bhoc", columns, images)
        return images

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """[B, size, size, C]."""
        return (input_shape[0], self.size, self.size, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """What a saved model needs to make this layer again."""
        return {**super().get_config(), "size": self.size}
