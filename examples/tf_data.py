"""Batches with plain tf.data.

    python examples/tf_data.py out/shards fold0

Needs nothing of this project. (The trainer's own input, `trainer.batches`, is twice as fast.)
"""

import json
import sys
from pathlib import Path

import tensorflow as tf


def read_split(folder: Path, split: str, batch_size: int = 32) -> tf.data.Dataset:
    """Images uint8 [B, H, W, C] and labels int64 [B, L]."""
    manifest = json.loads((folder / "manifest.json").read_text())
    labels, channels = manifest["labels"], manifest["image"]["channels"]
    features = {
        "image": tf.io.FixedLenFeature((), tf.string),
        "label": tf.io.FixedLenFeature((len(labels),), tf.int64),
    }

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, features)
        return tf.io.decode_png(example["image"], channels), example["label"]

    files = [str(folder / shard["file"]) for shard in manifest["splits"][split]["shards"]]
    records = tf.data.TFRecordDataset(files)
    return records.map(parse, tf.data.AUTOTUNE).batch(batch_size).prefetch(tf.data.AUTOTUNE)


if __name__ == "__main__":
    count = 0
    for images, _ in read_split(Path(sys.argv[1]), sys.argv[2]):
        count += len(images)
    print(f"{count} images of {tuple(images.shape[1:])}, {images.dtype.name}")
