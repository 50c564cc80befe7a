"""How images come to the training step: streamed, from a cache, or from the device itself.

Each feed has a network whose input is what its batches carry; all share the classifier's
layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import layers, ops

from trainer.data.image_cache import GIGABYTE, ImageCache, cache_bytes, check_memory, fill_cache
from trainer.data.input_pipeline import (
    CORES,
    PREFETCHED,
    Order,
    as_written,
    training_batches,
    training_records,
    with_options,
)
from trainer.data.random_access import records_at
from trainer.data.sampling import epoch_rows
from trainer.data.shards import count
from trainer.networks.averaging import make_training_model
from trainer.networks.model import Classifier
from trainer.networks.resize import Resize
from trainer.runs.checkpoint import CACHE_NAME
from trainer.runs.job import Job


class Feed(Protocol):
    """What training needs of its input."""

    def network(self, classifier: Classifier) -> Any:
        """A model from what a batch carries to logits."""

    def batches(self, order: Order) -> Any:
        """The batches of an epoch that are still to come: dataset of (input, labels)."""

    def validation_logits(self, classifier: Classifier) -> Any:
        """Logits and labels of the validation fold; None where they are to be streamed."""


@dataclass(frozen=True)
class _Stream:
    """Decodes in every epoch; holds nothing."""

    job: Job

    def network(self, classifier: Classifier) -> Any:
        """Stored images → logits."""
        inputs, outputs = classifier.model.inputs, classifier.model.outputs
        return _training_model(self.job, classifier, inputs, outputs)

    def batches(self, order: Order) -> Any:
        """Stored images and labels."""
        job, options = self.job, self.job.options
        skip = order.skip
        if job.index is None:
            # With JAX, Keras looks at a batch first where a model is new: after resuming, too.
            peeks = keras.backend.backend() == "jax"
            records = training_records(job.training, order, options.shuffle_buffer, peeks)
        else:
            rows = epoch_rows(job.index.labels, job.steps, options.batch_size, order, balanced=True)
            records, skip = records_at(job.index, rows.ravel()), 0
        batches = training_batches(
            records, job.shards.image, len(job.shards.labels), options.batch_size, skip
        )
        return batches.take(job.steps - order.skip)

    def validation_logits(self, classifier: Classifier) -> Any:
        """Streams the validation fold."""
        return None


@dataclass(frozen=True)
class Cached:
    """Takes resized images out of caches in memory or on disk."""

    job: Job
    cached: ImageCache
    validation: ImageCache

    def rows(self, order: Order) -> npt.NDArray[np.int64]:
        """The rows of each batch."""
        job = self.job
        balanced = job.options.sampling == "balanced"
        return epoch_rows(self.cached.labels, job.steps, job.options.batch_size, order, balanced)

    def network(self, classifier: Classifier) -> Any:
        """Resized images → logits."""
        size, image = self.job.options.image_size, self.job.shards.image
        inputs = layers.Input((size, size, image.channels), dtype=image.dtype)
        return _training_model(self.job, classifier, inputs, classifier.core(Resize(size)(inputs)))

    def batches(self, order: Order) -> Any:
        """Resized images and labels."""
        rows = tf.data.Dataset.from_tensor_slices(self.rows(order))
        size, image = self.job.options.image_size, self.job.shards.image
        shape = (self.job.options.batch_size, size, size, image.channels)

        def gather(chosen: Any) -> tuple[Any, Any]:
            # Said to be without state: with --deterministic others are called one after the other.
            dtype = tf.as_dtype(image.dtype)
            pixels = tf.numpy_function(self.cached.take, [chosen], dtype, stateful=False)
            return tf.ensure_shape(pixels, shape), tf.gather(self.cached.labels, chosen)

        return with_options(rows.map(as_written(gather), CORES).prefetch(PREFETCHED))

    def validation_logits(self, classifier: Classifier) -> tuple[Any, Any]:
        """Runs the core over the cached validation fold."""
        cached, size = self.validation, self.job.options.batch_size
        logits = []
        for start in range(0, len(cached.labels), size):
            rows = np.arange(start, start + size) % len(cached.labels)
            logits.append(classifier.core.predict_on_batch(cached.take(rows).astype(np.float32)))
            self.job.display.update(min(start + size, len(cached.labels)))
        return np.concatenate(logits)[: len(cached.labels)], cached.labels.astype(np.int64)


class OnDevice(Cached):
    """Holds the training images in the device's memory; a batch is nothing but rows."""

    @cached_property
    def lookup(self) -> LookUp:
        """The images, copied to the device once for all networks."""
        (images,) = self.cached.images
        return LookUp(images)

    def network(self, classifier: Classifier) -> Any:
        """Rows of the cache → logits."""
        inputs = layers.Input((), dtype=row_type())
        resized = Resize(self.job.options.image_size)(self.lookup(inputs))
        return _training_model(self.job, classifier, inputs, classifier.core(resized))

    def batches(self, order: Order) -> Any:
        """Rows and labels."""
        rows = self.rows(order)
        labels = self.cached.labels[rows]
        return with_options(
            tf.data.Dataset.from_tensor_slices((rows.astype(row_type()), labels)).prefetch(2)
        )


