"""Random changes of training images, on the device, each image its own.

Flip, rotation, scale and shift are one affine map, so that pixels are interpolated once.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

# At strength 1: what still looks like a head in a scanner.
_ROTATION = math.radians(15)
_SCALE = 0.1
SHIFT = 0.05
_CONTRAST = 0.1
_BRIGHTNESS = 0.05


def affine_grid(angle: Any, scale: Any, shift: Any, flip: Any, size: int) -> tuple[Any, Any]:
    """Where in the source each target pixel lies.

    Args:
        angle: radians, [B].
        scale: magnification, [B].
        shift: rows and columns as a fraction of the size, [B, 2].
        flip: 1 or -1, [B]; -1 mirrors left and right.
        size: side of the square image, pixels.

    Returns:
        Source rows and columns, float32 [B, size, size].
    """
    centered = ops.arange(size, dtype="float32") - (size - 1) / 2
    rows = ops.reshape(centered, (1, size, 1))
    columns = ops.reshape(centered, (1, 1, size))
    cosine, sine, across = (
        ops.reshape(each, (-1, 1, 1))
        for each in (ops.cos(angle) / scale, ops.sin(angle) / scale, flip)
    )
    down, right = (ops.reshape(shift[:, axis], (-1, 1, 1)) * size for axis in (0, 1))
    middle = (size - 1) / 2
    source_rows = cosine * rows - sine * columns + down + middle
    source_columns = (sine * rows + cosine * columns) * across + right + middle
    return source_rows, source_columns


def sample_bilinear(images: Any, rows: Any, columns: Any) -> Any:
    """Interpolates [B, S, S, C] at float rows and columns [B, S, S]; outside is 0."""
    size, channels = images.shape[1], images.shape[-1]
    top, left = ops.floor(rows), ops.floor(columns)
    pixels = ops.reshape(images, (-1, channels))
    first = ops.reshape(ops.arange(ops.shape(images)[0], dtype="int32") * size * size, (-1, 1, 1))
    total = 0.0
    for below in (0, 1):
        for beside in (0, 1):
            row, column = top + below, left + beside
            weight = (1 - ops.abs(rows - row)) * (1 - ops.abs(columns - column))
            inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
            weight = ops.where(inside, weight, 0.0)
            where = ops.clip(row, 0, size - 1) * size + ops.clip(column, 0, size - 1)
            values = ops.take(pixels, first + ops.cast(where, "int32"), axis=0)
            total = total + values * ops.expand_dims(weight, -1)
    return total


@keras.saving.register_keras_serializable("headct")
class Augment(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """float32 [B, S, S, C] of 0 to 255 → the same, changed at random while training.

    The generator's state is a variable of the model: a checkpoint holds it, and a resumed
    run continues with the very same images.
    """

    def __init__(self, strength: float, seed: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **{k: v for k, v in kwargs.items() if k != "dtype"})
        self.strength = strength
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def uniform(self, shape: tuple[Any, ...], reach: float) -> Any:
        """Uniform numbers within ± reach · strength."""
        reach = reach * self.strength
        return keras.random.uniform(shape, -reach, reach, dtype="float32", seed=self.generator)

    def call(self, images: Any, training: bool = False) -> Any:
        """Moves and recolors each image."""
        if not training or self.strength == 0:
            return images
        batch = ops.shape(images)[0]
        flip = ops.sign(keras.random.uniform((batch,), -1.0, 1.0, "float32", self.generator))
        rows, columns = affine_grid(
            angle=self.uniform((batch,), _ROTATION),
            scale=ops.exp(self.uniform((batch,), _SCALE)),
            shift=self.uniform((batch, 2), SHIFT),
            flip=ops.where(flip < 0, -1.0, 1.0),
            size=images.shape[1],
        )
        images = sample_bilinear(images, rows, columns)
        contrast = ops.exp(self.uniform((batch, 1, 1, 1), _CONTRAST))
        brightness = self.uniform((batch, 1, 1, 1), _BRIGHTNESS * 255)
        return ops.clip((images - 127.5) * contrast + 127.5 + brightness, 0.0, 255.0)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape stays."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """What a saved model needs to make this layer again."""
        return {**super().get_config(), "strength": self.strength, "seed": self.seed}
