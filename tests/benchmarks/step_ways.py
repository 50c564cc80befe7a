"""Epochs of the trainer's own step with each kind of input; `trainer_step.py` says which."""

import math
import subprocess
from dataclasses import replace
from statistics import fmean, harmonic_mean
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from trainer.data.image_cache import ImageCache
from trainer.data.sampling import Order
from trainer.data.shards import count
from trainer.display import Display
from trainer.networks.hardware import (
    choose_precision,
    choose_xla,
    compute_capability,
    set_up_jax,
)
from trainer.networks.model import build_classifier
from trainer.options import TrainOptions
from trainer.runs.checkpoint import Progress
from trainer.runs.training_setup import TrainingSetup, prepare_training
from trainer.training.feeds import Feed, LookUp, OnDevice, open_feed
from trainer.training.tracking import Tracking
from trainer.training.train import Loop


class Constant(OnDevice):
    """Asks the device for the same batch in every step."""

    def rows(self, order: Order) -> Any:
        rows = np.arange(self.setup.options.batch_size)
        return np.tile(rows, (self.setup.steps, 1))


def describe_gpu() -> str | None:
    """Name, driver and memory of the GPU that Keras uses; None without one."""
    set_up_jax()
    if compute_capability() is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


def measure(
    options: TrainOptions, steps: int, epochs: int, way: str
) -> tuple[float, float, int | None]:
    """Trains `epochs` epochs of at least `steps` steps; the first, which compiles, is not counted.

    Args:
        way: constant, streamed or cached.

    Returns:
        Images a second, the share of time that went by waiting, and the most bytes of a GPU's
        memory in use at once.
    """
    set_up_jax()
    capability = compute_capability()
    cache = "device" if way == "cached" else "none"
    setup = prepare_training(TrainOptions(**dict(options) | {"cache": cache}))
    copies = math.ceil(steps * options.batch_size / count(setup.training))
    quiet = Display(Console(quiet=True))
    setup = replace(setup, training=setup.training * copies, display=quiet)
    policy = choose_precision(options.precision, capability)
    classifier = build_classifier(options, setup.shards.image, setup.prevalence, policy)
    feed = constant_feed(setup) if way == "constant" else open_feed(setup)
    xla, untracked = choose_xla("auto", capability, False), Tracking(options, setup.run, quiet)
    loop = Loop(setup, feed, classifier, xla, None, untracked)
    loop.begin_phase(frozen=False)
    rows = []
    for number in range(epochs):
        loop.progress = Progress(epoch=number)
        rows.append(loop.train_epoch())
    del rows[0]
    speed = harmonic_mean(row["images_per_second"] for row in rows)
    waiting = fmean(row["input_wait"] for row in rows)
    return speed, waiting, None if capability is None else peak_memory()


def constant_feed(setup: TrainingSetup) -> Feed:
    size, image = setup.options.image_size, setup.shards.image
    shape = (setup.options.batch_size, size, size, image.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(image.dtype)
    lookup = LookUp(shape, image.dtype)
    lookup[0 : len(pixels)] = pixels
    cached = ImageCache((), np.zeros((len(pixels), len(setup.shards.labels)), np.float32))
    return Constant(setup, cached, cached, lookup)


def peak_memory() -> int:
    """The most bytes of the GPU's memory that this process used at once."""
    if keras.backend.backend() == "jax":
        import jax

        return int(jax.devices()[0].memory_stats()["peak_bytes_in_use"])
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
