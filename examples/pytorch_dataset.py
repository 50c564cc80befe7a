"""Shards in PyTorch: shuffled by random access, in several worker processes.

    python examples/pytorch_dataset.py out/shards fold1 fold2

Needs `pip install torch`, and neither TensorFlow nor Beam.
"""

import sys
from typing import Any

import numpy as np

import headct


class Tensors:
    """Shards as PyTorch wants them: images [C, H, W] and labels float32 [L].

    Images in Hounsfield units become int32, since PyTorch can neither add nor compare uint16.
    """

    def __init__(self, shards: headct.Shards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        return self._convert(self.shards[position])

    def __getitems__(self, positions: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Read a batch; of shards in a bucket, side by side."""
        return [self._convert(example) for example in self.shards.__getitems__(positions)]

    def _convert(self, example: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        image = example["image"].transpose(2, 0, 1)
        dtype = np.int32 if image.dtype == np.uint16 else np.uint8
        return image.astype(dtype, order="C"), example["label"].astype(np.float32)


if __name__ == "__main__":
    from torch.utils.data import DataLoader

    dataset = Tensors(headct.open(sys.argv[1]).split(*sys.argv[2:]))
    for images, labels in DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2):
        print(tuple(images.shape), images.dtype, tuple(labels.shape))
