"""How fast the training step is, and what its input costs it; meant for a GPU.

    python -m tests.benchmarks.trainer_step --shards SHARDS [--model resnet50]
    KERAS_BACKEND=jax python -m tests.benchmarks.trainer_step --shards SHARDS

For each size and precision: (i) the same batch over and over, out of the device's memory;
(ii) the trainer's --cache device, by the same compiled step; (iii) streamed shards. Images a
second of whole epochs after one that compiles, the share of (i), the wait for input, and the most
memory that was in use. Without --batch_size the trainer chooses by the GPU's memory. The shards'
slices are taken as often as it needs for --steps steps an epoch. Then a whole training is killed
after its first checkpoint and resumed: does it end with the figures of one that was not?

Every row is measured in a process of its own, (i) and (ii) in one. A process that fails, or is not
done when --minutes are over, costs its rows alone. Without a GPU all runs in small, and says so.

With --asleep 200 100, on any machine: a device that sleeps 200 ms for a step, and 100 ms of sleep
to copy a batch to it. Are batches copied while steps are computed?
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.report import Figures, markdown
from trainer.native_log import load_libraries
from trainer.options import TrainOptions

WAYS = {"constant": "(i) constant", "cached": "(ii) cached", "streamed": "(iii) streamed"}
SMALL = {"model": "smallresnet", "sizes": [64], "precisions": ["float32"]}
SMALL |= {"batch_size": 8, "steps": 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch_size", type=int, help="by the GPU's memory if not given")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512])
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=20, help="an epoch, at least")
    parser.add_argument("--epochs", type=int, default=2, help="of which the first compiles")
    parser.add_argument("--steps_per_execution", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="for all")
    parser.add_argument("--asleep", type=float, nargs=2, help="ms of a step and of a copy")
    given = parser.parse_args()
    if given.asleep:
        show_asleep(given)
        return
    ends, console = time.monotonic() + 60 * given.minutes, Console(highlight=False)
    gpu = next(in_child(math.inf, "describe_gpu"))
    if gpu is None:
        vars(given).update(SMALL)
    rows: list[tuple[str, ...]] = []
    resumed = ""
    for size in given.sizes:
        for precision in given.precisions:
            for row in measure(given, size, precision, ends):
                console.print(" | ".join(row))
                rows.append(row)
            resumed = resumed or resume(given, ends)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    columns = ("size, precision, input", "batch", "images/s", "of (i)", "ms a step", "waits")
    notes = describe_machine(["keras", "numpy", backend])
    notes["device"] = gpu or "no GPU: run in small, which says nothing of one"
    notes["killed and resumed"] = resumed
    # To be pasted into BENCHMARKS.md.
    print(markdown([Figures(f"{given.model}, {backend}", (*columns, "memory"), rows)], notes))


def measure(
    given: argparse.Namespace, size: int, precision: str, ends: float
) -> Iterator[tuple[str, ...]]:
    """Yield a row for each way of input."""
    asked = {} if given.batch_size is None else {"batch_size": given.batch_size}
    options = TrainOptions(
        shards=given.shards,
        run=Path("no such run"),
        model=given.model,
        weights="none",
        image_size=size,
        precision=precision,
        steps_per_execution=given.steps_per_execution,
        checkpoint_seconds=0.0,
        **asked,
    )
    first = 0.0
    for ways in (["constant", "cached"], ["streamed"]):
        arguments = (options, given.steps, given.epochs, ways)
        for way, figures in zip(ways, in_child(ends, "measure", *arguments), strict=False):
            name = f"{size} {precision} {WAYS[way]}"
            if isinstance(figures, str):
                yield name, figures, *[""] * 5
                continue
            batch, speed, waiting, memory = figures
            first = first or speed
            yield (
                name,
                str(batch),
                f"{speed:,.0f}",
                f"{speed / first:.2f}",
                f"{batch / speed * 1000:,.1f}",
                f"{waiting:.0%}",
                "-" if memory is None else f"{memory / 2**30:.1f} GiB",
            )


def show_asleep(given: argparse.Namespace) -> None:
    """Print ms a step with and without sleep of the device and of the copies to it."""
    options = TrainOptions(
        shards=given.shards,
        run=Path("no such run"),
        model="smallresnet",
        weights="none",
        image_size=32,
        batch_size=8,
        checkpoint_seconds=0.0,
    )
    step, copy = (milliseconds / 1000 for milliseconds in given.asleep)
    for asleep in ((0, 0), (step, 0), (0, copy), (step, copy)):
        (seconds,) = in_child(math.inf, "asleep", options, *asleep)
        sleeps = "device {:.0f} ms, copy {:.0f} ms".format(*(1000 * each for each in asleep))
        print(f"{sleeps}: {1000 * seconds:.0f} ms a step", flush=True)


def in_child(ends: float, name: str, *arguments: Any) -> Iterator[Any]:
    """Yield what a function of `step_ways` yields in a process that knows no TensorFlow yet.

    If the process fails, or is not done in time and is killed, the last value says so.
    """
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=run_child, args=(sending, name, *arguments))
    child.start()
    sending.close()
    try:
        while receiving.poll(min(max(ends - time.monotonic(), 0), 1e6)):
            yield receiving.recv()
        yield "no time left"
    except EOFError:
        child.join()
        if child.exitcode:
            yield "failed"
    finally:
        child.kill()
        child.join()


def run_child(sending: Connection, name: str, *arguments: Any) -> None:
    load_libraries()
    from tests.benchmarks import step_ways

    for value in getattr(step_ways, name)(*arguments):
        sending.send(value)


def resume(given: argparse.Namespace, ends: float) -> str:
    """Train twice, the second time killed and resumed, and compare the figures."""
    command = [sys.executable, "-m", "trainer", "train", f"--shards={given.shards}"]
    command += [f"--model={given.model}", "--weights=none", f"--image_size={given.sizes[0]}"]
    command += ["--batch_size=8", "--epochs=2", "--checkpoint_steps=5", "--cache=device"]
    command += ["--deterministic", "--no-report"]
    if os.environ.get("KERAS_BACKEND") == "jax":
        command.append("--backend=jax")
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        try:
            train([*command, f"--run={whole}"], ends)
            process = subprocess.Popen([*command, f"--run={killed}"], stdout=subprocess.DEVNULL)
            while not list(killed.glob("checkpoints/epoch-*.npz")) and process.poll() is None:
                if time.monotonic() > ends:
                    break
                time.sleep(0.02)
            process.kill()
            if process.wait() == 0:
                return "not killed in time"
            train([*command, f"--run={killed}"], ends)
        except subprocess.TimeoutExpired:
            return "no time left"
        except subprocess.CalledProcessError as error:
            return f"failed with exit code {error.returncode}"
        figures = [(run / "metrics.json").read_bytes() for run in (whole, killed)]
    return "same figures" if figures[0] == figures[1] else "OTHER FIGURES"


def train(command: list[str], ends: float) -> None:
    left = max(ends - time.monotonic(), 0)
    timeout = left if left < 1e6 else None
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=timeout)


if __name__ == "__main__":
    main()
