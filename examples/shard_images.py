"""Random access to the images and labels of shards, by their index.

    python examples/shard_images.py out/shards fold0

Needs pandas, pyarrow and NumPy; neither TensorFlow nor Beam, nor protobuf: `index.parquet` says
where in which file each PNG lies. With `pip install isal` reading takes half the time. The other
examples of random access import this one.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

try:
    from isal import isal_zlib as zlib
except ImportError:
    import zlib


class ShardImages:
    """A sequence of (image [H, W, C], labels float32 [L]: 0, 1, or -1 where unlabeled).

    Args:
        folder: of the shards.
        index: rows of its `index.parquet`, in the order wanted.
    """

    def __init__(self, folder: Path, index: pd.DataFrame) -> None:
        image = json.loads((folder / "manifest.json").read_text())["image"]
        self.shape = image["height"], image["width"], image["channels"]
        self.dtype = np.dtype(image["dtype"])
        # Arrays, which worker processes share: rows of a table would be copied into each.
        self.shard, names = index["shard"].factorize()
        self.files = [folder / name for name in names]
        self.offset, self.size = index["image_offset"].to_numpy(), index["image_bytes"].to_numpy()
        self.labels = index.filter(regex="^label_").to_numpy(np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self.view(row).astype(self.dtype), self.labels[row].copy()

    def view(self, row: int) -> np.ndarray:
        """An image [H, W, C] to be copied: read-only, big-endian, and not contiguous."""
        with self.files[self.shard[row]].open("rb") as file:
            file.seek(self.offset[row])
            return self.decode(file.read(self.size[row]))

    def decode(self, png: bytes) -> np.ndarray:
        """A view of the pixels of a PNG as the pipeline writes it: one IDAT chunk, no row filtered.

        Its data lie between 41 bytes (signature, header, length and type) and 16 (checksum, end).
        cv2.imdecode reads it too, more slowly, and gives blue, green, red.
        """
        height, width, channels = self.shape
        size = height * (1 + width * channels * self.dtype.itemsize)
        # A buffer that need not grow: the new pages of memory can cost as much as inflating.
        data = zlib.decompress(memoryview(png)[41:-16], bufsize=size + 64)
        rows = np.frombuffer(data, np.uint8).reshape(height, -1)
        if rows[:, 0].any():  # the first byte of a row says how it is filtered
            raise ValueError("a PNG of another writer: decode it by a library")
        return rows[:, 1:].view(self.dtype.newbyteorder(">")).reshape(height, width, channels)


def read_splits(folder: Path, splits: Sequence[str]) -> ShardImages:
    """The images of some splits, such as `fold0`."""
    index = pd.read_parquet(folder / "index.parquet")
    if missing := {*splits} - {*index["split"]}:
        raise ValueError(f"no split {sorted(missing)}: there are {sorted({*index['split']})}")
    return ShardImages(folder, index[index["split"].isin(splits)])


if __name__ == "__main__":
    images = read_splits(Path(sys.argv[1]), sys.argv[2:])
    image, labels = images[len(images) // 2]
    print(f"{len(images)} images; one in the middle: {image.shape} {image.dtype}, labels {labels}")
