"""The classifier: stored images in, logits out, everything between on the device.

    stored image ─ Resize ─┬─ [ApplyWindows] ─ Augment ─ Normalize ─ backbone ─ pool ─ head
    (uint8, uint16)        └── what a cache holds

Everything after Resize is one inner model, `core`, so that cached images, resized already,
train the same layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from keras import layers

from headct.errors import UsageError
from headct.manifest import ImageSpec
from trainer.data.priors import log_odds
from trainer.networks.augment import Augment
from trainer.networks.averaging import assign, copies
from trainer.networks.backbones import build_backbone
from trainer.networks.catalog import find_backbone
from trainer.networks.hardware import choose_xla, compute_capability, dtype_policy
from trainer.networks.normalize import Normalize
from trainer.networks.own import OWN_NORMALIZATION, Builder, build_own
from trainer.networks.resize import Resize
from trainer.networks.saved_models import load_model
from trainer.networks.windows import ApplyWindows
from trainer.options import TrainOptions, parse_windows


@dataclass(frozen=True)
class Classifier:
    """The parts of the network that share their weights.

    Attributes:
        model: stored images [B, H, W, C] → logits float32 [B, L].
        core: the same from images that are resized already, [B, S, S, C].
        backbone: the part that may have been pretrained.
    """

    model: Any
    core: Any
    backbone: Any


def build_classifier(
    options: TrainOptions,
    image: ImageSpec,
    prevalence: tuple[float, ...],
    policy: str,
    builder: Builder | None = None,
) -> Classifier:
    """Makes the network of a run, its weights seeded or pretrained.

    Before its first step it predicts `prevalence`, the share of positives of each label (Lin et
    al., arXiv:1708.02002, 4.1): rare labels else cost most of the first epoch. The head's kernel
    therefore begins with zeros, for random features times random weights would be added to it.

    Raises:
        UsageError: the backbone, the size, the windows or the weights do not fit.
    """
    with dtype_policy(policy):
        core, backbone = _build_core(options, image, len(prevalence), builder)
        stored = layers.Input((image.height, image.width, image.channels), dtype=image.dtype)
        logits = core(Resize(options.image_size, name="resize")(stored))
    core.get_layer("head").bias.assign(log_odds(prevalence))
    return Classifier(keras.Model(stored, logits, name="classifier"), core, backbone)


def _build_core(
    options: TrainOptions, image: ImageSpec, labels: int, builder: Builder | None
) -> tuple[Any, Any]:
    """Everything after the resizing, and the backbone in it."""
    size = options.image_size
    inputs = layers.Input((size, size, image.channels), dtype="float32")
    x = inputs
    if image.is_hounsfield:
        x = _windows_layer(options, image)(x)
    x = Augment(options.augment, seed=options.seed + 1, name="augment")(x)
    channels = int(x.shape[-1])
    if builder is None:
        mode = find_backbone(options.model, size).normalization
        backbone = build_backbone(options.model, size, channels, options.weights)
    else:
        mode = OWN_NORMALIZATION
        backbone = build_own(builder, options.model, (size, size, channels))
    x = backbone(Normalize(mode, name="normalize")(x))
    if len(x.shape) == 2:  # features without a place
        x = layers.Reshape((1, 1, x.shape[-1]), name="map")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(options.dropout, seed=options.seed + 2, name="dropout")(x)
    # A logit in half precision is too coarse for the logarithm of the loss.
    logits = layers.Dense(
        labels,
        dtype="float32",
        kernel_initializer="zeros",
        name="head",
    )(x)
    return keras.Model(inputs, logits, name="core"), backbone


def _windows_layer(options: TrainOptions, image: ImageSpec) -> Any:
    """The layer that makes gray levels of Hounsfield units."""
    windows = parse_windows(options.windows)
    return ApplyWindows(
        centers=[each.center for each in windows],
        widths=[each.width for each in windows],
        hu_offset=image.hu_offset,
        jitter=options.window_jitter,
        seed=options.seed + 4,
        name="windows",
    )


def take_weights(classifier: Classifier, path: Path) -> None:
    """Gives a new classifier all weights of a saved one, its head's too.

    Raises:
        UsageError: it cannot be read, or is of another network.
    """
    source = load_classifier(path).get_layer("core")
    arrays = copies(source.weights)
    if [each.shape for each in arrays] != [tuple(each.shape) for each in classifier.core.weights]:
        raise UsageError(f"--continue_from: {path} is the model of another network")
    assign(classifier.core.weights, arrays)


def load_classifier(
    path: Path, xla: str = "auto", image: ImageSpec | None = None, labels: int | None = None
) -> Any:
    """Loads the model a run saved.

    Args:
        path: of the model.
        xla: whether its predictions are compiled, as `options.TrainOptions.xla` has it.
        image: that it must take, where that is known.
        labels: how many it must answer.

    Raises:
        UsageError: there is none, it cannot be read, or it is another network.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such model; training has not finished an epoch yet")
    jit_compile = choose_xla(xla, compute_capability(), deterministic=False)
    try:
        model = load_model(path)
        _check_classifier(model, image, labels)
    except UsageError as error:
        raise UsageError(f"{path}: no saved model ({error})") from None
    model.jit_compile = jit_compile
    return model


def _check_classifier(model: Any, image: ImageSpec | None, labels: int | None) -> None:
    """Looks for the parts of `build_classifier`, and at what goes in and comes out.

    Raises:
        UsageError: it is none.
    """
    try:
        core = model.get_layer("core")
        head, pool = core.get_layer("head"), core.get_layer("pool")
        takes = (*model.input_shape[1:], str(model.inputs[0].dtype))
        answers = model.output_shape[1:]
        parts = isinstance(model.get_layer("resize"), Resize), isinstance(head, layers.Dense)
        features = pool.input.shape
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise UsageError("it is no classifier that a run saves") from None
    if not all(parts) or len(features) != 4 or features[-1] != head.kernel.shape[0]:
        raise UsageError("it is no classifier that a run saves")
    if image and takes != (image.height, image.width, image.channels, image.dtype):
        raise UsageError(f"it takes images of {takes}, the run's are of another shape or type")
    if labels and answers != (labels,):
        raise UsageError(f"it answers {answers}, the run has {labels} labels")
