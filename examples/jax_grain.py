"""Shards for JAX, by Grain: shuffled, in batches of NumPy arrays.

    python examples/jax_grain.py out/shards fold1 fold2

Needs `pip install grain`.
"""

import sys
from typing import Any

import grain
import numpy as np

import headct


def convert(example: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 [H, W, C] from 0 to 1, labels float32 [L]."""
    return example["image"].astype(np.float32) / 255, example["label"].astype(np.float32)


def batches(shards: headct.Shards, size: int, seed: int = 0) -> grain.IterDataset:
    """An epoch of (images [B, H, W, C], labels [B, L])."""
    dataset = grain.MapDataset.source(shards).shuffle(seed=seed).map(convert)
    return dataset.batch(size).to_iter_dataset()


if __name__ == "__main__":
    for images, labels in batches(headct.open(sys.argv[1]).split(*sys.argv[2:]), 32):
        print(images.shape, images.dtype, labels.shape)
