"""ResNeXt and SE-ResNeXt, which keras.applications lacks, and weights files of PyTorch for them.

Xie et al., arXiv:1611.05431, with the squeeze-and-excitation blocks of Hu et al., arXiv:1709.01507.
Layers, their order and their names are torchvision's and timm's, with `_` instead of `.`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops
from safetensors.numpy import load_file

GROUPS = 32  # of every grouped convolution
# Parts of a state dict that a backbone does not need: the classifier, and counters.
_UNUSED = ("fc.", "num_batches_tracked")

Tensors = dict[str, npt.NDArray[Any]]


class Architecture(NamedTuple):
    """Blocks per stage, channels per group in the first stage, and whether blocks are squeezed."""

    depths: tuple[int, ...]
    group_width: int = 4
    squeeze: bool = False


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "resnext50_32x4d": Architecture((3, 4, 6, 3)),
        "resnext101_32x4d": Architecture((3, 4, 23, 3)),
        "resnext101_32x8d": Architecture((3, 4, 23, 3), group_width=8),
        "seresnext50_32x4d": Architecture((3, 4, 6, 3), squeeze=True),
        "seresnext101_32x4d": Architecture((3, 4, 23, 3), squeeze=True),
    }
)


def build_resnext(architecture: Architecture, shape: tuple[int, int, int]) -> Any:
    """Build a network: images [B, S, S, C] → feature map [B, h, w, 2048], h = w = S / 32."""
    inputs = layers.Input(shape)
    x = layers.ZeroPadding2D(3, name="conv1_pad")(inputs)
    x = _convolve(x, 64, 7, 2, "conv1")
    x = layers.ReLU(name="conv1_relu")(_normalize(x, "bn1"))
    # No value is below zero, so zeros are no maximum.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    for stage, depth in enumerate(architecture.depths):
        width = GROUPS * architecture.group_width * 2**stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            name = f"layer{stage + 1}_{block}"
            x = _block(x, width, 256 * 2**stage, stride, architecture.squeeze, name)
    return keras.Model(inputs, x, name="backbone")


def _block(x: Any, width: int, filters: int, stride: int, squeeze: bool, name: str) -> Any:
    """Apply a bottleneck of 1 x 1, grouped 3 x 3 and 1 x 1 convolutions, and add a shortcut."""
    y = _normalize(_convolve(x, width, 1, 1, f"{name}_conv1"), f"{name}_bn1")
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = _normalize(grouped_convolution(y, stride, f"{name}_conv2"), f"{name}_bn2")
    y = layers.ReLU(name=f"{name}_relu2")(y)
    y = _normalize(_convolve(y, filters, 1, 1, f"{name}_conv3"), f"{name}_bn3")
    if squeeze:
        scale = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(y)
        scale = layers.Dense(filters // 16, "relu", name=f"{name}_se_fc1")(scale)
        scale = layers.Dense(filters, "sigmoid", name=f"{name}_se_fc2")(scale)
        y = layers.Multiply(name=f"{name}_scale")([y, scale])
    if stride > 1 or x.shape[-1] != filters:
        x = _convolve(x, filters, 1, stride, f"{name}_downsample_0")
        x = _normalize(x, f"{name}_downsample_1")
    return layers.ReLU(name=f"{name}_relu3")(layers.Add(name=f"{name}_add")([x, y]))


def _convolve(x: Any, filters: int, size: int, stride: int, name: str) -> Any:
    """Apply a convolution without padding and bias."""
    return layers.Conv2D(
        filters, size, stride, use_bias=False, kernel_initializer="he_normal", name=name
    )(x)


def _normalize(x: Any, name: str) -> Any:
    """Apply batch normalization with the constants of PyTorch."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def grouped_convolution(x: Any, stride: int, name: str) -> Any:
    """Apply a grouped 3 x 3 convolution, padded by 1, without bias, to a symbolic [B, h, w, C].

    One matrix product over all groups, with Keras's own layers, so exported models need no code of
    this package. `Conv2D(groups=32)` needs XLA on a CPU with TensorFlow, and is far slower there
    with either backend.
    """
    rows, columns, channels = x.shape[1:]
    width = channels // GROUPS
    rows_out, columns_out = (math.ceil(side / stride) for side in (rows, columns))
    x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # The groups first: they are the batch of the matrix product.
    x = ops.reshape(x, (-1, rows + 2, columns + 2, GROUPS, width))
    x = ops.transpose(x, (3, 0, 1, 2, 4))
    taps = [
        x[:, :, row : row + (rows_out - 1) * stride + 1 : stride, column:][
            :, :, :, : (columns_out - 1) * stride + 1 : stride
        ]
        for row in range(3)
        for column in range(3)
    ]
    x = ops.reshape(ops.concatenate(taps, axis=-1), (GROUPS, -1, 9 * width))
    product = layers.EinsumDense(
        "gni,gio->gno",
        (None, width),
        kernel_initializer=keras.initializers.RandomNormal(stddev=math.sqrt(2 / (9 * width))),
        name=name,
    )
    x = ops.reshape(product(x), (GROUPS, -1, rows_out, columns_out, width))
    return ops.reshape(ops.transpose(x, (1, 2, 3, 0, 4)), (-1, rows_out, columns_out, channels))


