"""A trained classifier in layers that Keras itself has, for whoever loads it without this package.

Our layers do with matrices and constants what Keras's own do too:

    Resize        two einsums with fixed matrices     ApplyWindows   Dense, then ReLU up to 255
    Augment       nothing, outside of training        Normalize      Dense over the channels
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from trainer.networks.augment import Augment
from trainer.networks.normalize import Normalize
from trainer.networks.resize import Resize, resize_matrix
from trainer.networks.windows import ApplyWindows

Array = npt.NDArray[np.float32]


def portable_logits(classifier: Any, image: Any) -> Any:
    """Applies a classifier to stored images.

    Args:
        classifier: as `model.build_classifier` makes it; its weights are shared.
        image: stored images, a symbolic tensor [B, H, W, C] of their type.

    Returns:
        Logits, a symbolic tensor float32 [B, L].
    """
    x = layers.Rescaling(1.0, dtype="float32", name="as_float")(image)
    resize = classifier.get_layer("resize")
    x = _TRANSLATIONS[type(resize)](resize, x)
    for layer in classifier.get_layer("core").layers[1:]:
        translate = _TRANSLATIONS.get(type(layer))
        x = translate(layer, x) if translate else layer(x)
    return x


def in_float32(model: Any) -> tuple[Any, str]:
    """A copy of a functional model that computes in float32, and what the model computes in."""
    policies: set[str] = set()
    copy = type(model).from_config(_float32_config(model.get_config(), policies))
    copy.set_weights(model.get_weights())
    half = [each for each in ("bfloat16", "float16") if any(p.endswith(each) for p in policies)]
    return copy, half[0] if half else "float32"


def _float32_config(config: Any, policies: set[str]) -> Any:
    """A layer's configuration with float32 for each dtype policy, whose names go to `policies`."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            policies.add(config["config"]["name"])
            return keras.saving.serialize_keras_object(keras.DTypePolicy("float32"))
        return {key: _float32_config(each, policies) for key, each in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_float32_config(each, policies) for each in config)
    return config


def resized(layer: Resize, x: Any) -> Any:
    """See `resize.Resize`."""
    _, height, width, channels = x.shape
    if height != layer.size:
        rows = layers.EinsumDense(
            "bhwc,ho->bowc", (layer.size, width, channels), dtype="float32", name="resize_rows"
        )
        x = fixed(rows, x, [resize_matrix(height, layer.size).T])
    if width != layer.size:
        columns = layers.EinsumDense(
            "bhwc,wo->bhoc", (layer.size, layer.size, channels), dtype="float32", name="resize_cols"
        )
        x = fixed(columns, x, [resize_matrix(width, layer.size).T])
    return x


def windowed(layer: ApplyWindows, x: Any) -> Any:
    """See `windows.ApplyWindows`."""
    gain = 255 / np.asarray(layer.widths, np.float64)
    level = 127.5 - gain * (np.asarray(layer.centers) - layer.hu_offset)
    dense = layers.Dense(len(gain), dtype="float32", name="windows")
    x = fixed(dense, x, [gain[None, :].astype(np.float32), level.astype(np.float32)])
    return layers.ReLU(max_value=255.0, dtype="float32", name="clip")(x)


def unchanged(_: Augment, x: Any) -> Any:
    """Outside of training there is no augmentation."""
    return x


def normalized(layer: Normalize, x: Any) -> Any:
    """See `normalize.Normalize`; where blue comes first, the matrix has the order too."""
    channels = x.shape[-1]
    mean, deviation, order = layer.constants(channels)
    matrix = np.diag(1 / deviation.astype(np.float64))[:, order]
    bias = (-mean.astype(np.float64) / deviation)[order]
    dense = layers.Dense(channels, dtype="float32", name="normalize")
    return fixed(dense, x, [matrix.astype(np.float32), bias.astype(np.float32)])


def fixed(layer: Any, x: Any, weights: list[Array]) -> Any:
    """Applies a layer whose weights are constants."""
    layer.trainable = False
    y = layer(x)
    layer.set_weights(weights)
    return y


_TRANSLATIONS: Mapping[type, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        Resize: resized,
        ApplyWindows: windowed,
        Augment: unchanged,
        Normalize: normalized,
    }
)
