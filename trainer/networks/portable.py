"""Translate a trained classifier into Keras's own layers: loads without this package.

Resize        two EinsumDense with fixed matrices     ApplyWindows   Dense, then ReLU up to 255
Augment       nothing: identity outside training      Normalize      Dense over the channels
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from trainer.networks.image_layers import (
    ApplyWindows,
    Augment,
    Normalize,
    Resize,
    resize_matrix,
)


def portable_logits(classifier: Any, image: Any) -> Any:
    """Apply a classifier to stored images.

    Args:
        classifier: from `model.build_classifier`; its weights are shared.
        image: stored images, a symbolic tensor [B, H, W, C] of the stored dtype.

    Returns:
        Logits, a symbolic tensor float32 [B, L].
    """
    x = layers.Rescaling(1.0, dtype="float32", name="as_float")(image)
    for layer in [classifier.get_layer("resize"), *classifier.get_layer("core").layers[1:]]:
        match layer:
            case Resize():
                x = _resize(layer, x)
            case ApplyWindows():
                x = _apply_windows(layer, x)
            case Normalize():
                x = _normalize(layer, x)
            case Augment():
                pass
            case _:
                x = layer(x)
    return x


def in_float32(model: Any) -> tuple[Any, str]:
    """Return a float32 copy of a functional model, and the model's own precision.

    The precision is "bfloat16", "float16" or "float32".
    """
    policies: set[str] = set()
    copy = type(model).from_config(_float32_config(model.get_config(), policies))
    copy.set_weights(model.get_weights())
    half = [name for name in ("bfloat16", "float16") if any(p.endswith(name) for p in policies)]
    return copy, half[0] if half else "float32"


def _float32_config(config: Any, policies: set[str]) -> Any:
    """Replace every dtype policy in a configuration by float32; add the names to `policies`."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            policies.add(config["config"]["name"])
            return keras.saving.serialize_keras_object(keras.DTypePolicy("float32"))
        return {key: _float32_config(value, policies) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_float32_config(item, policies) for item in config)
    return config


def _resize(layer: Resize, x: Any) -> Any:
    """Resize rows, then columns, by a matrix product per axis."""
    _, height, width, channels = x.shape
    if height != layer.size:
        rows = layers.EinsumDense(
            "bhwc,ho->bowc", (layer.size, width, channels), dtype="float32", name="resize_rows"
        )
        x = _apply_fixed(rows, x, [resize_matrix(height, layer.size).T])
    if width != layer.size:
        columns = layers.EinsumDense(
            "bhwc,wo->bhoc", (layer.size, layer.size, channels), dtype="float32", name="resize_cols"
        )
        x = _apply_fixed(columns, x, [resize_matrix(width, layer.size).T])
    return x


def _apply_windows(layer: ApplyWindows, x: Any) -> Any:
    """Scale and shift by one Dense layer, then clip to 0 to 255."""
    gain = 255 / np.asarray(layer.widths, np.float64)
    level = 127.5 - gain * (np.asarray(layer.centers) - layer.hu_offset)
    dense = layers.Dense(len(gain), dtype="float32", name="windows")
    x = _apply_fixed(dense, x, [gain[None, :].astype(np.float32), level.astype(np.float32)])
    return layers.ReLU(max_value=255.0, dtype="float32", name="clip")(x)


def _normalize(layer: Normalize, x: Any) -> Any:
    """Normalize by one Dense layer; its matrix also reorders the channels."""
    channels = x.shape[-1]
    mean, deviation, order = layer.constants(channels)
    matrix = np.diag(1 / deviation.astype(np.float64))[:, order]
    bias = (-mean.astype(np.float64) / deviation)[order]
    dense = layers.Dense(channels, dtype="float32", name="normalize")
    return _apply_fixed(dense, x, [matrix.astype(np.float32), bias.astype(np.float32)])


def _apply_fixed(layer: Any, x: Any, weights: list[npt.NDArray[np.float32]]) -> Any:
    """Apply a layer with constant weights."""
    layer.trainable = False
    y = layer(x)
    layer.set_weights(weights)
    return y
