"""The convolutional networks, by name, with the weights they start from."""

from __future__ import annotations

import warnings
from typing import Any

import h5py
import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from headct.errors import UsageError
from trainer.networks.catalog import BACKBONES
from trainer.networks.saved_models import first_line, load_model

_FloatArray = npt.NDArray[np.float32]


def build_backbone(name: str, image_size: int, channels: int, weights: str) -> Any:
    """Makes the network: [B, S, S, C] → feature map [B, h, w, D].

    Where the weights are of another number of channels, the kernel of the first convolution is
    adapted (`adapt_kernel`).

    Raises:
        UsageError: the weights cannot be had, or are of another network.
    """
    if weights == "none":
        return make_network(name, image_size, channels)
    if weights == "imagenet":
        source = _fetch_imagenet(name, image_size)
    elif weights.endswith(".keras"):
        source = _backbone_of_run(name, weights)
    else:
        source = _load_file(name, image_size, channels, weights)
    network = make_network(name, image_size, channels)
    _copy_weights(name, source, network, weights)
    return network


def make_network(name: str, image_size: int, channels: int, weights: str | None = None) -> Any:
    """Makes the network, with random weights unless told `imagenet`."""
    backbone = BACKBONES[name]
    shape = (image_size, image_size, channels)
    if not backbone.maker:
        return small_resnet(shape)
    extra = {"include_preprocessing": False} if backbone.preprocesses else {}
    maker = getattr(keras.applications, backbone.maker)
    with warnings.catch_warnings():
        # A channel a window is on purpose.
        warnings.filterwarnings("ignore", "This model usually expects 1 or 3 input channels")
        network = maker(include_top=False, weights=weights, input_shape=shape, **extra)
    # So that a saved model says where it is; EfficientNetV2 takes no other name as an argument.
    network.name = "backbone"
    return network


def _fetch_imagenet(name: str, image_size: int) -> Any:
    """The network as Keras publishes it, from its cache or the network.

    Raises:
        UsageError: it can be had from neither.
    """
    try:
        return make_network(name, image_size, 3, "imagenet")
    except Exception as error:  # Keras raises a bare Exception where the download fails.
        if type(error) is not Exception and not isinstance(error, OSError):
            raise
        raise UsageError(
            f"--weights imagenet: cannot be downloaded ({str(error).strip()});"
            " use --weights none or a file"
        ) from None


def _backbone_of_run(name: str, path: str) -> Any:
    """The backbone of a model that a run saved.

    Raises:
        UsageError: the file is no such model.
    """
    try:
        classifier = load_model(path)
        return classifier.get_layer("core").get_layer("backbone")
    except (UsageError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"--weights {path}: no weights of {name} ({first_line(error)})") from None


def _load_file(name: str, image_size: int, channels: int, path: str) -> Any:
    """Loads a weights file into a network of as many channels as it was written for.

    Raises:
        UsageError: it is of another network, or no weights file.
    """
    network = make_network(name, image_size, channels)
    try:
        source = _source_channels(path, _first_kernel(network))
        if source != channels:
            network = make_network(name, image_size, source)
        # Where a layer finds no weights, Keras only warns, and leaves it as it is.
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            network.load_weights(path)
    except Exception as error:  # whatever Keras and h5py make of the file
        raise UsageError(f"--weights {path}: no weights of {name} ({first_line(error)})") from None
    return network


def _first_kernel(network: Any) -> tuple[int, ...]:
    """The shape of the first convolution's kernel: [kh, kw, channels, F]."""
    return next(tuple(each.shape) for each in network.weights if len(each.shape) == 4)


def _source_channels(path: str, kernel: tuple[int, ...]) -> int:
    """The channels of the file's first convolution, which is `kernel` but for their number."""
    found: set[int] = set()

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == 4:
            rows, columns, channels, filters = item.shape
            if (rows, columns, filters) == (kernel[0], kernel[1], kernel[3]):
                found.add(int(channels))

    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            file.visititems(visit)
    # Later layers have as many channels as the first has filters, more than images have windows.
    return kernel[2] if kernel[2] in found else min(found, default=kernel[2])


def _copy_weights(name: str, source: Any, target: Any, origin: str) -> None:
    """Copies every weight, the first convolution's adapted to the target's channels.

    Raises:
        UsageError: the two are not the same network.
    """
    arrays = [np.asarray(each) for each in source.get_weights()]
    shapes = [tuple(each.shape) for each in target.weights]
    differing = [i for i, (a, s) in enumerate(zip(arrays, shapes, strict=False)) if a.shape != s]
    first_kernel = shapes.index(_first_kernel(target))
    if len(arrays) != len(shapes) or any(each != first_kernel for each in differing):
        raise UsageError(f"--weights {origin}: no weights of {name}")
    arrays[first_kernel] = adapt_kernel(arrays[first_kernel], shapes[first_kernel])
    target.set_weights(arrays)


def adapt_kernel(weights: _FloatArray, shape: tuple[int, ...]) -> _FloatArray:
    """Fits the first convolution, [kh, kw, source channels, F], to another number of channels.

    Every channel gets the mean over the source's, times source channels / channels: an image that
    is the same in all channels gives what it gave before. Other weights pass unchanged.
    """
    if weights.shape == tuple(shape):
        return weights
    source, channels = weights.shape[2], shape[2]
    mean = weights.mean(axis=2, keepdims=True)
    return np.repeat(mean, channels, axis=2) * np.float32(source / channels)


def small_resnet(shape: tuple[int, int, int]) -> Any:
    """Five residual blocks from 32 to 256 channels (He et al., arXiv:1603.05027)."""
    inputs = layers.Input(shape)
    x = layers.Conv2D(32, 3, 2, "same", use_bias=False, name="stem")(inputs)
    for stage, filters in enumerate((32, 64, 128, 256)):
        x = residual_block(x, filters, 1 if stage == 0 else 2, f"stage{stage}")
    x = residual_block(x, 256, 1, "stage4")
    x = layers.BatchNormalization(momentum=0.9, name="last_norm")(x)
    return keras.Model(inputs, layers.ReLU(name="last_relu")(x), name="backbone")


def residual_block(x: Any, filters: int, stride: int, name: str) -> Any:
    """Norm, ReLU and convolution, twice, beside a shortcut."""
    y = layers.ReLU(name=f"{name}_relu1")(
        layers.BatchNormalization(momentum=0.9, name=f"{name}_norm1")(x)
    )
    if stride > 1 or x.shape[-1] != filters:
        x = layers.Conv2D(filters, 1, stride, "same", use_bias=False, name=f"{name}_shortcut")(y)
    y = layers.Conv2D(filters, 3, stride, "same", use_bias=False, name=f"{name}_conv1")(y)
    y = layers.ReLU(name=f"{name}_relu2")(
        layers.BatchNormalization(momentum=0.9, name=f"{name}_norm2")(y)
    )
    y = layers.Conv2D(filters, 3, 1, "same", use_bias=False, name=f"{name}_conv2")(y)
    return layers.Add(name=f"{name}_add")([x, y])
