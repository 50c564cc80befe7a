"""Build backbones by name or from the caller's function, and load initial weights."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import h5py
import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from headct.errors import UsageError
from trainer.networks.catalog import BACKBONES
from trainer.networks.resnext import ARCHITECTURES, build_resnext, load_state_dict, read_state_dict
from trainer.networks.saved_models import first_line, load_model

_FloatArray = npt.NDArray[np.float32]

OWN_NORMALIZATION = "tf"  # input of a caller's backbone: -1 to 1


def build_backbone(name: str, image_size: int, channels: int, weights: str, slices: int = 1) -> Any:
    """Build a backbone: [B, S, S, C] → feature map [B, h, w, D].

    The channels are those of `slices` slices. For weights with another number of channels or
    slices, `adapt_kernel` and `add_slices` adapt the first convolution.

    Raises:
        UsageError: the weights cannot be downloaded or read, or belong to another network.
    """
    network = make_network(name, image_size, channels)
    if weights == "none":
        return network
    source_slices = 1
    try:
        if weights == "imagenet":  # from Keras's cache, or a download
            source = make_network(name, image_size, 3, weights)
        elif weights.endswith(".keras"):
            core = load_model(weights).get_layer("core")
            source, source_slices = core.get_layer("backbone"), _slices_of(core)
        else:
            source = _load_file(name, image_size, channels, weights)
            # three channels are the colors of one slice
            if channels > 3 and source.input_shape[-1] == channels:
                source_slices = slices
        _copy_weights(source, network, source_slices, slices)
    except Exception as error:  # any error of Keras, h5py or safetensors
        reason = first_line(error)
        raise UsageError(f"--weights {weights}: no weights of {name} ({reason})") from None
    return network


def make_network(name: str, image_size: int, channels: int, weights: str | None = None) -> Any:
    """Make a network with random weights, or with ImageNet's if `weights` is "imagenet"."""
    backbone = BACKBONES[name]
    shape = (image_size, image_size, channels)
    if name in ARCHITECTURES:
        return build_resnext(ARCHITECTURES[name], shape)
    if not backbone.maker:
        return small_resnet(shape)
    maker = getattr(keras.applications, backbone.maker)
    # Some networks begin with layers for normalization.
    has_layers = "include_preprocessing" in inspect.signature(maker).parameters
    extra = {"include_preprocessing": False} if has_layers else {}
    with warnings.catch_warnings():
        # The number of channels is the number of windows.
        warnings.filterwarnings("ignore", "This model usually expects 1 or 3 input channels")
        network = maker(include_top=False, weights=weights, input_shape=shape, **extra)
    # Fixed name, because saved models are searched for it; EfficientNetV2 has no name argument.
    network.name = "backbone"
    return network


def _load_file(name: str, image_size: int, channels: int, path: str) -> Any:
    """Load a weights file into a network with the file's number of channels."""
    if name in ARCHITECTURES and not path.endswith(".h5"):
        tensors = read_state_dict(path)
        network = make_network(name, image_size, tensors["conv1.weight"].shape[1])
        load_state_dict(network, tensors)
        return network
    network = make_network(name, image_size, channels)
    source = _source_channels(path, _first_kernel(network))
    if source != channels:
        network = make_network(name, image_size, source)
    # Keras only warns about layers without weights in the file.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        network.load_weights(path)
    return network


def _first_kernel(network: Any) -> tuple[int, ...]:
    """Return the shape of the first convolution's kernel: [kh, kw, channels, F]."""
    return next(tuple(weight.shape) for weight in network.weights if len(weight.shape) == 4)


def _source_channels(path: str, kernel: tuple[int, ...]) -> int:
    """Return the input channels of the first convolution in a weights file.

    Args:
        path: the file.
        kernel: shape of the network's kernel; the file's may have other input channels.
    """
    candidates: set[int] = set()

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == 4:
            rows, columns, channels, filters = item.shape
            if (rows, columns, filters) == (kernel[0], kernel[1], kernel[3]):
                candidates.add(int(channels))

    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            file.visititems(visit)
    # Later convolutions of the same shape have more input channels than the first one.
    return kernel[2] if kernel[2] in candidates else min(candidates, default=kernel[2])


def _slices_of(core: Any) -> int:
    """Return how many slices the samples of a saved core have."""
    return max((getattr(layer, "slices", 1) for layer in core.layers), default=1)


