"""How fast images reach the training step, against what people write and the least possible.

    python -m tests.benchmarks.trainer_input --shards SHARDS --dicom FOLDER_OF_DICOM_SLICES

In one run, in turns, on all folds but the first, --copies times over so that an epoch is long
enough to tell its speed from its start:

(a) `floor`: parse and `decode_png` the same records in parallel, and nothing else;
(b) `ours`: the trainer's stream, shuffled and batched, as it comes to the device; whatever
    the size is that the network sees, images are resized there;
(c) `tutorial`: a tf.data pipeline as tutorials write it: one file after the other, float32,
    resized and scaled on the processor;
(d) `dicom`: a loader that reads, windows and resizes DICOM files in every epoch, with a
    process a core;
(e) `cached`: the trainer's second epoch with --cache ram, at --image_size.

Images a second, medians of --repeats turns after one that warms up.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import numpy as np
import pydicom
import tensorflow as tf
from rich.console import Console

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.report import Figures, show, spread
from trainer.bank import Bank, fill_bank
from trainer.feeds import Cached
from trainer.input_pipeline import Order, training_batches, training_records
from trainer.job import Job, prepare_training
from trainer.options import TrainOptions
from trainer.shards import count

BATCH = 32
WINDOWS = ((40, 80), (80, 200), (600, 2800))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--dicom", type=Path)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--copies", type=int, default=8, help="of the slices, in an epoch")
    options = parser.parse_args()
    job = prepare_training(
        TrainOptions(
            shards=options.shards,
            run=Path("no such run"),
            image_size=options.image_size,
            weights="none",
            batch_size=BATCH,
        )
    )
    ways = make_ways(job, options.dicom, options.copies)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            images = way(turn)
            if turn:
                speeds[name].append(images / (time.perf_counter() - started))
    floor = float(np.median(speeds["(a) floor"]))
    rows = [
        (name, spread(each, 0), f"{np.median(each) / floor:.2f}") for name, each in speeds.items()
    ]
    image = job.shards.image
    stored = f"{image.height} x {image.width} x {image.channels}"
    table = Figures(f"Input, images stored as {stored}", ("way", "images/s", "of (a)"), rows)
    notes = describe_machine(["tensorflow", "numpy", "pydicom"])
    slices = count(job.training)
    notes["data"] = f"{slices} slices, {options.copies} times an epoch, batches of {BATCH}"
    show(Console(highlight=False), [table], notes)


def make_ways(job: Job, dicom: Path | None, copies: int) -> dict[str, Callable[[int], int]]:
    """What is measured: each way reads an epoch and says how many images it gave."""
    size = job.options.image_size
    bank = fill_bank(job.training, job.shards.image, size, None, lambda _: None)
    job = replace(job, training=job.training * copies)
    bank = Bank(bank.images * copies, np.tile(bank.labels, (copies, 1)))
    cached = Cached(job, bank, bank)
    files = [str(shard.path) for split in job.training for shard in split.shards]
    ways: dict[str, Callable[[int], int]] = {
        "(a) floor": lambda _: drain(floor(files), 1),
        "(b) ours": lambda turn: drain(ours(job, turn), BATCH),
        "(c) tutorial": lambda _: drain(tutorial(files, size, len(job.shards.labels)), BATCH),
    }
    if dicom:
        paths = sorted(str(path) for path in dicom.iterdir() if path.suffix == ".dcm") * copies
        # One pool for all epochs: its start is no part of the figure.
        pool = multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0)))
        ways["(d) dicom"] = lambda _: read_dicom(pool, paths, size)
    ways[f"(e) cached at {size}"] = lambda turn: drain(cached.batches(Order(0, turn)), BATCH)
    return ways


def drain(dataset: Any, images: int) -> int:
    """Reads everything; how many images that were, with `images` an element."""
    return sum(images for _ in dataset)


def floor(files: list[str]) -> Any:
    def decode(record: Any) -> Any:
        feature = tf.io.FixedLenFeature((), tf.string)
        return tf.io.decode_png(tf.io.parse_single_example(record, {"image": feature})["image"])

    records = tf.data.TFRecordDataset(files, num_parallel_reads=tf.data.AUTOTUNE)
    return records.map(decode, tf.data.AUTOTUNE, deterministic=False).prefetch(tf.data.AUTOTUNE)


def ours(job: Job, epoch: int) -> Any:
    records = training_records(job.training, Order(0, epoch), job.options.shuffle_buffer)
    return training_batches(records, job.shards.image, len(job.shards.labels), BATCH)


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


def read_dicom(pool: Any, paths: list[str], size: int) -> int:
    return sum(1 for _ in pool.imap(partial(load_slice, size=size), paths, chunksize=8))


def load_slice(path: str, size: int) -> Any:
    dataset = pydicom.dcmread(path)
    hounsfield = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    levels = [
        np.clip((hounsfield - center + width / 2) / width, 0, 1) * 255 for center, width in WINDOWS
    ]
    return cv2.resize(np.stack(levels, axis=-1).astype(np.uint8), (size, size))


if __name__ == "__main__":
    main()
