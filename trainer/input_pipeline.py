"""Shards → batches, with tf.data: read and decoded in parallel, in a seeded order.

The order of an epoch depends on the seed and the epoch alone, and records are skipped
before they are decoded: a resumed run takes up an epoch in the middle at little cost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.errors import BadInput
from trainer.shards import ImageSpec, Split

CORES = os.cpu_count() or 1
PREFETCHED = 4
READ_BUFFER = 4 << 20
SHARDS_AT_ONCE = 16
TEXTS = ("image_id", "patient_id", "study_id", "series_id")


@dataclass(frozen=True)
class Order:
    """Where training is in its data: `skip` batches of `epoch` are behind it."""

    seed: int
    epoch: int
    skip: int = 0

    def generator(self) -> np.random.Generator:
        """Random numbers of this epoch alone."""
        return np.random.default_rng([self.seed, self.epoch])


@dataclass
class InputClock:
    """Adds up how long a device stood still because its input was not there.

    Who hands steps to the device says so, else the device counts as idle whenever a batch
    is asked for. Where one call computes several steps nothing is heard between them, and
    what is added up is the most it can be.

    Attributes:
        waited: seconds.
        handed: steps that the device was given so far.
        computed: steps that it is done with.
    """

    waited: float = 0.0
    handed: int = 0
    computed: int = 0
    idle_since: float = field(default=0.0, repr=False)
    asked: float = field(default=0.0, repr=False)

    def has_computed(self, steps: int) -> None:
        """The device is done with the first `steps` steps."""
        self.computed, self.idle_since = steps, time.perf_counter()

    def start(self, index: Any) -> Any:
        """The consumer asks for a batch."""
        self.asked = time.perf_counter()
        return index

    def stop(self, index: Any) -> Any:
        """The batch is there."""
        if self.computed >= self.handed:
            self.waited += time.perf_counter() - max(self.asked, self.idle_since)
        return index

    def measure(self, batches: Any) -> Any:
        """Passes `batches` on; a zip asks its parts one after the other, in their order."""
        first, last = (counter_calling(each) for each in (self.start, self.stop))
        timed = tf.data.Dataset.zip((first, batches, last))
        return with_options(timed.map(as_written(lambda _, batch, __: batch)))


def counter_calling(function: Callable[[Any], Any]) -> Any:
    """0, 1, 2, … ; `function` is called as each is asked for."""

    def call(number: Any) -> Any:
        # Of a pipeline with a stateful part, --deterministic would do nothing in parallel.
        return tf.numpy_function(function, [number], tf.int64, stateful=False)

    return tf.data.Dataset.counter().map(as_written(call))


def as_written(function: Callable[..., Any]) -> Any:
    """Keeps AutoGraph from reading a function's source, which each epoch would do anew.

    The source on disk may be another by then: a run of days outlives many an update.
    """
    return tf.autograph.experimental.do_not_convert(function)


@contextmanager
def damage_reported() -> Iterator[None]:
    """Says in one line that a shard is damaged.

    Raises:
        BadInput: TensorFlow found a record whose checksum is wrong.
    """
    try:
        yield
    except tf.errors.DataLossError as error:
        reason = str(error.message).split("\n")[0]
        raise BadInput(f"a shard is damaged ({reason}); `make verify` finds which") from None


def with_options(dataset: Any) -> Any:
    """Keeps the order exact, the clock at the very end of the pipeline, and the end prompt.

    TensorFlow's tuning, which finds no better numbers than CORES, is left out: in one epoch
    of three an iterator's end waits for the tuner's thread, which sleeps for up to as long as
    the epoch took, a minute at most (TensorFlow 2.21).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


def training_records(splits: tuple[Split, ...], order: Order, buffer: int) -> Any:
    """The serialized examples of a whole epoch, shuffled.

    Args:
        splits: what to train on.
        order: which epoch.
        buffer: records that the shuffle chooses from.
    """
    generator = order.generator()
    shards = [shard for split in splits for shard in split.shards if shard.examples]
    files = [str(shards[i].path) for i in generator.permutation(len(shards))]
    return read_records(files).shuffle(buffer, seed=int(generator.integers(2**31)))


