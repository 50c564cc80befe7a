"""Epochs of the trainer's own step with each kind of input; `trainer_step.py` says which."""

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from statistics import fmean, harmonic_mean
from threading import Lock
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from trainer.data.image_cache import cache_bytes
from trainer.data.sampling import Order
from trainer.display import Display
from trainer.networks import hardware
from trainer.networks.hardware import (
    LARGEST_BATCH,
    choose_batch_size,
    choose_precision,
    choose_xla,
    compute_capability,
    gpu_memory,
    set_up_jax,
)
from trainer.networks.model import build_classifier
from trainer.options import TrainOptions
from trainer.runs.checkpoint import Progress
from trainer.runs.training_setup import prepare_training
from trainer.training.feeds import Cached, OnDevice, open_feed
from trainer.training.tracking import Tracking
from trainer.training.train import Loop, StepCallback


class Constant(OnDevice):
    """Asks the device for the same batch in every step."""

    def rows(self, order: Order) -> Any:
        rows = np.arange(self.setup.options.batch_size)
        return np.tile(rows, (self.setup.steps, 1))


def describe_gpu() -> Iterator[str | None]:
    """Name, driver and memory of the GPU that Keras uses; None without one."""
    set_up_jax()
    if compute_capability() is None:
        yield None
        return
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    yield subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


def measure(
    options: TrainOptions, steps: int, epochs: int, ways: list[str]
) -> Iterator[tuple[int, float, float, int | None]]:
    """Trains `epochs` epochs of at least `steps` steps; the first, which compiles, is not counted.

    Args:
        ways: streamed; or constant and cached, which are one network.

    Yields:
        Of each way the batch size, images a second, the share of time that went by waiting, and
        the most bytes of a GPU's memory in use at once.
    """
    set_up_jax()
    capability, memory = compute_capability(), gpu_memory()
    cache = "none" if ways == ["streamed"] else "device"
    setup = prepare_training(TrainOptions(**dict(options) | {"cache": cache}))
    policy = choose_precision(options.precision, capability)
    classifier = build_classifier(options, setup.shards.image, setup.prevalence, policy)
    if memory is not None and "batch_size" not in options.model_fields_set:
        # That of a large directory, beside the cache that is made here.
        room = cache_bytes(setup.shards, steps * LARGEST_BATCH, options.image_size)
        size = choose_batch_size(classifier.core, memory - room, 1, 1 << 20)
        setup = replace(setup, options=setup.options.model_copy(update={"batch_size": size}))
    batch = setup.options.batch_size
    shards = cycle(shard for split in setup.training for shard in split.shards)
    taken = []
    while sum(shard.examples for shard in taken) < steps * batch:
        taken.append(next(shards))
    quiet, split = Display(Console(quiet=True)), replace(setup.training[0], shards=tuple(taken))
    setup = replace(setup, training=(split,), display=quiet)
    feed = open_feed(setup)
    xla, untracked = choose_xla("auto", capability, False), Tracking(options, setup.run, quiet)
    loop = Loop(setup, feed, classifier, xla, None, untracked)
    loop.begin_phase(frozen=False)
    for way in ways:
        loop.feed = Constant(**vars(feed)) if way == "constant" else feed
        rows = []
        for number in range(epochs):
            loop.progress = Progress(epoch=number)
            rows.append(loop.train_epoch())
        speed = harmonic_mean(row["images_per_second"] for row in rows[1:])
        waiting = fmean(row["input_wait"] for row in rows[1:])
        yield batch, speed, waiting, None if capability is None else peak_memory()


# What copies a batch to the device, with TensorFlow preceded by what takes it from the cache; and
# what waits until the device has computed a step.
COPY = (hardware, "begin_copy") if keras.backend.backend() == "jax" else (Cached, "fetch")
COMPUTE = (StepCallback, "wait")


def calling(call: Callable[[], None], owner: Any, name: str) -> Callable[..., Any]:
    """Returns a function that calls another one before it."""
    function = getattr(owner, name)

    def call_both(*arguments: Any) -> Any:
        call()
        return function(*arguments)

    return call_both


def asleep(options: TrainOptions, step: float, copy: float) -> Iterator[float]:
    """Trains an epoch that compiles and one more; the device and what copies to it sleep.

    Args:
        step: seconds of sleep for each step, one at a time.
        copy: seconds of sleep for each batch, one at a time.

    Yields:
        Seconds a step of the second epoch.
    """
    set_up_jax()
    setup = prepare_training(TrainOptions(**dict(options) | {"cache": "ram"}))
    quiet = Display(Console(quiet=True))
    setup = replace(setup, display=quiet)
    classifier = build_classifier(options, setup.shards.image, setup.prevalence, "float32")
    bus = Lock()

    def sleep_on_bus() -> None:
        with bus:
            time.sleep(copy)

    feed = open_feed(setup)
    setattr(*COPY, calling(sleep_on_bus, *COPY))
    setattr(*COMPUTE, calling(lambda: time.sleep(step), *COMPUTE))
    if keras.backend.backend() != "jax":
        hardware.tensorflow_gpu = lambda: "/device:CPU:0"  # in place of the GPU
    xla, untracked = choose_xla("off", None, False), Tracking(options, setup.run, quiet)
    loop = Loop(setup, feed, classifier, xla, None, untracked)
    loop.begin_phase(frozen=False)
    for number in range(2):
        loop.progress = Progress(epoch=number)
        row = loop.train_epoch()
    yield options.batch_size / row["images_per_second"]


def peak_memory() -> int:
    """The most bytes of the GPU's memory that this process used at once."""
    if keras.backend.backend() == "jax":
        import jax

        return int(jax.devices()[0].memory_stats()["peak_bytes_in_use"])
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
