"""Gray levels 0 to 255 → what each family of backbones was trained on.

The constants are those of `keras.applications.imagenet_utils.preprocess_input`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

_Constants = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Normalization:
    """(x - mean) / deviation for each of red, green, blue; then blue first where `bgr`."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    bgr: bool = False


NORMALIZATIONS: Mapping[str, Normalization] = MappingProxyType(
    {
        "caffe": Normalization((123.68, 116.779, 103.939), (1.0, 1.0, 1.0), bgr=True),
        "torch": Normalization(
            (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)
        ),
        "tf": Normalization((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        # EfficientNetV2 S, M and L divide by 128 and subtract 1.
        "tf128": Normalization((128.0, 128.0, 128.0), (128.0, 128.0, 128.0)),
    }
)


@keras.saving.register_keras_serializable("headct")
class Normalize(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """float32 [B, H, W, C] of 0 to 255 → float32 of the same shape.

    With other than three channels there is no red, green or blue: each channel gets the
    mean of the three constants.
    """

    def __init__(self, mode: str, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **{k: v for k, v in kwargs.items() if k != "dtype"})
        self.mode = mode

    def call(self, images: Any) -> Any:
        """Normalizes every channel."""
        mean, deviation, order = self.constants(images.shape[-1])
        images = (images - mean) / deviation
        return images if (order[:-1] < order[1:]).all() else ops.flip(images, axis=-1)

    def constants(self, channels: int) -> tuple[_Constants, _Constants, npt.NDArray[np.int64]]:
        """Means and deviations of the channels, [C], and the order that they are put into, [C]."""
        chosen = NORMALIZATIONS[self.mode]
        mean = np.asarray(chosen.mean, np.float32)
        deviation = np.asarray(chosen.deviation, np.float32)
        order = np.arange(channels)
        if channels != 3:
            mean = np.full(channels, mean.mean(), np.float32)
            deviation = np.full(channels, deviation.mean(), np.float32)
        elif chosen.bgr:
            order = order[::-1]
        return mean, deviation, order

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape stays."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """What a saved model needs to make this layer again."""
        return {**super().get_config(), "mode": self.mode}
