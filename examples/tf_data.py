"""Batches with plain tf.data, which reads shards one after the other.

    python examples/tf_data.py out/shards fold0

(The trainer's own input, `trainer.batches`, is twice as fast.)
"""

import sys

import tensorflow as tf

import headct


def read_split(location: str, split: str, batch_size: int = 32) -> tf.data.Dataset:
    """Images uint8 [B, H, W, C] and labels int64 [B, L]."""
    manifest = headct.open(location).manifest
    features = {
        "image": tf.io.FixedLenFeature((), tf.string),
        "label": tf.io.FixedLenFeature((len(manifest.labels),), tf.int64),
    }

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, features)
        return tf.io.decode_png(example["image"], manifest.image.channels), example["label"]

    files = [f"{location}/{shard.file}" for shard in manifest.splits[split].shards]
    records = tf.data.TFRecordDataset(files)
    return records.map(parse, tf.data.AUTOTUNE).batch(batch_size).prefetch(tf.data.AUTOTUNE)


if __name__ == "__main__":
    count = 0
    for images, _ in read_split(*sys.argv[1:3]):
        count += len(images)
    print(f"{count} images of {tuple(images.shape[1:])}, {images.dtype.name}")
