"""Random access for PyTorch, by the index, in any number of worker processes.

    python examples/pytorch_dataset.py out/shards fold1 fold2

It takes `pip install torch pandas pyarrow opencv-python-headless`, and neither TensorFlow nor Beam.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

PNG_BEGINS, PNG_ENDS = b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"


class ShardDataset:
    """A map-style dataset: images uint8 [C, H, W] and labels float32 [L]."""

    def __init__(self, folder: Path, splits: Sequence[str]) -> None:
        index = pd.read_parquet(folder / "index.parquet")
        index = index[index["split"].isin(splits)]
        self.folder = folder
        # Arrays, which worker processes share: rows of a table would be copied into each.
        self.shards, self.shard = np.unique(index["shard"].to_numpy(str), return_inverse=True)
        self.offset, self.size = index["offset"].to_numpy(), index["bytes"].to_numpy()
        self.labels = index.filter(regex="^label_").to_numpy(np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        with (self.folder / self.shards[self.shard[row]]).open("rb") as file:
            file.seek(self.offset[row])
            record = file.read(self.size[row])
        # A record is a tf.train.Example, in which the PNG is found by how it begins and ends.
        png = record[record.index(PNG_BEGINS) : record.rindex(PNG_ENDS) + len(PNG_ENDS)]
        image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
        # OpenCV gives blue, green, red where the PNG has red, green, blue.
        image = image[..., ::-1] if image.ndim == 3 else image[..., None]
        return np.ascontiguousarray(image.transpose(2, 0, 1)), self.labels[row]


if __name__ == "__main__":
    from torch.utils.data import DataLoader

    dataset = ShardDataset(Path(sys.argv[1]), sys.argv[2:])
    for images, labels in DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2):
        print(tuple(images.shape), images.dtype, tuple(labels.shape))
