"""Batches from shards, with tf.data: parallel reading and decoding, in a seeded order.

The order of an epoch depends only on the seed and the epoch, and records are skipped
before decoding: resuming in the middle of an epoch is cheap.

TensorFlow reads, shuffles and parses; our own threads decode the images of a batch.
A damaged record raises a TensorFlow exception; `damage` then locates the record.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from headct.layout import ID_COLUMNS, IMAGE, IMAGE_ID, LABEL, POSITION, UNLABELED, fold_number
from headct.manifest import ImageSpec
from headct.png import decode_pngs
from headct.tfrecord import check_lengths
from trainer.data.shards import Split

# Cores that this process may use, if the system reports them.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PREFETCHED = 4
# Limit of all prefetched batches; at least one is prefetched.
_PREFETCHED_BYTES = 1 << 30
_READ_BUFFER = 4 << 20
_SHARDS_AT_ONCE = 16
# TensorFlow uses an array without copying if its address is a multiple of this.
_ALIGNMENT = 64
# Text features that evaluation reads.
TEXTS = (IMAGE_ID, *ID_COLUMNS)


@dataclass(frozen=True)
class Order:
    """Position of training in its data: `skip` batches of `epoch` are done."""

    seed: int
    epoch: int
    skip: int = 0

    def generator(self) -> np.random.Generator:
        """Return the random generator of this epoch."""
        return np.random.default_rng([self.seed, self.epoch])


def as_written(function: Callable[..., Any]) -> Any:
    """Keep AutoGraph from rereading a function's source in every epoch.

    The source on disk may change during a long run.
    """
    return tf.autograph.experimental.do_not_convert(function)


def with_options(dataset: Any) -> Any:
    """Make the order deterministic, keep the last stage last, and end iterators promptly.

    Autotuning is off: it finds no better values than CORES, and in one epoch of three the end
    of an iterator waits for the tuner's thread, which sleeps for up to the length of the epoch,
    at most a minute (TensorFlow 2.21).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


def training_records(
    splits: tuple[Split, ...], order: Order, buffer: int, repeatable: bool = False
) -> Any:
    """Return the serialized examples of an epoch, shuffled.

    Args:
        splits: training data.
        order: seed and epoch.
        buffer: size of the shuffle buffer, records.
        repeatable: whether every iterator has this order, not just the first.
    """
    generator = order.generator()
    shards = [shard for split in splits for shard in split.shards if shard.examples]
    files = [str(shards[i].path) for i in generator.permutation(len(shards))]
    seed = int(generator.integers(2**31))
    return read_records(files).shuffle(buffer, seed, reshuffle_each_iteration=not repeatable)


def training_batches(
    records: Any, image: ImageSpec, labels: int, batch_size: int, skip: int = 0
) -> Any:
    """Decode all but the first `skip` batches; an incomplete last batch is dropped.

    Returns:
        Dataset of (images uint8 or uint16 [B, H, W, C], labels float32 [B, L]).
    """
    batches = records.skip(skip * batch_size).batch(batch_size, drop_remainder=True)
    return decoded(batches, Training(image, labels, batch_size))


def evaluation_batches(split: Split, image: ImageSpec, labels: int, batch_size: int) -> Any:
    """Return every example of a split once, in the order of the shards.

    The last batch is padded with black images to the common shape; the caller keeps the
    first `split.examples` rows.

    Returns:
        Dataset of dicts: image, label int64 [B, L], position_z float32 [B], and TEXTS.
    """
    files = [str(shard.path) for shard in split.shards if shard.examples]
    batches = read_records(files).batch(batch_size)
    return decoded(batches, Evaluation(image, labels, batch_size, lowest_label(split)))


