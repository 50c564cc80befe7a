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
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from headct.layout import ID_COLUMNS, IMAGE, IMAGE_ID, LABEL, POSITION, UNLABELED, fold_number
from headct.manifest import ImageSpec
from headct.png import decode_pngs
from headct.reader import Shards
from headct.tfrecord import check_lengths
from trainer.data.neighbors import stacked_images
from trainer.data.sampling import Order
from trainer.data.shards import ShardDirectory, Split

# Cores that this process may use, if the system reports them.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PREFETCHED = 4
# Limit of all prefetched batches; at least one is prefetched.
_PREFETCHED_BYTES = 1 << 30
_FREE_BYTES = 1 << 30  # of unused arrays of each size
_READ_BUFFER = 4 << 20
_SHARDS_AT_ONCE = 16
_ROWS_AT_ONCE = 1 << 14
# TensorFlow uses an array without copying if its address is a multiple of this.
_ALIGNMENT = 64
# Text features of an example.
TEXTS = (IMAGE_ID, *ID_COLUMNS)


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


def training_batches(
    shards: ShardDirectory, splits: Sequence[Split], batch_size: int, order: Order, buffer: int
) -> Any:
    """Return the remaining batches of an epoch, shuffled; an incomplete last batch is dropped.

    Args:
        shards: the directory.
        splits: training data.
        batch_size: images per batch.
        order: seed, epoch and finished batches.
        buffer: size of the shuffle buffer, records.

    Returns:
        Dataset of (images uint8 or uint16 [B, H, W, C], labels float32 [B, L]).
    """
    generator = order.generator()
    files = _files(shards, splits)
    files = [files[i] for i in generator.permutation(len(files))]
    seed = int(generator.integers(2**31))
    # Every iterator has this order: with JAX, Keras consumes a batch to build a new model.
    records = read_records(files).shuffle(buffer, seed, reshuffle_each_iteration=False)
    batches = records.skip(order.skip * batch_size).batch(batch_size, drop_remainder=True)
    reader = ExampleReader(shards, batch_size)

    def read(serialized: Any) -> tuple[Any, Any]:
        examples = reader(serialized)
        return examples[IMAGE], tf.cast(examples[LABEL], tf.float32)

    # All cores share a batch; the next batch starts before the last image is done.
    return _prefetched(batches, read, 1 + -(-CORES // batch_size), shards.image, batch_size)


def drawn_batches(examples: Shards, rows: npt.NDArray[np.int64]) -> Any:
    """Return batches of chosen examples, such as those of balanced sampling.

    Args:
        examples: random access to the training data.
        rows: the examples of each batch, [steps, B].

    Returns:
        The same as `training_batches`.
    """
    labels = examples.label_values.to_numpy(np.float32)
    image, batch_size = examples.manifest.image, rows.shape[1]

    def read_images(chosen: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return examples.select(chosen).images()

    def read(chosen: Any) -> tuple[Any, Any]:
        # stateless: --deterministic would call stateful functions one at a time
        dtype = tf.as_dtype(image.dtype)
        pixels = tf.numpy_function(read_images, [chosen], dtype, stateful=False)
        return tf.ensure_shape(pixels, (batch_size, *examples.image_shape)), tf.gather(
            labels, chosen
        )

    batches = tf.data.Dataset.from_tensor_slices(rows)
    return _prefetched(batches, read, CORES, image, batch_size)


def neighbor_batches(examples: Shards, rows: npt.NDArray[np.int64]) -> Any:
    """Return the samples of slices with their neighbors.

    Args:
        examples: random access to the slices.
        rows: the slices of each sample of each batch, [steps, B, slices].

    Returns:
        Dataset of images uint8 or uint16 [B, H, W, slices · C].
    """
    image, (_, batch_size, slices) = examples.manifest.image, rows.shape
    height, width, channels = examples.image_shape

    def read_images(chosen: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return stacked_images(examples, chosen)

    def read(chosen: Any) -> Any:
        pixels = tf.numpy_function(read_images, [chosen], tf.as_dtype(image.dtype), stateful=False)
        return tf.ensure_shape(pixels, (batch_size, height, width, slices * channels))

    batches = tf.data.Dataset.from_tensor_slices(rows)
    return _prefetched(batches, read, CORES, image, batch_size * slices)


def evaluation_batches(shards: ShardDirectory, split: Split, batch_size: int) -> Any:
    """Return every example of a split once, its shards interleaved.

    The last batch is padded with black images to the common shape; the caller keeps the
    first `split.examples` rows.

    Returns:
        Dataset of dicts: image, label int64 [B, L], position_z float32 [B], and TEXTS.
    """
    batches = read_records(_files(shards, [split])).batch(batch_size)
    reader = ExampleReader(shards, batch_size, lowest_label(split))
    return _prefetched(batches, reader, 1 + -(-CORES // batch_size), shards.image, batch_size)


def _files(shards: ShardDirectory, splits: Sequence[Split]) -> list[str]:
    """Return the paths of the shards with examples."""
    every = (shard for split in splits for shard in split.shards)
    return [str(shards.path / shard.file) for shard in every if shard.examples]


def _prefetched(
    batches: Any, read: Callable[..., Any], parallel: int, image: ImageSpec, batch_size: int
) -> Any:
    """Apply `read` to several batches in parallel, and prefetch the results."""
    size = batch_size * image.height * image.width * image.channels
    held = max(1, _PREFETCHED_BYTES // (size * np.dtype(image.dtype).itemsize))
    arrays = batches.map(as_written(read), min(parallel, 1 + held))
    return with_options(arrays.prefetch(min(PREFETCHED, held)))


def read_records(files: list[str]) -> Any:
    """Return serialized examples, several shards interleaved."""

    def read(file: Any) -> Any:
        checked = tf.numpy_function(_check_lengths, [file], tf.string, stateful=False)
        return tf.data.TFRecordDataset(checked, buffer_size=_READ_BUFFER)

    return _interleaved(tf.data.Dataset.from_tensor_slices(files), len(files), read)


def examples_as_read(shards: ShardDirectory, splits: tuple[Split, ...]) -> Shards:
    """Return random access to some splits, in the order of `evaluation_batches` and of caches.

    Raises:
        UsageError: as for `ShardDirectory.examples`.
    """
    rows: list[npt.NDArray[np.int64]] = []
    begin = 0
    for split in splits:
        sizes = np.array([shard.examples for shard in split.shards if shard.examples], np.int64)
        ends = begin + np.cumsum(sizes)
        # the same interleaving, of row numbers instead of records
        files = tf.data.Dataset.from_tensor_slices((ends - sizes, ends))
        numbers = _interleaved(files, len(sizes), tf.data.Dataset.range)
        rows += with_options(numbers.batch(_ROWS_AT_ONCE)).as_numpy_iterator()
        begin += split.examples
    return shards.examples(splits).select(np.concatenate(rows))


def _interleaved(files: Any, count: int, read: Callable[..., Any]) -> Any:
    """Return what `read` makes of each of `count` elements of a dataset, several interleaved."""
    return files.interleave(
        as_written(read),
        cycle_length=min(_SHARDS_AT_ONCE, count),
        num_parallel_calls=min(_SHARDS_AT_ONCE, CORES, count),
        deterministic=True,
    )


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


@dataclass(frozen=True)
class ExampleReader:
    """Serialized examples → dict of image, label int64, position_z and TEXTS; checks them.

    Attributes:
        shards: the directory with labels and format of the images.
        rows: number of images in the result; rows without an example are black.
        lowest: UNLABELED if examples may have no labels, else 0.
    """

    shards: ShardDirectory
    rows: int
    lowest: int = 0

    def __call__(self, records: Any) -> dict[str, Any]:
        """Parse up to `rows` serialized examples; raise a TensorFlow error for a damaged one."""
        image = self.shards.image
        features = {
            IMAGE: tf.io.FixedLenFeature((), tf.string),
            LABEL: tf.io.FixedLenFeature((len(self.shards.labels),), tf.int64),
            POSITION: tf.io.FixedLenFeature((), tf.float32, np.nan),
            **{name: tf.io.FixedLenFeature((), tf.string, "") for name in TEXTS},
        }
        parsed = tf.io.parse_example(records, features)
        texts = tf.stack([parsed[name] for name in TEXTS])
        # stateless: --deterministic would call stateful functions one at a time
        pixels = tf.numpy_function(
            self.check_and_decode,
            [parsed[IMAGE], parsed[LABEL], texts],
            tf.as_dtype(image.dtype),
            stateful=False,
        )
        shape = (self.rows, image.height, image.width, image.channels)
        return {**parsed, IMAGE: tf.ensure_shape(pixels, shape)}

    def check_and_decode(
        self,
        pngs: npt.NDArray[np.object_],
        labels: npt.NDArray[np.int64],
        texts: npt.NDArray[np.object_],
    ) -> npt.NDArray[Any]:
        """Check labels and texts, and decode the images in parallel: [rows, H, W, C].

        Raises:
            ValueError: a label is out of range, a text is not UTF-8, or a PNG is damaged.
        """
        wrong = labels[(labels < self.lowest) | (labels > 1)]
        if wrong.size:
            raise ValueError(f"label {wrong[0]}, which is none of {self.lowest} to 1")
        try:
            b"".join(texts.ravel()).decode()
        except UnicodeDecodeError:
            # without the text: it may identify a patient
            raise ValueError("an id that is not UTF-8") from None
        image, found = self.shards.image, len(pngs)
        pixels = aligned((self.rows, image.height, image.width, image.channels), image.dtype)
        pixels[found:] = 0
        shares = [slice(i, found, CORES) for i in range(min(CORES, found))]
        if len(shares) == 1:
            decode_pngs(pngs, image, pixels[:found])
        else:
            submit = decoders().submit
            done = [submit(decode_pngs, pngs[share], image, pixels[share]) for share in shares]
            for future in done:
                future.result()
        return pixels


def lowest_label(split: Split) -> int:
    """Return UNLABELED if a split may have no labels, 0 for a fold."""
    return UNLABELED if fold_number(split.name) is None else 0


class _Lease:
    """Memory of an array, which returns to `_free` when no array refers to it any more.

    New memory costs as much as a third of decoding into it: the kernel clears every page.
    """

    _free: ClassVar[dict[int, list[npt.NDArray[np.uint8]]]] = defaultdict(list)

    def __init__(self, size: int) -> None:
        try:
            self._memory = self._free[size].pop()
        except IndexError:
            self._memory = np.empty(size + _ALIGNMENT, np.uint8)
        begin = self._memory.ctypes.data
        begin += -begin % _ALIGNMENT
        self.__array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (begin, False),
        }

    def __del__(self) -> None:
        size = len(self._memory) - _ALIGNMENT
        if len(self._free[size]) * size < _FREE_BYTES:
            self._free[size].append(self._memory)


def aligned(shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Return an uninitialized array that converts to a tensor without a copy."""
    lease = _Lease(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.asarray(lease).view(dtype).reshape(shape)


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