def read_state_dict(path: str) -> Tensors:
    """Read a state dict of torchvision or timm, as `.safetensors`: arrays by name.

    Raises:
        ValueError: it does not begin like one of these networks, or is a pickle.
    """
    if not path.endswith(".safetensors"):
        raise ValueError(
            "want .safetensors; of a pickle: safetensors.torch.save_file(torch.load(PATH,"
            " weights_only=True), NEW)"
        )
    tensors: Tensors = load_file(path)
    _take(tensors, "conv1.weight", 4)
    return tensors


def load_state_dict(network: Any, tensors: Tensors) -> None:
    """Set all weights of a network from those of torchvision or timm.

    Raises:
        ValueError: a tensor is missing, has another shape, or belongs to another network.
    """
    used = set()

    def take(layer: Any, *names: str) -> list[npt.NDArray[Any]]:
        whole = [f"{layer.name.replace('_', '.')}.{name}" for name in names]
        used.update(whole)
        return [_take(tensors, name) for name in whole]

    for layer in network.layers:
        match layer:
            case layers.BatchNormalization():
                arrays = take(layer, "weight", "bias", "running_mean", "running_var")
            case layers.Conv2D():
                (kernel,) = take(layer, "weight")  # [F, C, kh, kw]
                arrays = [kernel.transpose(2, 3, 1, 0)]
            case layers.EinsumDense():
                (kernel,) = take(layer, "weight")  # [G * F, C, 3, 3]
                grouped = kernel.reshape(GROUPS, -1, *kernel.shape[1:]).transpose(0, 3, 4, 2, 1)
                arrays = [grouped.reshape(GROUPS, -1, grouped.shape[-1])]
            case layers.Dense():
                kernel, bias = take(layer, "weight", "bias")  # [F, C, 1, 1]
                arrays = [kernel.reshape(kernel.shape[:2]).T, bias]
            case _:
                continue
        layer.set_weights([array.astype(np.float32) for array in arrays])
    others = [name for name in sorted({*tensors} - used) if not any(n in name for n in _UNUSED)]
    if others:
        raise ValueError(f"{others[0]} is a tensor of another network")


def _take(tensors: Tensors, name: str, rank: int = 0) -> npt.NDArray[Any]:
    """Return a tensor, of `rank` axes unless 0; raise ValueError if missing."""
    if name not in tensors or (rank and tensors[name].ndim != rank):
        raise ValueError(f"no tensor {name}; want a state dict of torchvision or timm")
    return tensors[name]
