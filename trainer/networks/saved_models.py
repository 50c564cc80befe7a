"""Load models that Keras saved: untrusted files, loaded in Keras's safe mode."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import keras
from keras import layers

from headct.errors import UsageError
from headct.manifest import ImageSpec
from trainer.networks import head_crop  # noqa: F401 - a saved model may contain its layer
from trainer.networks.hardware import choose_xla, compute_capability
from trainer.networks.image_layers import Resize

# Keras saves without compression: an archive that grows by more bytes is not a model.
_GROWTH = 1 << 26
_LONGEST = 200  # characters of a message


def load_model(path: str | Path) -> Any:
    """Load a model; of the code that the file names, run only Keras's own layers.

    Raises:
        UsageError: the file cannot be read; the message is short and does not name the file.
    """
    try:
        _check_sizes(path)
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # any error of Keras, h5py or zipfile
        raise UsageError(first_line(error)) from None


def _check_sizes(path: str | Path) -> None:
    """Raise ValueError if an archive would unpack to much more than its own size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        growth = sum(info.file_size - info.compress_size for info in archive.infolist())
    if growth > _GROWTH:
        raise ValueError(f"it would grow by {growth >> 20} MiB when it is unpacked")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; Keras's messages have many lines."""
    lines = str(error).strip().splitlines()
    return lines[0][:_LONGEST] if lines else type(error).__name__


def load_classifier(
    path: Path,
    xla: str = "auto",
    image: ImageSpec | None = None,
    labels: int | None = None,
    slices: int = 1,
) -> Any:
    """Load a run's saved model.

    Args:
        path: model.keras of a run.
        xla: whether to compile predictions, like `options.TrainOptions.xla`.
        image: required format of the stored images; None: not checked.
        labels: required number of labels; None: not checked.
        slices: slices of a sample, each of the format of `image`.

    Raises:
        UsageError: the file is missing or unreadable, or holds another network.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such model; training has not finished an epoch yet")
    jit_compile = choose_xla(xla, compute_capability(), deterministic=False)
    try:
        model = load_model(path)
        _check_classifier(model, image, labels, slices)
    except UsageError as error:
        raise UsageError(f"{path}: no saved model ({error})") from None
    model.jit_compile = jit_compile
    return model


def _check_classifier(model: Any, image: ImageSpec | None, labels: int | None, slices: int) -> None:
    """Check that a model has the layers, input and output of `model.build_classifier`.

    Raises:
        UsageError: layers, input or output differ.
    """
    try:
        core = model.get_layer("core")
        head, features = core.get_layer("head"), core.get_layer("pool").input.shape
        takes = (*model.input_shape[1:], str(model.inputs[0].dtype))
        wants = image and (image.height, image.width, image.channels * slices, image.dtype)
        fits = (
            isinstance(model.get_layer("resize"), Resize)
            and isinstance(head, layers.Dense)
            and len(features) == 4
            and features[-1] == head.kernel.shape[0]
            and (not wants or takes == wants)
            and (not labels or model.output_shape[1:] == (labels,))
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise UsageError("it is no classifier of such images and labels")


def in_float32(model: Any) -> Any:
    """Return a copy of a functional model that computes in float32."""

    def copy_layer(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, layers.Layer):  # other operations compute in the dtype of their input
            config["dtype"] = "float32"
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=copy_layer, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def copy_saved_weights(path: Path, core: Any) -> None:
    """Copy all weights of a saved classifier, including its head, into the core of a new one.

    Raises:
        UsageError: the file cannot be read, or holds another network.
    """
    source, target = (
        # Integers are the state of training layers.
        [weight for weight in each.weights if keras.backend.is_float_dtype(weight.dtype)]
        for each in (load_classifier(path).get_layer("core"), core)
    )
    if [tuple(each.shape) for each in source] != [tuple(each.shape) for each in target]:
        raise UsageError(f"{path} is the model of another network")
    for ours, theirs in zip(target, source, strict=True):
        ours.assign(theirs)
