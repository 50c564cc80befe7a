"""Input of training and validation: streamed, cached, or in device memory.

Every feed has its own model input; all feeds share the classifier's layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import layers, ops

from headct.errors import UsageError
from headct.layout import INDEX
from headct.reader import Shards
from trainer.data.image_cache import GIGABYTE, CacheWriter, ImageCache, cache_bytes
from trainer.data.input_pipeline import (
    CORES,
    PREFETCHED,
    as_written,
    drawn_batches,
    examples_as_read,
    training_batches,
    with_options,
)
from trainer.data.neighbors import stack
from trainer.data.sampling import Order, epoch_rows
from trainer.data.shards import Split, count
from trainer.evaluation.metrics import probabilities
from trainer.evaluation.predict_models import check_finite, predict_models
from trainer.networks.answers import in_flight, send
from trainer.networks.hardware import check_device_memory
from trainer.networks.image_layers import Resize
from trainer.networks.model import Classifier, build_resize
from trainer.runs.checkpoint import CACHE_NAME
from trainer.runs.training_setup import TrainingSetup


@dataclass(frozen=True)
class Feed:
    """The input of training and validation; decodes all images in every epoch."""

    setup: TrainingSetup

    def connect(self, classifier: Classifier) -> tuple[Any, Any]:
        """Return the symbolic input of a training step, and the logits computed from it."""
        return classifier.model.inputs, classifier.model.outputs

    def batches(self, order: Order) -> Any:
        """Return the remaining batches of an epoch: dataset of (input, labels)."""
        setup, options = self.setup, self.setup.options
        if setup.examples is not None:
            labels = setup.examples.label_values.to_numpy(np.float32)
            rows = epoch_rows(labels, setup.steps, options.batch_size, order, balanced=True)
            return drawn_batches(setup.examples, rows)
        batches = training_batches(
            setup.shards, setup.training, options.batch_size, order, options.shuffle_buffer
        )
        return batches.take(setup.steps - order.skip)

    def predict_validation(self, classifier: Classifier) -> tuple[Any, Any]:
        """Return labels [N, L] and probabilities [N, L] of the validation fold."""
        setup = self.setup
        (predictions,) = predict_models(
            [classifier.model],
            setup.shards,
            setup.validation,
            setup.shards.labels,
            setup.options.batch_size,
            setup.display.update,
        )
        return predictions.labels, probabilities(predictions.logits)


@dataclass(frozen=True)
class Cached(Feed):
    """Reads resized images from caches in memory or on disk."""

    cached: ImageCache
    validation: ImageCache

    @property
    def slices(self) -> tuple[int, ...]:
        """Shape of a sample before that of an image: (slices,) with neighbors, else ()."""
        around = self.cached.around
        return () if around is None else around.shape[1:]

    def rows(self, order: Order) -> npt.NDArray[np.int64]:
        """Return the rows of the cache for each batch, [steps, B]."""
        options = self.setup.options
        balanced = options.sampling == "balanced"
        return epoch_rows(self.cached.labels, self.setup.steps, options.batch_size, order, balanced)

    def connect(self, classifier: Classifier) -> tuple[Any, Any]:
        """Resized images, or rows of the cache → logits."""
        inputs = self.input()
        return inputs, classifier.core(self.images(inputs))

    def input(self, *outer: int) -> Any:
        """Return the symbolic samples of a batch, [B, *outer, ...], as `fetch` gives them."""
        size, image = self.setup.options.image_size, self.setup.shards.image
        shape = (*outer, *self.slices, size, size, image.channels)
        return layers.Input(shape, dtype=image.dtype, name="samples")

    def fetch(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the samples of rows of the cache, [...]: resized images."""
        return self.cached.take(self.cached.samples(rows))

    def images(self, samples: Any) -> Any:
        """Return the images of samples, [B, ...] → float32 [B, S, S, slices · C]."""
        return Resize(self.setup.options.image_size)(stacked(samples))

    def batches(self, order: Order) -> Any:
        """Return resized images and labels."""
        rows = tf.data.Dataset.from_tensor_slices(self.rows(order))
        size, image = self.setup.options.image_size, self.setup.shards.image
        shape = (self.setup.options.batch_size, *self.slices, size, size, image.channels)

        def gather(chosen: Any) -> tuple[Any, Any]:
            # Declared stateless: --deterministic serializes stateful functions.
            pixels = tf.numpy_function(
                self.fetch, [chosen], tf.as_dtype(image.dtype), stateful=False
            )
            return tf.ensure_shape(pixels, shape), tf.gather(self.cached.labels, chosen)

        return with_options(rows.map(as_written(gather), CORES).prefetch(PREFETCHED))

    def predict_validation(self, classifier: Classifier) -> tuple[Any, Any]:
        """Run the core over the cached validation fold."""
        logits = self.predict_cached(classifier.core)
        return self.validation.labels.astype(np.int64), probabilities(logits)

    def predict_cached(self, model: Any) -> npt.NDArray[np.float32]:
        """Run a model of resized images over the cached validation fold, [N, ...].

        Raises:
            Diverged: an output is not finite.
        """
        size, total = self.setup.options.batch_size, len(self.validation.labels)

        def batches() -> Iterator[tuple[int, Any]]:
            for begin in range(0, total, size):
                # The last batch is padded with the first rows, so that all have one shape.
                rows = self.validation.samples(np.arange(begin, begin + size) % total)
                images = self.validation.take(rows)
                yield min(begin + size, total), stack(images) if self.slices else images

        found = []
        for done, answers in in_flight(batches(), partial(send, model)):
            found.append(np.asarray(answers))
            self.setup.display.update(done)
        outputs = np.concatenate(found)[:total]
        check_finite(outputs, self.setup.validation.name)
        return outputs


