"""Splits, names of labels and supervised pairs with TensorFlow Datasets.

    python examples/tfds_splits.py out/shards

It takes `pip install tensorflow-datasets`.
"""

import sys

import tensorflow_datasets as tfds

import headct

if __name__ == "__main__":
    folder = sys.argv[1]
    builder = tfds.builder_from_directory(folder)
    names = headct.open(folder).labels
    print("splits:", {name: split.num_examples for name, split in builder.info.splits.items()})
    # Whole epochs of a small data set are kept in memory by default; this reads only its beginning.
    reading = tfds.ReadConfig(try_autocache=False)
    example = next(iter(builder.as_dataset(split="fold0", read_config=reading)))
    print("a slice:", example["image_id"].numpy().decode(), example["image"].shape)
    # Pairs for keras.Model.fit.
    pairs = builder.as_dataset(split="fold0", as_supervised=True, read_config=reading)
    images, labels = next(iter(pairs.shuffle(256, seed=0).batch(8)))
    positives = labels.numpy().sum(axis=0).tolist()
    print("a batch:", images.shape, "positives:", dict(zip(names, positives, strict=True)))
