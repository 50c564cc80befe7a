"""How fast the training step is, and what its input costs it; meant for a GPU.

    python -m tests.benchmarks.trainer_step --shards SHARDS [--model resnet50]
    KERAS_BACKEND=jax python -m tests.benchmarks.trainer_step --shards SHARDS

For each size and precision: (i) the same batch over and over, out of the device's memory;
(ii) streamed shards; (iii) the trainer's --cache device. Images a second of whole epochs after
one that compiles, the share of (i), the wait for input, and the most memory that was in use.
Each is measured in a process of its own. Without a GPU it runs in small, and says so. The
shards' slices are taken as often as it needs for --steps steps an epoch.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.report import Figures, markdown
from trainer.native_log import load_libraries
from trainer.options import TrainOptions

WAYS = {"constant": "(i) constant", "streamed": "(ii) streamed", "cached": "(iii) cached"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512])
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=40, help="an epoch, at least")
    parser.add_argument("--epochs", type=int, default=3, help="of which the first compiles")
    parser.add_argument("--steps_per_execution", type=int, default=1)
    given = parser.parse_args()
    console = Console(highlight=False)
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        gpu = pool.submit(in_child, "describe_gpu").result()
        if gpu is None:
            given.model, given.sizes, given.precisions = "smallresnet", [64], ["float32"]
            given.batch_size, given.steps = 8, 20
        rows = []
        for size in given.sizes:
            for precision in given.precisions:
                rows += measure(pool, console, given, size, precision)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    title = f"{given.model}, batches of {given.batch_size}, {backend}"
    columns = ("size, precision, input", "images/s", "of (i)", "ms a step", "waits", "memory")
    notes = describe_machine(["keras", "numpy", backend])
    notes["device"] = gpu or "no GPU: run in small, which says nothing of one"
    # To be pasted into BENCHMARKS.md.
    print(markdown([Figures(title, columns, rows)], notes))


def measure(
    pool: ProcessPoolExecutor,
    console: Console,
    given: argparse.Namespace,
    size: int,
    precision: str,
) -> list[tuple[str, ...]]:
    """A row for each way of input; each is told as soon as it is known."""
    options = TrainOptions(
        shards=given.shards,
        run=Path("no such run"),
        model=given.model,
        weights="none",
        image_size=size,
        batch_size=given.batch_size,
        precision=precision,
        steps_per_execution=given.steps_per_execution,
        checkpoint_seconds=0.0,
    )
    first, rows = 0.0, []
    for way in given.ways:
        arguments = (options, given.steps, given.epochs, way)
        speed, waiting, memory = pool.submit(in_child, "measure", *arguments).result()
        first = first or speed
        row = (
            f"{size} {precision} {WAYS[way]}",
            f"{speed:,.0f}",
            f"{speed / first:.2f}",
            f"{given.batch_size / speed * 1000:,.1f}",
            f"{waiting:.0%}",
            "-" if memory is None else f"{memory / 2**30:.1f} GiB",
        )
        console.print(" | ".join(row))
        rows.append(row)
    return rows


def in_child(name: str, *arguments: Any) -> Any:
    """Calls a function of `step_ways` in a process that knows no TensorFlow yet."""
    load_libraries()
    from tests.benchmarks import step_ways

    return getattr(step_ways, name)(*arguments)


if __name__ == "__main__":
    main()
