"""Hounsfield units → gray levels, on the device, with windows chosen at training time."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("headct")
class ApplyWindows(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """Stored values [B, H, W, 1] → float32 gray levels 0 to 255, [B, H, W, windows].

    LINEAR_EXACT of DICOM PS3.3 C.11.2.1.3.2: ((x - c) / w + 0.5) · 255, clipped.
    With `jitter`, center and width move at random while training: the center by up to that
    fraction of the width, the width by up to that factor.
    """

    def __init__(
        self,
        centers: list[float],
        widths: list[float],
        hu_offset: float,
        jitter: float,
        seed: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype="float32", **{k: v for k, v in kwargs.items() if k != "dtype"})
        self.centers, self.widths = list(centers), list(widths)
        self.hu_offset, self.jitter, self.seed = hu_offset, jitter, seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Windows each image."""
        centers = ops.reshape(ops.convert_to_tensor(self.centers, "float32"), (1, 1, 1, -1))
        widths = ops.reshape(ops.convert_to_tensor(self.widths, "float32"), (1, 1, 1, -1))
        if training and self.jitter > 0:
            shape = (ops.shape(images)[0], 1, 1, len(self.centers))
            centers = centers + widths * self.uniform(shape)
            widths = widths * ops.exp(self.uniform(shape))
        hounsfield = ops.cast(images, "float32") + self.hu_offset
        levels = ((hounsfield - centers) / widths + 0.5) * 255
        return ops.clip(levels, 0.0, 255.0)

    def uniform(self, shape: tuple[Any, ...]) -> Any:
        """Uniform numbers within ± jitter."""
        return keras.random.uniform(shape, -self.jitter, self.jitter, "float32", self.generator)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """A channel a window."""
        return (*input_shape[:-1], len(self.centers))

    def get_config(self) -> dict[str, Any]:
        """What a saved model needs to make this layer again."""
        return {
            **super().get_config(),
            "centers": self.centers,
            "widths": self.widths,
            "hu_offset": self.hu_offset,
            "jitter": self.jitter,
            "seed": self.seed,
        }