def _training_model(job: Job, classifier: Classifier, inputs: Any, outputs: Any) -> Any:
    """The model that `fit` trains, with averages if the options ask for them."""
    options = job.options
    return make_training_model(inputs, outputs, classifier.core, options.ema, options.accumulate)


def row_type() -> str:
    """The dtype of row numbers: JAX has 32 bits alone.

    100,000 images of 224 x 224 x 3 are seven times as many bytes as 32 bits count; TensorFlow
    gets 64, for it may reckon where a row begins in the numbers' own type.
    """
    return "int32" if keras.backend.backend() == "jax" else "int64"


class LookUp(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """Rows [B] → images [B, S, S, C], out of a variable that is never trained.

    It holds 32-bit words, whatever they stand for: TensorFlow gathers no uint8 and no uint16 on a
    GPU, and would bring all images to the processor in each step.
    """

    def __init__(self, images: npt.NDArray[Any]) -> None:
        super().__init__(dtype="float32", trainable=False)
        self.stored, self.kind = images.shape[1:], str(images.dtype)
        words = as_words(images)
        self.cached = self.add_weight(
            shape=words.shape,
            dtype="float32",
            initializer=lambda *_, **__: ops.convert_to_tensor(words),
            trainable=False,
            autocast=False,
            name=CACHE_NAME,
        )

    def call(self, rows: Any) -> Any:
        """Gathers."""
        values = ops.view(ops.take(self.cached, rows, axis=0), self.kind)
        return ops.reshape(values[:, : math.prod(self.stored)], (-1, *self.stored))

    def compute_output_spec(self, rows: Any) -> Any:
        """Images of the stored type."""
        return keras.KerasTensor((*rows.shape, *self.stored), dtype=self.kind)


def as_words(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The bytes of each image, [N, ...], as 32-bit words, [N, W], filled up with zeros."""
    each = images.reshape(len(images), -1)
    missing = -each.shape[1] * each.itemsize % 4
    if missing:
        each = np.pad(each, ((0, 0), (0, missing // each.itemsize)))
    return each.view(np.float32)


def open_feed(job: Job, free_device_memory: int | None) -> Feed:
    """Makes the feed that --cache asks for, and fills it.

    Args:
        job: what to train on.
        free_device_memory: bytes; None if unknown.

    Raises:
        UsageError: there is too little memory or disk space.
    """
    options, image = job.options, job.shards.image
    if options.cache == "none":
        return _Stream(job)
    needed = cache_bytes(job.training, image, options.image_size)
    room = ""
    if options.cache == "device" and free_device_memory is not None:
        check_memory("device", needed, free_device_memory, "ram")
        room = f", {free_device_memory / GIGABYTE:.1f} GB are free"
    job.display.say(f"cache on {options.cache}: {needed / GIGABYTE:.2f} GB of images{room}")
    job.display.begin("filling the cache", count(job.training) + job.validation.examples)
    folder = None
    if options.cache == "disk":
        folder = Path(options.cache_dir) if options.cache_dir else job.run.cache
    cached = fill_cache(job.training, image, options.image_size, folder, job.display.update)
    trained = count(job.training)
    validation = fill_cache(
        (job.validation,),
        image,
        options.image_size,
        folder,
        lambda done: job.display.update(trained + done),
    )
    job.display.end()
    return (OnDevice if options.cache == "device" else Cached)(job, cached, validation)
