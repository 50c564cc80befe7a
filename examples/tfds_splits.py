"""Splits by name with TensorFlow Datasets.

    python examples/tfds_splits.py out/shards

It takes `pip install tensorflow-datasets`.
"""

import sys

import tensorflow_datasets as tfds

if __name__ == "__main__":
    builder = tfds.builder_from_directory(sys.argv[1])
    print("splits:", {name: split.num_examples for name, split in builder.info.splits.items()})
    example = next(iter(builder.as_dataset(split="fold0")))
    print("a slice:", example["image"].shape, "labels", example["label"].numpy().tolist())
