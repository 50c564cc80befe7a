"""Shards for JAX, by Grain: shuffled, in batches, in several worker processes.

    python examples/jax_grain.py out/shards fold1 fold2

Needs `pip install grain pandas pyarrow`; what it gives are NumPy arrays.
"""

import sys
from pathlib import Path

import grain
import numpy as np
from shard_images import ShardImages, read_splits


def batches(images: ShardImages, size: int, seed: int = 0) -> grain.IterDataset:
    """An epoch of (images float32 [B, H, W, C] from 0 to 1, labels float32 [B, L])."""
    dataset = grain.MapDataset.source(images).shuffle(seed=seed)
    dataset = dataset.map(lambda each: (each[0].astype(np.float32) / 255, each[1]))
    return dataset.batch(size).to_iter_dataset()


if __name__ == "__main__":
    for images, labels in batches(read_splits(Path(sys.argv[1]), sys.argv[2:]), 32):
        print(images.shape, images.dtype, labels.shape)
