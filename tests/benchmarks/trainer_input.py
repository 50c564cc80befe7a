"""How fast images reach the training step, against what people write and the least possible.

    python -m tests.benchmarks.trainer_input --shards SHARDS --dicom FOLDER_OF_DICOM_SLICES

In one run, in turns, on all folds but the first, --copies times over so that an epoch is long
enough to tell its speed from its start:

(a) `floor`: parse and `decode_png` the same records in parallel, and nothing else;
(b) `ours`: the trainer's stream, shuffled and batched, as it comes to the device; whatever
    the size is that the network sees, images are resized there;
(c) `tutorial`: a tf.data pipeline as tutorials write it: one file after the other, float32,
    resized and scaled on the processor;
(d) `dicom`: a loader that reads, windows and resizes the same slices' DICOM files in every
    epoch, with a process a core;
(e) `cached`: the trainer's second epoch with --cache ram, at --image_size.

Images a second and CPU time, medians of --repeats turns after one that warms up; with
--threads 1 on one core, for instance.

With --simulate 2 4 8 16 32, only (b), with so many threads whose decoding is a sleep of --decode
ms: how far does the stream grow with cores? Reading and parsing are not slept through, and limit
it on few cores: shards of small images (`preprocess --image_size 32`) show the rest.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.report import Figures, markdown, spread
from trainer.data.shards import count
from trainer.native_log import load_libraries
from trainer.options import TrainOptions
from trainer.runs.training_setup import prepare_training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--dicom", type=Path)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--copies", type=int, default=8, help="of the slices, in an epoch")
    parser.add_argument("--threads", type=int, help="cores that all ways get; all by default")
    parser.add_argument("--simulate", type=int, nargs="+", help="numbers of decoding threads")
    parser.add_argument("--decode", type=float, default=0.6, help="ms, as of a 512 x 512 x 3")
    options = parser.parse_args()
    # Before any library looks how many there are.
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cores)
    # Here, because the loader's processes import this module, and are to know no TensorFlow.
    load_libraries()
    from tests.benchmarks.input_ways import BATCH, make_ways, simulate

    setup = prepare_training(
        TrainOptions(
            shards=options.shards,
            run=Path("no such run"),
            image_size=options.image_size,
            weights="none",
            batch_size=BATCH,
        )
    )
    if options.simulate:
        rows = []
        for threads in options.simulate:
            slept: list[float] = []
            epoch = simulate(setup, options.copies, threads, options.decode / 1000, slept)
            # The first way is what the others are compared with.
            ways = {"(a) floor": lambda _, epoch=epoch: epoch()}
            ((_, speed, _, cost),) = measure(ways, options.repeats)
            most = f"{threads / np.mean(slept):,.0f}"
            rows.append((str(threads), speed, most, cost))
        columns = ("threads", "images/s", "sleeping alone", "CPU ms an image")
        table = Figures(f"Threads that sleep {options.decode} ms an image", columns, rows)
        print(markdown([table], describe_machine(["tensorflow", "numpy"])))
        return
    rows = measure(make_ways(setup, options.dicom, options.copies), options.repeats)
    image = setup.shards.image
    stored = f"{image.height} x {image.width} x {image.channels}"
    table = Figures(
        f"Input, images stored as {stored}", ("way", "images/s", "of (a)", "CPU ms an image"), rows
    )
    notes = describe_machine(["tensorflow", "numpy", "pydicom"])
    slices = count(setup.training)
    notes["data"] = f"{slices} slices, {options.copies} times an epoch, batches of {BATCH}"
    print(markdown([table], notes))


def measure(ways: dict[str, Callable[[int], int]], repeats: int) -> list[tuple[str, ...]]:
    """A row for each way, of `repeats` turns after one that warms up."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            started, spent = time.perf_counter(), cpu_seconds()
            images = way(turn)
            if turn:
                speeds[name].append(images / (time.perf_counter() - started))
                costs[name].append((cpu_seconds() - spent) / images * 1000)
    floor = float(np.median(speeds["(a) floor"]))
    return [
        (name, spread(each, 0), f"{np.median(each) / floor:.2f}", spread(costs[name]))
        for name, each in speeds.items()
    ]


def cpu_seconds() -> float:
    """User and system time of this process and of those that it started."""
    this = psutil.Process()
    times = [each.cpu_times() for each in (this, *this.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


if __name__ == "__main__":
    main()
