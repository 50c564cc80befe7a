"""Shards → batches, with tf.data: read and decoded in parallel, in a seeded order.

The order of an epoch depends on the seed and the epoch alone, and records are skipped
before they are decoded: a resumed run takes up an epoch in the middle at little cost.

TensorFlow reads, shuffles and parses; the images of a batch are decoded by threads of our own.
Whatever is wrong with a record ends in an exception of TensorFlow's; `damage` says then which one
it is.
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

# Those that this process may use, where the system tells.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PREFETCHED = 4
# Of batches that wait for the device, unless one alone is larger.
_PREFETCHED_BYTES = 1 << 30
_READ_BUFFER = 4 << 20
_SHARDS_AT_ONCE = 16
# TensorFlow takes an array over without a copy if it begins at a multiple of this.
_ALIGNMENT = 64
# Features of bytes that evaluation reads.
TEXTS = (IMAGE_ID, *ID_COLUMNS)


@dataclass(frozen=True)
class Order:
    """Where training is in its data: `skip` batches of `epoch` are behind it."""

    seed: int
    epoch: int
    skip: int = 0

    def generator(self) -> np.random.Generator:
        """Random numbers of this epoch alone."""
        return np.random.default_rng([self.seed, self.epoch])


def as_written(function: Callable[..., Any]) -> Any:
    """Keeps AutoGraph from reading a function's source, which each epoch would do again.

    The source on disk may be another by then: a run of days outlives many an update.
    """
    return tf.autograph.experimental.do_not_convert(function)


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


def training_records(
    splits: tuple[Split, ...], order: Order, buffer: int, repeatable: bool = False
) -> Any:
    """The serialized examples of a whole epoch, shuffled.

    Args:
        splits: what to train on.
        order: which epoch.
        buffer: records that the shuffle chooses from.
        repeatable: whether each iterator gives this order, and not the first alone.
    """
    generator = order.generator()
    shards = [shard for split in splits for shard in split.shards if shard.examples]
    files = [str(shards[i].path) for i in generator.permutation(len(shards))]
    seed = int(generator.integers(2**31))
    return read_records(files).shuffle(buffer, seed, reshuffle_each_iteration=not repeatable)


def training_batches(
    records: Any, image: ImageSpec, labels: int, batch_size: int, skip: int = 0
) -> Any:
    """Decodes all but the first `skip` batches; what fills no batch at the end is left out.

    Returns:
        Dataset of (images uint8 or uint16 [B, H, W, C], labels float32 [B, L]).
    """
    batches = records.skip(skip * batch_size).batch(batch_size, drop_remainder=True)
    return decoded(batches, Training(image, labels, batch_size))


def evaluation_batches(split: Split, image: ImageSpec, labels: int, batch_size: int) -> Any:
    """Every example of a split once, in the order of the shards.

    The last batch is filled up with black images, so that all have one shape; whoever reads
    it keeps the first `split.examples` rows.

    Returns:
        Dataset of dicts: image, label int64 [B, L], position_z float32 [B], and TEXTS.
    """
    files = [str(shard.path) for shard in split.shards if shard.examples]
    batches = read_records(files).batch(batch_size)
    return decoded(batches, Evaluation(image, labels, batch_size, lowest_label(split)))


def decoded(batches: Any, reader: Training | Evaluation) -> Any:
    """Makes arrays of batches of serialized examples, in parallel."""
    image, batch_size = reader.image, reader.batch_size
    size = batch_size * image.height * image.width * image.channels
    held = _PREFETCHED_BYTES // (size * np.dtype(image.dtype).itemsize)
    # A batch is spread over all cores; the next is begun before its last image is done.
    arrays = batches.map(as_written(reader.read), 1 + -(-CORES // batch_size))
    return with_options(arrays.prefetch(max(1, min(PREFETCHED, held))))


def read_records(files: list[str]) -> Any:
    """Serialized examples, a few from each of several shards in turn."""
    return _in_turn(tf.data.Dataset.from_tensor_slices(files), read_shard, len(files))


def read_shard(file: Any) -> Any:
    """Serialized examples of one shard."""
    checked = tf.numpy_function(_check_lengths, [file], tf.string, stateful=False)
    return tf.data.TFRecordDataset(checked, buffer_size=_READ_BUFFER)


def _check_lengths(path: bytes) -> bytes:
    """Return the path of a shard whose records have the lengths that they say.

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
    """What `read` makes of each of a number of shards, some of them side by side."""
    return shards.interleave(
        as_written(read),
        cycle_length=min(_SHARDS_AT_ONCE, number),
        num_parallel_calls=min(_SHARDS_AT_ONCE, CORES, number),
        deterministic=True,
    )


@dataclass(frozen=True)
class Decoder:
    """Decodes the images of a batch side by side.

    Attributes:
        image: what each holds.
        rows: of the array that comes out; what is left over is black.
    """

    image: ImageSpec
    rows: int

    def __call__(self, pngs: npt.NDArray[np.object_]) -> npt.NDArray[Any]:
        """Up to `rows` PNGs → [rows, H, W, C].

        Raises:
            ValueError: one is damaged, or holds another image.
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
    """The threads that decode in this process; TensorFlow never lets go of who calls them."""
    atexit.register(end_pipelines)
    return ThreadPoolExecutor(CORES, "decoder")


def end_pipelines() -> None:
    """Ends all iterators while the interpreter still runs.

    The end of one waits for the functions of ours that it has called; later on, these would wait
    for the interpreter, and the process would never end.
    """
    for name in ("last_exc", "last_value", "last_traceback"):
        setattr(sys, name, None)
    gc.collect()
    for each in gc.get_objects():
        if issubclass(type(each), tf.data.Iterator):
            each._iterator_resource = None


def aligned(shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """An array, not filled, that becomes a tensor without being copied."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Training:
    """What training needs of a batch of examples.

    Attributes:
        image: what each example holds.
        labels: how many it has.
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
    """What evaluation needs of a batch of examples.

    Attributes:
        image: what each example holds.
        labels: how many it has.
        batch_size: of all batches, the last one filled up.
        lowest: UNLABELED where examples may have no labels, else 0.
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
    # Said to be without state: with --deterministic others are called one after the other.
    pixels = tf.numpy_function(
        Decoder(image, rows), [pngs], tf.as_dtype(image.dtype), stateful=False
    )
    return tf.ensure_shape(pixels, (rows, image.height, image.width, image.channels))


def lowest_label(split: Split) -> int:
    """UNLABELED where a split may have no labels, 0 in a fold."""
    return UNLABELED if fold_number(split.name) is None else 0


def _checked_labels(labels: Any, lowest: int) -> Any:
    """Passes labels on, int64 [B, L], if all are `lowest` to 1."""
    function = _LabelCheck(lowest)
    checked = tf.numpy_function(function, [labels], tf.int64, stateful=False)
    return tf.ensure_shape(checked, labels.shape)


@dataclass(frozen=True)
class _LabelCheck:
    """Passes labels on that are `lowest` to 1."""

    lowest: int

    def __call__(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Compares all.

        Raises:
            ValueError: one is out of range.
        """
        wrong = labels[(labels < self.lowest) | (labels > 1)]
        if wrong.size:
            raise ValueError(f"label {wrong[0]}, which is none of {self.lowest} to 1")
        return labels


def _checked_texts(texts: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Passes texts on.

    Raises:
        ValueError: one is not UTF-8.
    """
    for text in texts.ravel():
        try:
            text.decode()
        except UnicodeDecodeError:
            # Which text it is would be said of a patient.
            raise ValueError("an id that is not UTF-8") from None
    return texts
