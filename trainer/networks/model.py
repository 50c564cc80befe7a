"""The classifier: stored images → logits, computed on the device.

    stored image ─ Resize ─┬─ [ApplyWindows] ─ Augment ─ [Mixup] ─ Normalize ─ backbone ─ pool ─
    (uint8, uint16)        └── cached images                                     head

With neighbors, an image has the channels of all slices of a sample (`data.neighbors`).

Everything after Resize is one inner model, `core`: cached images are already resized, and train the
same layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers
from scipy.special import logit

from headct.manifest import ImageSpec
from trainer.data.neighbors import Neighbors
from trainer.data.sampling import priors
from trainer.networks.backbones import OWN_NORMALIZATION, build_backbone, build_own_backbone
from trainer.networks.catalog import find_backbone
from trainer.networks.head_crop import CropHead, foreground_threshold
from trainer.networks.image_layers import ApplyWindows, Augment, Mixup, Normalize, Resize
from trainer.option_values import parse_windows
from trainer.options import TrainOptions

_BRAIN = 40.0  # Hounsfield units: center of the brain window


@dataclass(frozen=True)
class Classifier:
    """Three models that share their weights.

    Attributes:
        model: stored images [B, H, W, C] → logits float32 [B, L].
        core: resized images [B, S, S, C] → logits.
        backbone: the inner network of the core, which may be pretrained.
    """

    model: Any
    core: Any
    backbone: Any


def build_classifier(
    options: TrainOptions,
    image: ImageSpec,
    prevalence: tuple[float, ...],
    policy: str,
    builder: Callable[..., Any] | None = None,
) -> Classifier:
    """Build the network of a run, with random or pretrained weights.

    The untrained head predicts `prevalence`, the share of positives per label (Lin et al.,
    arXiv:1708.02002, 4.1); otherwise the first epoch is spent learning base rates. The head's
    kernel starts at zero, because random weights would add noise to the prediction.

    Args:
        options: options of the run.
        image: format of the stored images, of one slice.
        prevalence: share of positives per label in the training data.
        policy: Keras's dtype policy.
        builder: makes the backbone; None for one of `catalog.BACKBONES`.

    Raises:
        UsageError: the backbone, the size, the windows or the weights do not fit.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)  # keras.applications have no such argument
    try:
        core, backbone = _build_core(options, image, len(prevalence), builder)
        channels = image.channels * Neighbors(options.neighbors).slices
        stored = layers.Input((image.height, image.width, channels), dtype=image.dtype)
        logits = core(build_resize(options, image)(stored))
    finally:
        keras.config.set_dtype_policy(before)
    core.get_layer("head").bias.assign(logit(priors(prevalence)))
    return Classifier(keras.Model(stored, logits, name="classifier"), core, backbone)


def build_resize(options: TrainOptions, image: ImageSpec) -> Resize:
    """Build the first layer: stored images [B, H, W, C] → float32 [B, S, S, C]."""
    middle = _BRAIN - image.hu_offset if image.is_hounsfield else 0.0
    if not options.crop_head:
        return Resize(options.image_size, middle, name="resize")
    return CropHead(options.image_size, foreground_threshold(image), middle, name="resize")


def _build_core(
    options: TrainOptions, image: ImageSpec, labels: int, builder: Callable[..., Any] | None
) -> tuple[Any, Any]:
    """Build everything after Resize; return the core and the backbone."""
    size, slices = options.image_size, Neighbors(options.neighbors).slices
    inputs = layers.Input((size, size, image.channels * slices), dtype="float32")
    x = inputs
    if image.is_hounsfield:
        windows = parse_windows(options.windows)
        x = ApplyWindows(
            centers=[window.center for window in windows],
            widths=[window.width for window in windows],
            hu_offset=image.hu_offset,
            jitter=options.window_jitter,
            seed=options.seed + 4,
            name="windows",
        )(x)
    x = Augment(options.augment, seed=options.seed + 1, name="augment")(x)
    if options.mixup:
        x = Mixup(options.mixup, seed=options.seed + 3, name="mixup")(x)
    channels = int(x.shape[-1])
    if builder is None:
        mode = find_backbone(options.model, size, options.weights).normalization
        backbone = build_backbone(options.model, size, channels, options.weights, slices)
    else:
        mode = OWN_NORMALIZATION
        backbone = build_own_backbone(builder, options.model, (size, size, channels))
    x = backbone(Normalize(mode, slices, name="normalize")(x))
    if len(x.shape) == 2:  # features without rows and columns
        x = layers.Reshape((1, 1, x.shape[-1]), name="map")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(options.dropout, seed=options.seed + 2, name="dropout")(x)
    # Logits in half precision are too coarse for the logarithm in the loss.
    head = layers.Dense(labels, dtype="float32", kernel_initializer="zeros", name="head")
    return keras.Model(inputs, head(x), name="core"), backbone
