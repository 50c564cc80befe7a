"""Shards in PyTorch: shuffled by random access, in several worker processes.

    python examples/pytorch_dataset.py out/shards fold1 fold2

Needs `pip install torch pandas pyarrow`, and neither TensorFlow nor Beam; isal makes it faster.
"""

import sys
from pathlib import Path

import numpy as np
from shard_images import ShardImages, read_splits


class ShardDataset:
    """A map-style dataset: images uint8 [C, H, W] and labels float32 [L].

    Channels are in the order of the manifest's windows. Of shards in Hounsfield units, images are
    int32 [1, H, W]: add the manifest's hu_offset to them.
    """

    def __init__(self, images: ShardImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        # PyTorch can neither add nor compare uint16.
        dtype = np.int32 if self.images.dtype == np.uint16 else np.uint8
        image = self.images.view(row).transpose(2, 0, 1)
        return image.astype(dtype, order="C"), self.images.labels[row].copy()


if __name__ == "__main__":
    from torch.utils.data import DataLoader

    dataset = ShardDataset(read_splits(Path(sys.argv[1]), sys.argv[2:]))
    for images, labels in DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2):
        print(tuple(images.shape), images.dtype, tuple(labels.shape))