@dataclass(frozen=True)
class OnDevice(Cached):
    """Keeps the training images in device memory; batches contain row numbers only.

    Attributes:
        lookup: the training images, for all phases.
    """

    lookup: LookUp

    def input(self, *outer: int) -> Any:
        """Return the symbolic rows of the cache."""
        return layers.Input((*outer, *self.slices), dtype=row_type(), name="samples")

    def fetch(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the samples as rows of the cache."""
        return self.cached.samples(rows).astype(row_type())

    def images(self, samples: Any) -> Any:
        """Look the images up."""
        return super().images(self.lookup(samples))

    def batches(self, order: Order) -> Any:
        """Return rows and labels."""
        rows = self.rows(order)
        batches = (self.fetch(rows), self.cached.labels[rows])
        return with_options(tf.data.Dataset.from_tensor_slices(batches).prefetch(2))


def row_type() -> str:
    """Return the dtype of row numbers: int32 for JAX, which has no 64 bits.

    TensorFlow gets int64, because it may compute byte offsets in this type, and 100,000 images of
    224 x 224 x 3 have seven times as many bytes as int32 can count.
    """
    return "int32" if keras.backend.backend() == "jax" else "int64"


def stacked(images: Any) -> Any:
    """Put the channels of slices one after the other on the device, like `neighbors.stack`.

    [B, n, S, S, C] → float32 [B, S, S, n · C]; single slices, [B, S, S, C], are left as they are.
    """
    if len(images.shape) == 4:
        return images
    # No transpose: TensorFlow would do it before the cast, and oneDNN complains about uint8.
    slices = range(images.shape[1])
    return ops.concatenate([ops.cast(images[:, i], "float32") for i in slices], axis=-1)


class LookUp(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """Row numbers [...] → images [..., S, S, C], from a non-trainable variable.

    The variable holds 32-bit words, because TensorFlow has no GPU kernel to gather uint8 or uint16
    and would copy all images to the CPU in every step. It is filled in place, by slices of rows:
    neither the device nor this process ever holds the images twice.

    Args:
        shape: number and shape of the images, (n, S, S, C).
        dtype: of the images.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        super().__init__(dtype="float32", trainable=False)
        self.stored, self.kind = shape[1:], dtype
        size = math.prod(self.stored) * np.dtype(dtype).itemsize
        self.cached = self.add_weight(
            shape=(shape[0], -(-size // 4)),
            dtype="float32",
            initializer="zeros",
            trainable=False,
            autocast=False,
            name=CACHE_NAME,
        )

    def __setitem__(self, rows: slice, images: npt.NDArray[Any]) -> None:
        """Copy images to the device."""
        words = as_words(np.asarray(images, self.kind))
        if keras.backend.backend() == "jax":
            # Pieces that wait for their turn are in memory too: the one before is stored first.
            stored = self.cached.value.block_until_ready()
            self.cached.assign(_updating()(stored, words, np.int32(rows.start)))
        else:
            # `variable[rows].assign` reads the variable, and then copies all of it.
            tf.raw_ops.ResourceStridedSliceAssign(
                ref=self.cached.value.handle,
                begin=[rows.start],
                end=[rows.start + len(words)],
                strides=[1],
                value=words,
            )

    def call(self, rows: Any) -> Any:
        """Gather the images of the given rows."""
        values = ops.view(ops.take(self.cached, rows, axis=0), self.kind)
        pixels = values[..., : math.prod(self.stored)]
        return ops.reshape(pixels, (-1, *rows.shape[1:], *self.stored))

    def compute_output_spec(self, rows: Any) -> Any:
        """Return the symbolic images, in the stored dtype."""
        return keras.KerasTensor((*rows.shape, *self.stored), dtype=self.kind)


@cache
def _updating() -> Any:
    """Return the function (all rows, new rows, first row) → all rows, which reuses their memory."""
    import jax

    def update(every: Any, new: Any, first: Any) -> Any:
        return jax.lax.dynamic_update_slice(every, new, (first, 0))

    return jax.jit(update, donate_argnums=0)


def as_words(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """View the bytes of images, [N, ...], as 32-bit words, [N, W], padded with zeros."""
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    missing = -flat.shape[1] * flat.itemsize % 4
    if missing:
        flat = np.pad(flat, ((0, 0), (0, missing // flat.itemsize)))
    return flat.view(np.float32)


def cached_examples(cached: ImageCache, setup: TrainingSetup, splits: tuple[Split, ...]) -> Shards:
    """Return random access to the slices of a cache, in its order.

    Raises:
        UsageError: the index does not have them, or is of other shards.
    """
    examples = examples_as_read(setup.shards, splits)
    if not np.array_equal(examples.label_values.to_numpy(), cached.labels):
        raise UsageError(
            f"{setup.shards.location}: {INDEX} has other labels than the shards; `make verify` says"
            " more"
        )
    return examples


def _with_neighbors(
    cached: ImageCache, setup: TrainingSetup, splits: tuple[Split, ...]
) -> ImageCache:
    """Add the rows of each slice's neighbors to the cache of some splits, with `--neighbors`."""
    if not setup.options.neighbors:
        return cached
    scans = cached_examples(cached, setup, splits).scans()
    return replace(cached, around=setup.neighbors.rows(scans))


def open_feed(setup: TrainingSetup) -> Feed:
    """Make the feed for `--cache`, and fill its caches.

    Raises:
        UsageError: there is too little memory or disk space.
    """
    options, display = setup.options, setup.display
    if options.cache == "none":
        return Feed(setup)
    trained = count(setup.training)
    needed = cache_bytes(setup.shards, trained, options.image_size)
    if options.cache == "device":
        check_device_memory(needed)
    display.say(f"cache on {options.cache}: {needed / GIGABYTE:.2f} GB of images")
    folder = None
    if options.cache == "disk":
        folder = Path(options.cache_dir) if options.cache_dir else setup.run.cache
    display.begin("filling the cache", trained + setup.validation.examples)
    crop = build_resize(options, setup.shards.image) if options.crop_head else None
    writer = CacheWriter(setup.shards, options.image_size, folder, display.update, crop)
    shape = (trained, options.image_size, options.image_size, setup.shards.image.channels)
    lookup = LookUp(shape, setup.shards.image.dtype) if options.cache == "device" else None
    cached, validation = (
        _with_neighbors(writer.fill(splits, images), setup, splits)
        for splits, images in ((setup.training, lookup), ((setup.validation,), None))
    )
    display.end()
    if lookup is not None:
        return OnDevice(setup, cached, validation, lookup)
    return Cached(setup, cached, validation)
