"""How preprocessing would grow with more cores: the main process feeds workers that only sleep.

    python -m tests.benchmarks.cores [--workers 2 4 8 16 32 64] [--slices 2000]

A run with the pipeline's own steps, in which a worker process sleeps for as long as it would read
headers (0.3 ms a slice) and convert slices (1.3 ms); the inventory that it then stores was made up
before, and a shard is empty. All else is real: the listing of the input, the hand-over of tasks,
the tables between the steps, labels, planning, index, manifest and progress. So a machine with two
cores shows how many workers the main process can keep busy. Imports are not counted, and the CPU
time of a run on a few slices is the start.

The rate falls behind for another reason, too: all workers share the machine's cores, and each takes
some CPU time to begin and to store its tables. What the main process could feed is reckoned from
its CPU time a slice alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from beam_pipeline import (
    __main__,  # noqa: F401 - sets the garbage collector
    pipeline,
)
from beam_pipeline.planning.labels import read_labels
from beam_pipeline.progress import Display
from beam_pipeline.shards.unfinished import Unfinished
from beam_pipeline.workers import start_server
from headct.commands import STARTED_BY, STEP
from headct.stores import Folder
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.planning import make
from tests.benchmarks.planning import options as options_in
from tests.benchmarks.report import Figures, markdown
from tests.benchmarks.sleeping import HEADER_SECONDS, SLICE_SECONDS, inspect_asleep, write_asleep

SLICES_OF_THE_START = 256  # one part of the inventory
STEPS = {name: getattr(pipeline, name) for name in ("_plan_shards", "_finish_directory")}


# What steps took, in seconds of time and of CPU of this process. Beam copies what it is given, but
# not functions of modules.
took: dict[str, float] = {}


def _timed(name: str, step: Callable[..., Any], *given: Any) -> Any:
    cpu = time.process_time()
    try:
        return step(*given)
    finally:
        took[name] = time.process_time() - cpu


def _plan(*given: Any) -> Any:
    return _timed("plan", STEPS["_plan_shards"], *given)


def _finish(*given: Any) -> Any:
    return _timed("finish", STEPS["_finish_directory"], *given)


def run_once(folder: Path, workers: int, slices: int) -> dict[str, float]:
    """Run on so many slices; returns CPU seconds of this process, `wall` seconds, and `slices`."""
    options = options_in(folder).changed(workers=workers, leak_check="off")
    make(folder, slices)
    (folder / "out").rename(folder / "made-up")
    made_up, unfinished = (Unfinished(Folder(str(folder / name))) for name in ("made-up", "out"))
    for table in made_up.read_all(sorted(made_up.names("inventory")), ["source"]):
        for name in table["source"].to_pylist():
            (folder / "in" / name.decode()).touch()
    read_labels(options.files.labels, options.labels).keep(unfinished)
    start_server(options.files.input)
    os.environ[STARTED_BY] = STEP  # without a data card, whose cost does not grow
    replaced = {"inspect_part": inspect_asleep, "write_shard": write_asleep}
    replaced |= {"_plan_shards": _plan, "_finish_directory": _finish}
    began = time.perf_counter()
    with (
        patch.multiple(pipeline, **replaced),
        Display(Console(quiet=True), unfinished) as display,
        display.looking(),
    ):
        _timed("run", pipeline.run_here, options)
    took.update(wall=time.perf_counter() - began, slices=slices)
    manifest = json.loads((folder / "out/manifest.json").read_bytes())
    assert manifest["counts"]["written"] == slices
    return took


def tabulate(start: dict[str, float], found: dict[int, dict[str, float]]) -> Figures:
    columns = (
        *("workers", "slices", "slices a second", "of workers that never wait"),
        *("main process: CPU s", "ms a slice, the start apart", "of it planning", "of it the end"),
        "workers that it could feed",
    )
    title = f"Workers that sleep 0.3 ms a header and 1.3 ms a slice; start: {start['run']:.2f} s"
    figures, of_slice = Figures(title, columns), HEADER_SECONDS + SLICE_SECONDS
    for workers, seconds in found.items():
        slices = int(seconds["slices"])
        rate, more = slices / seconds["wall"], slices - SLICES_OF_THE_START
        each, *parts = ((seconds[name] - start[name]) / more for name in ("run", "plan", "finish"))
        row = (str(workers), f"{slices:,}", f"{rate:,.0f}", f"{rate * of_slice / workers:.0%}")
        costs = (f"{1e3 * cost:.3f}" for cost in (each, *parts))
        figures.rows.append((*row, f"{seconds['run']:.2f}", *costs, f"{of_slice / each:.0f}"))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--workers", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64], help="numbers of workers")
    add("--scratch", type=Path, help="folder for temporary files (default: the system's)")
    add("--slices", type=int, default=2_000, help="slices a worker (default: 2000)")
    add("--once", type=Path, help=argparse.SUPPRESS)  # a run in a process of its own
    given = parser.parse_args()
    if given.once:
        from tests.benchmarks import cores  # whose functions workers can import

        (workers,) = given.workers
        print(json.dumps(cores.run_once(given.once, workers, workers * given.slices)))
        return 0

    def run(workers: int, slices: int) -> dict[str, float]:
        folder = Path(tempfile.mkdtemp(prefix="bench-", dir=given.scratch))
        command = [sys.executable, "-m", __spec__.name, "--once", folder]
        command += ["--workers", workers, "--slices", slices]
        try:
            done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE)
        finally:
            shutil.rmtree(folder)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    start = run(1, SLICES_OF_THE_START)
    found = {workers: run(workers, given.slices) for workers in given.workers}
    notes = describe_machine(["apache-beam", "pyarrow", "pandas"])
    print(markdown([tabulate(start, found)], notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
