"""Features that timm's networks compute, as tests/trainer/test_resnext.py compares them.

`python tests/trainer/timm_reference.py`, where torch and timm are installed, prints `FEATURES`.
The weights come from their names alone, so that no file of them is kept.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

# Images of 65 pixels: an odd side, of which each stride leaves another remainder.
SIZE = 65
# Blocks per stage of a small network, and (channels per group, squeeze).
SMALL = (2, 1, 1, 1)
KINDS = ((4, False), (4, True), (8, False))


def make_tensor(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A weight by its name, of a size that lets features neither grow nor vanish."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 4:
        values = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    elif name.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif name.endswith("bn3.weight"):
        values = random.uniform(0.2, 0.5, shape)
    elif name.endswith("weight"):
        values = random.uniform(0.8, 1.2, shape)
    else:
        values = random.normal(0, 0.1, shape)
    return values.astype(np.float32)


def make_images(channels: int = 3) -> npt.NDArray[np.float32]:
    """Two normalized images, [2, SIZE, SIZE, C]."""
    shape = (2, SIZE, SIZE, channels)
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


def project(features: npt.NDArray[Any]) -> list[float]:
    """Six random sums of all values of a feature map, [2, h, w, 2048]."""
    random = np.random.default_rng(1).normal(0, 1 / np.sqrt(features.size), (6, features.size))
    return [round(float(value), 6) for value in random @ features.ravel()]


def reference(network: Any) -> list[float]:
    """Features of a timm network with the weights of `make_tensor`."""
    import torch

    state = network.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            state[name] = torch.from_numpy(make_tensor(name, tuple(tensor.shape)))
    network.load_state_dict(state)
    with torch.no_grad():
        images = torch.from_numpy(make_images().transpose(0, 3, 1, 2).copy())
        features = network.eval().forward_features(images).numpy()
    return project(features.transpose(0, 2, 3, 1))


def main() -> None:
    """Prints the features of all networks."""
    import timm
    from timm.models.resnet import Bottleneck, ResNet

    found = {}
    for width, squeeze in KINDS:
        squeezed = {"attn_layer": "se"} if squeeze else {}
        found[f"{width} {squeeze}"] = reference(
            ResNet(Bottleneck, SMALL, cardinality=32, base_width=width, block_args=squeezed)
        )
    names = ("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d")
    for name in (*names, "seresnext50_32x4d", "seresnext101_32x4d"):
        found[name] = reference(timm.create_model(name))
    print(f"# timm {timm.__version__}\nFEATURES = {found!r}")


if __name__ == "__main__":
    main()