def decoded(batches: Any, reader: Training | Evaluation) -> Any:
    """Decode batches of serialized examples in parallel."""
    image, batch_size = reader.image, reader.batch_size
    size = batch_size * image.height * image.width * image.channels
    held = _PREFETCHED_BYTES // (size * np.dtype(image.dtype).itemsize)
    # All cores share a batch; the next batch starts before the last image is done.
    arrays = batches.map(as_written(reader.read), 1 + -(-CORES // batch_size))
    return with_options(arrays.prefetch(max(1, min(PREFETCHED, held))))


def read_records(files: list[str]) -> Any:
    """Return serialized examples, several shards interleaved."""
    return _in_turn(tf.data.Dataset.from_tensor_slices(files), read_shard, len(files))


def read_shard(file: Any) -> Any:
    """Return the serialized examples of a shard."""
    checked = tf.numpy_function(_check_lengths, [file], tf.string, stateful=False)
    return tf.data.TFRecordDataset(checked, buffer_size=_READ_BUFFER)


def _check_lengths(path: bytes) -> bytes:
    """Check the record lengths of a shard; return its path.

    Raises:
        ValueError: a length is wrong, or the file cannot be read.
    """
    try:
        with Path(os.fsdecode(path)).open("rb", buffering=0) as file:
            check_lengths(file)
    except OSError as error:
        raise ValueError(f"the file cannot be read ({error.strerror})") from None
    return path


def _in_turn(shards: Any, read: Callable[..., Any], number: int) -> Any:
    """Apply `read` to all shards, several in parallel, and interleave the results."""
    return shards.interleave(
        as_written(read),
        cycle_length=min(_SHARDS_AT_ONCE, number),
        num_parallel_calls=min(_SHARDS_AT_ONCE, CORES, number),
        deterministic=True,
    )


@dataclass(frozen=True)
class Decoder:
    """Decodes the images of a batch in parallel.

    Attributes:
        image: format of the images.
        rows: of the result; unused rows are black.
    """

    image: ImageSpec
    rows: int

    def __call__(self, pngs: npt.NDArray[np.object_]) -> npt.NDArray[Any]:
        """Up to `rows` PNGs → [rows, H, W, C].

        Raises:
            ValueError: a PNG is damaged, or has another format.
        """
        image, found = self.image, len(pngs)
        pixels = aligned((self.rows, image.height, image.width, image.channels), image.dtype)
        pixels[found:] = 0
        shares = [slice(i, found, CORES) for i in range(min(CORES, found))]
        if len(shares) == 1:
            decode_pngs(pngs, image, pixels[:found])
        else:
            submit = decoders().submit
            done = [submit(decode_pngs, pngs[share], image, pixels[share]) for share in shares]
            for each in done:
                each.result()
        return pixels


@cache
def decoders() -> ThreadPoolExecutor:
    """Return the decoding threads; TensorFlow keeps their calling threads alive."""
    atexit.register(end_pipelines)
    return ThreadPoolExecutor(CORES, "decoder")


def end_pipelines() -> None:
    """End all iterators while the interpreter still runs.

    An iterator waits for its running Python functions; later, these would wait for the
    interpreter, and the process would hang.
    """
    for name in ("last_exc", "last_value", "last_traceback"):
        setattr(sys, name, None)
    gc.collect()
    for each in gc.get_objects():
        if issubclass(type(each), tf.data.Iterator):
            each._iterator_resource = None


def aligned(shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Return an uninitialized array that converts to a tensor without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Training:
    """Reads images and labels for training.

    Attributes:
        image: format of the images.
        labels: number of labels.
        batch_size: of all batches.
    """

    image: ImageSpec
    labels: int
    batch_size: int

    def read(self, records: Any) -> tuple[Any, Any]:
        """Serialized examples → images, labels."""
        features = {
            IMAGE: tf.io.FixedLenFeature((), tf.string),
            LABEL: tf.io.FixedLenFeature((self.labels,), tf.int64),
        }
        parsed = tf.io.parse_example(records, features)
        labels = _checked_labels(parsed[LABEL], 0)
        return decode(parsed[IMAGE], self.image, self.batch_size), tf.cast(labels, tf.float32)


@dataclass(frozen=True)
class Evaluation:
    """Reads images, labels, positions and texts for evaluation.

    Attributes:
        image: format of the images.
        labels: number of labels.
        batch_size: of all batches; the last one is padded.
        lowest: UNLABELED if examples may have no labels, else 0.
    """

    image: ImageSpec
    labels: int
    batch_size: int
    lowest: int

    def read(self, records: Any) -> Mapping[str, Any]:
        """Serialized examples → dict of image, label, position_z and texts."""
        features = {
            IMAGE: tf.io.FixedLenFeature((), tf.string),
            LABEL: tf.io.FixedLenFeature((self.labels,), tf.int64),
            POSITION: tf.io.FixedLenFeature((), tf.float32, np.nan),
            **{name: tf.io.FixedLenFeature((), tf.string, "") for name in TEXTS},
        }
        parsed = tf.io.parse_example(records, features)
        texts = tf.stack([parsed[name] for name in TEXTS])
        checked = tf.numpy_function(_checked_texts, [texts], tf.string, stateful=False)
        return {
            **parsed,
            IMAGE: decode(parsed[IMAGE], self.image, self.batch_size),
            LABEL: _checked_labels(parsed[LABEL], self.lowest),
            **dict(zip(TEXTS, tf.unstack(tf.ensure_shape(checked, texts.shape)), strict=True)),
        }


def decode(pngs: Any, image: ImageSpec, rows: int) -> Any:
    """PNGs, up to `rows` → the stored images in their own dtype, [rows, H, W, C]."""
    # stateless: --deterministic would call stateful functions one at a time
    pixels = tf.numpy_function(
        Decoder(image, rows), [pngs], tf.as_dtype(image.dtype), stateful=False
    )
    return tf.ensure_shape(pixels, (rows, image.height, image.width, image.channels))


def lowest_label(split: Split) -> int:
    """Return UNLABELED if a split may have no labels, 0 for a fold."""
    return UNLABELED if fold_number(split.name) is None else 0


def _checked_labels(labels: Any, lowest: int) -> Any:
    """Check that labels, int64 [B, L], are `lowest` to 1; return them."""
    function = _LabelCheck(lowest)
    checked = tf.numpy_function(function, [labels], tf.int64, stateful=False)
    return tf.ensure_shape(checked, labels.shape)


@dataclass(frozen=True)
class _LabelCheck:
    """Checks that labels are `lowest` to 1."""

    lowest: int

    def __call__(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the labels.

        Raises:
            ValueError: a label is out of range.
        """
        wrong = labels[(labels < self.lowest) | (labels > 1)]
        if wrong.size:
            raise ValueError(f"label {wrong[0]}, which is none of {self.lowest} to 1")
        return labels


def _checked_texts(texts: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Return the texts.

    Raises:
        ValueError: a text is not UTF-8.
    """
    for text in texts.ravel():
        try:
            text.decode()
        except UnicodeDecodeError:
            # without the text: it may identify a patient
            raise ValueError("an id that is not UTF-8") from None
    return texts
