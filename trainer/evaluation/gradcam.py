"""Where in an image a model sees a label."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt


def activation_maps(
    classifier: Any, images: npt.NDArray[Any], label: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Grad-CAM of one label per image, [B, h, w], 0 to 1 (Selvaraju et al., arXiv:1610.02391).

    Between the last feature map and a logit there is a mean and a linear layer alone, so
    the gradient is that layer's weights, and no backward pass is needed (their section 3).
    A map shows what speaks for the label, and is zero where nothing does: `lack_of_map`.

    Args:
        classifier: stored images → logits.
        images: stored images, [B, H, W, C].
        label: which label to explain, [B].
    """
    core = classifier.get_layer("core")
    resized = np.asarray(classifier.get_layer("resize")(images))
    head = core.get_layer("head")
    network = keras.Model(core.inputs, core.get_layer("pool").input)
    network.jit_compile = classifier.jit_compile
    features = np.asarray(network.predict_on_batch(resized)).astype(np.float32)
    kernel = keras.ops.convert_to_numpy(head.kernel).astype(np.float32)
    maps = np.maximum(np.einsum("bhwd,db->bhw", features, kernel[:, label]), 0)
    # Half-precision features can overflow; a map with a hole in it is none.
    maps[~np.isfinite(maps).all(axis=(1, 2))] = 0
    highest = maps.max(axis=(1, 2), keepdims=True)
    return np.asarray(maps / np.where(highest > 0, highest, 1), np.float32)


def lack_of_map(heat: npt.NDArray[np.float32]) -> str | None:
    """Why a map [h, w] has nothing to show; None if it has."""
    if not heat.any():
        return "nothing in this slice speaks for the label"
    if heat.min() == heat.max():
        return f"the network's last feature map ({heat.shape[0]} x {heat.shape[1]}) is uniform"
    return None