def training_batches(
    records: Any, image: ImageSpec, labels: int, batch_size: int, skip: int = 0
) -> Any:
    """Decodes all but the first `skip` batches; what fills no batch at the end is left out.

    Returns:
        Dataset of (images uint8 or uint16 [B, H, W, C], labels float32 [B, L]).
    """
    records = records.skip(skip * batch_size)
    parse = as_written(lambda record: image_and_labels(record, image, labels))
    examples = records.map(parse, CORES)
    batches = examples.batch(batch_size, drop_remainder=True)
    return with_options(batches.prefetch(PREFETCHED))


def evaluation_batches(split: Split, image: ImageSpec, labels: int, batch_size: int) -> Any:
    """Every example of a split once, in the order of the shards.

    The last batch is filled up with black images, so that all have one shape; whoever reads
    it keeps the first `split.examples` rows.

    Returns:
        Dataset of dicts: image, label int64 [B, L], position_z float32 [B], and TEXTS.
    """
    files = [str(shard.path) for shard in split.shards if shard.examples]
    records = read_records(files)
    parse = as_written(lambda record: whole_example(record, image, labels))
    examples = records.map(parse, CORES)
    batches = examples.batch(batch_size).map(as_written(lambda b: fill_up(b, batch_size)))
    return with_options(batches.prefetch(PREFETCHED))


def read_records(files: list[str]) -> Any:
    """Serialized examples, a few from each of several shards in turn."""
    return in_turn(tf.data.Dataset.from_tensor_slices(files), read_shard, len(files))


def read_shard(file: Any) -> Any:
    """Serialized examples of one shard."""
    return tf.data.TFRecordDataset(file, buffer_size=READ_BUFFER)


def in_turn(shards: Any, read: Callable[..., Any], number: int) -> Any:
    """What `read` makes of each of a number of shards, some of them side by side."""
    return shards.interleave(
        as_written(read),
        cycle_length=min(SHARDS_AT_ONCE, number),
        num_parallel_calls=min(SHARDS_AT_ONCE, CORES, number),
        deterministic=True,
    )


def decode(png: Any, image: ImageSpec) -> Any:
    """PNG bytes → the stored image, in its own dtype."""
    # TensorFlow cannot be asked for two channels, but gives those of grey with alpha as they are.
    channels = 0 if image.channels == 2 else image.channels
    pixels = tf.io.decode_png(png, channels=channels, dtype=tf.as_dtype(image.dtype))
    return tf.ensure_shape(pixels, (image.height, image.width, image.channels))


def image_and_labels(record: Any, image: ImageSpec, labels: int) -> tuple[Any, Any]:
    """What training needs of an example."""
    parsed = tf.io.parse_single_example(
        record,
        {
            "image": tf.io.FixedLenFeature((), tf.string),
            "label": tf.io.FixedLenFeature((labels,), tf.int64),
        },
    )
    return decode(parsed["image"], image), tf.cast(parsed["label"], tf.float32)


def whole_example(record: Any, image: ImageSpec, labels: int) -> Mapping[str, Any]:
    """What evaluation needs of an example."""
    parsed = tf.io.parse_single_example(
        record,
        {
            "image": tf.io.FixedLenFeature((), tf.string),
            "label": tf.io.FixedLenFeature((labels,), tf.int64),
            "position_z": tf.io.FixedLenFeature((), tf.float32, np.nan),
            **{name: tf.io.FixedLenFeature((), tf.string, "") for name in TEXTS},
        },
    )
    return {**parsed, "image": decode(parsed["image"], image)}


def fill_up(batch: Mapping[str, Any], batch_size: int) -> Mapping[str, Any]:
    """Adds black images to a short batch; its other features stay as they are."""
    images = batch["image"]
    missing = batch_size - tf.shape(images)[0]
    filled = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
    return {**batch, "image": tf.ensure_shape(filled, (batch_size, *images.shape[1:]))}