def _copy_weights(source: Any, target: Any, source_slices: int, slices: int) -> None:
    """Copy every weight; adapt the first convolution to the target's channels and slices.

    Raises:
        ValueError: source and target are different networks, or the source sees more slices.
    """
    arrays, kernel = source.get_weights(), _first_kernel(target)
    first = [weight.shape for weight in target.weights].index(kernel)
    arrays[first] = add_slices(arrays[first], kernel, source_slices, slices)
    target.set_weights(arrays)


def add_slices(
    weights: _FloatArray, shape: tuple[int, ...], source_slices: int, slices: int
) -> _FloatArray:
    """Adapt the first convolution, [kh, kw, source channels, F], to more slices.

    The slices in the middle get the source's kernels (`adapt_kernel`), the slices around them
    zeros: before training, the output is the same as without neighbors. A zero kernel has a
    gradient, so training goes on to use the neighbors.

    Raises:
        ValueError: the source has more slices.
    """
    if source_slices > slices:
        raise ValueError(f"its network sees {source_slices} slices at once, this one {slices}")
    rows, columns, channels, filters = shape
    each = (rows, columns, channels // slices, filters)
    parts = [adapt_kernel(part, each) for part in np.split(weights, source_slices, axis=2)]
    zeros = [np.zeros(each, np.float32)] * ((slices - source_slices) // 2)
    return np.concatenate([*zeros, *parts, *zeros], axis=2)


def adapt_kernel(weights: _FloatArray, shape: tuple[int, ...]) -> _FloatArray:
    """Adapt the first convolution, [kh, kw, source channels, F], to another number of channels.

    Every channel gets the mean over source channels, times source channels / channels, so that the
    output for images with equal channels does not change.
    """
    if weights.shape == tuple(shape):
        return weights
    source, channels = weights.shape[2], shape[2]
    mean = weights.mean(axis=2, keepdims=True)
    return np.repeat(mean, channels, axis=2) * np.float32(source / channels)


def small_resnet(shape: tuple[int, int, int]) -> Any:
    """Build five residual blocks, 32 to 256 channels (He et al., arXiv:1603.05027)."""
    inputs = layers.Input(shape)
    x = layers.Conv2D(32, 3, 2, "same", use_bias=False, name="stem")(inputs)
    for stage, filters in enumerate((32, 64, 128, 256)):
        x = residual_block(x, filters, 1 if stage == 0 else 2, f"stage{stage}")
    x = residual_block(x, 256, 1, "stage4")
    x = layers.BatchNormalization(momentum=0.9, name="last_norm")(x)
    return keras.Model(inputs, layers.ReLU(name="last_relu")(x), name="backbone")


def residual_block(x: Any, filters: int, stride: int, name: str) -> Any:
    """Apply norm, ReLU and convolution twice, and add a shortcut."""
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


def build_own_backbone(builder: Callable[..., Any], name: str, shape: tuple[int, int, int]) -> Any:
    """Build a backbone with the caller's function, and check the result.

    Args:
        builder: (S, S, C) → keras.Model, float32 [B, S, S, C] from -1 to 1 → features [B, h, w, D]
            or [B, D].
        name: name of the function.
        shape: (S, S, C).

    Raises:
        UsageError: the result is not such a model, or a saved copy could not be loaded.
    """
    network = builder(shape)
    wanted = f"want a keras.Model from {[None, *shape]} to features [B, h, w, D] or [B, D]"
    if not isinstance(network, keras.Model):
        raise UsageError(f"--model {name}: made {type(network).__name__}; {wanted}")
    inputs, outputs = (getattr(network, side, None) for side in ("input_shape", "output_shape"))
    if inputs != (None, *shape) or not isinstance(outputs, tuple) or len(outputs) not in (2, 4):
        raise UsageError(f"--model {name}: made a model from {inputs} to {outputs}; {wanted}")
    try:
        saved = keras.saving.serialize_keras_object(network)
        keras.saving.deserialize_keras_object(saved, safe_mode=True)
    except (ValueError, TypeError, AttributeError, ImportError, NotImplementedError) as error:
        reason = first_line(error)
        raise UsageError(
            f"--model {name}: could not be loaded once it is saved ({reason})"
        ) from None
    network.name = "backbone"
    return network
