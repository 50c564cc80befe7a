"""Ways to bring images to a training step; `trainer_input.py` says what each is."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from headct import png
from tests.benchmarks.dicom_loader import DicomLoader
from trainer.data import input_pipeline
from trainer.data.image_cache import CacheWriter, ImageCache
from trainer.data.input_pipeline import (
    CORES,
    PREFETCHED,
    training_batches,
    with_options,
)
from trainer.data.sampling import Order
from trainer.runs.training_setup import TrainingSetup
from trainer.training.feeds import Cached

BATCH = 32


def make_ways(
    setup: TrainingSetup, dicom: Path | None, copies: int
) -> dict[str, Callable[[int], int]]:
    """What is measured: each way reads an epoch and says how many images it gave."""
    size = setup.options.image_size
    cached = CacheWriter(setup.shards, size, None, lambda _: None).fill(setup.training)
    setup = replace(setup, training=setup.training * copies)
    cached = ImageCache(cached.images * copies, np.tile(cached.labels, (copies, 1)))
    cached = Cached(setup, cached, cached)
    files = [
        str(setup.shards.path / shard.file) for split in setup.training for shard in split.shards
    ]
    ways: dict[str, Callable[[int], int]] = {
        "(a) floor": lambda _: int(floor(files).reduce(np.int64(0), lambda n, _: n + 1)),
        "(b) ours": lambda turn: drain(ours(setup, turn)),
        "(c) tutorial": lambda _: drain(tutorial(files, size, len(setup.shards.labels))),
    }
    if dicom:
        index = pd.read_parquet(setup.shards.path / "index.parquet", columns=["split", "source"])
        trained = index["split"].isin({split.name for split in setup.training})
        loader = DicomLoader([dicom / each for each in index["source"][trained]] * copies, size)
        ways["(d) dicom"] = lambda _: loader.epoch()
    ways[f"(e) cached at {size}"] = lambda turn: drain(cached.batches(Order(0, turn)))
    return ways


def simulate(
    setup: TrainingSetup, copies: int, threads: int, decode: float, slept: list[float]
) -> Callable[[], int]:
    """The trainer's stream as on a machine with so many cores, as far as decoding goes.

    Args:
        setup: whose slices are read.
        copies: of them, in an epoch.
        threads: that decode.
        decode: seconds of sleep in place of inflating and copying an image, which both let go of
            the interpreter's lock as that does. All else is computed on the cores there are.
        slept: gets the seconds that each sleep took, which are more.
    """
    setup = replace(setup, training=setup.training * copies)

    def sleep(pngs: Iterable[bytes], _image: Any, _pixels: Any) -> None:
        for each in pngs:
            assert each.startswith(png.SIGNATURE)
            began = time.perf_counter()
            time.sleep(decode)
            slept.append(time.perf_counter() - began)

    input_pipeline.decode_pngs = sleep
    input_pipeline.CORES = threads
    input_pipeline.decoders.cache_clear()
    return lambda: drain(ours(setup, 0))


def drain(batches: Any) -> int:
    """Reads everything; how many images that were."""
    return sum(len(images) for images, _ in batches)


def floor(files: list[str]) -> Any:
    def decode(record: Any) -> Any:
        feature = tf.io.FixedLenFeature((), tf.string)
        return tf.io.decode_png(tf.io.parse_single_example(record, {"image": feature})["image"])

    records = tf.data.TFRecordDataset(files, num_parallel_reads=CORES)
    return with_options(records.map(decode, CORES, deterministic=False).prefetch(PREFETCHED))


def ours(setup: TrainingSetup, epoch: int) -> Any:
    order, buffer = Order(0, epoch), setup.options.shuffle_buffer
    return training_batches(setup.shards, setup.training, BATCH, order, buffer)


def tutorial(files: list[str], size: int, labels: int) -> Any:
    def parse(record: Any) -> tuple[Any, Any]:
        parsed = tf.io.parse_single_example(
            record,
            {
                "image": tf.io.FixedLenFeature((), tf.string),
                "label": tf.io.FixedLenFeature((labels,), tf.int64),
            },
        )
        image = tf.image.resize(tf.io.decode_png(parsed["image"], channels=3), (size, size))
        return image / 255.0, parsed["label"]

    return tf.data.TFRecordDataset(files).map(parse).shuffle(1000).batch(BATCH).prefetch(1)
