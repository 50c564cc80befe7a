"""How fast the training step is, and what its input costs it; meant for a GPU.

    python -m tests.benchmarks.trainer_step --shards SHARDS [--model resnet50]
    KERAS_BACKEND=jax python -m tests.benchmarks.trainer_step --shards SHARDS

For each precision and size: (i) the same batch over and over, out of the device's memory;
(ii) streamed shards; (iii) the trainer's --cache device. Images a second of whole epochs
after one that compiles, the share of (i), the wait for input, and the GPU's memory.
Without a GPU it runs in small, and says so. The shards' slices are taken as often as it needs for
--steps steps an epoch.
"""

import argparse
import math
import os
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.report import Figures, show
from trainer.bank import Bank
from trainer.feeds import Feed, OnDevice, open_feed
from trainer.hardware import choose_precision, choose_xla, compute_capability, leave_gpu_to_jax
from trainer.input_pipeline import InputClock, Order
from trainer.job import Job, prepare_training
from trainer.model import build_classifier
from trainer.options import TrainOptions
from trainer.shards import count
from trainer.train import compile_phase


@dataclass(frozen=True)
class Constant(OnDevice):
    """Asks the device for the same batch in every step."""

    def rows(self, order: Order) -> Any:
        rows = np.arange(self.job.options.batch_size)
        return np.tile(rows, (self.job.steps, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512])
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=40, help="an epoch, at least")
    parser.add_argument("--epochs", type=int, default=3, help="of which the first compiles")
    options = parser.parse_args()
    leave_gpu_to_jax()
    gpu = compute_capability() is not None
    notes = describe_machine(["keras", "tensorflow"]) | {"device": describe_device()}
    if not gpu:
        options.sizes, options.precisions, options.batch_size = [64], ["float32"], 8
        notes["device"] = "no GPU: run in small, which says nothing of one"
    rows = []
    for size in options.sizes:
        for precision in options.precisions:
            rows += measure(options, size, precision)
    title = f"{options.model}, batches of {options.batch_size}, {keras.backend.backend()}"
    columns = ("size, precision, input", "images/s", "of (i)", "waiting", "memory")
    show(Console(highlight=False), [Figures(title, columns, rows)], notes)


def measure(options: argparse.Namespace, size: int, precision: str) -> list[tuple[str, ...]]:
    """A row for each way of input."""
    job = prepare_training(
        TrainOptions(
            shards=options.shards,
            run=Path("no such run"),
            model=options.model,
            weights="none",
            image_size=size,
            batch_size=options.batch_size,
            precision=precision,
            steps_per_execution=8,
        )
    )
    copies = math.ceil(options.steps * options.batch_size / count(job.training))
    job = replace(job, training=job.training * copies)
    first, rows = 0.0, []
    for name in ("(i) constant", "(ii) streamed", "(iii) device cache"):
        feed = make_feed(job, name)
        speed, wait = train_speed(job, feed, options.epochs)
        first = first or speed
        title = f"{size}, {precision}, {name}"
        share = f"{speed / first:.2f}"
        rows.append((title, f"{speed:,.0f}", share, f"{wait:.0%}", describe_memory()))
        keras.utils.clear_session(free_memory=True)
    return rows


def make_feed(job: Job, name: str) -> Feed:
    if name.startswith("(i) "):
        size, image = job.options.image_size, job.shards.image
        shape = (job.options.batch_size, size, size, image.channels)
        pixels = np.random.default_rng(0).integers(0, 256, shape).astype(image.dtype)
        labels = np.zeros((len(pixels), len(job.shards.labels)), np.float32)
        bank = Bank((pixels,), labels)
        return Constant(job, bank, bank)
    cache = "none" if name.startswith("(ii) ") else "device"
    return open_feed(replace(job, options=replace(job.options, cache=cache)), 1 << 62)


def train_speed(job: Job, feed: Feed, epochs: int) -> tuple[float, float]:
    """Images a second and share of waiting, of all epochs but the first."""
    capability = compute_capability()
    policy = choose_precision(job.options.precision, capability)
    classifier = build_classifier(job.options, job.shards.image, job.prevalence, policy)
    model = compile_phase(job, feed, classifier, False, choose_xla("auto", capability))
    seconds, waited = 0.0, 0.0
    for epoch in range(epochs):
        clock = InputClock()
        batches = clock.measure(feed.batches(Order(0, epoch)))
        batches = batches.apply(tf.data.experimental.assert_cardinality(job.steps))
        started = time.perf_counter()
        model.fit(batches, shuffle=False, verbose=0)
        if epoch:
            seconds += time.perf_counter() - started
            waited += clock.waited
    return (epochs - 1) * job.steps * job.options.batch_size / seconds, waited / seconds


def nvidia_smi(query: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except OSError:
        return "-"


def describe_device() -> str:
    return nvidia_smi("name,driver_version,memory.total")


def describe_memory() -> str:
    return nvidia_smi("memory.used")


if __name__ == "__main__":
    main()
