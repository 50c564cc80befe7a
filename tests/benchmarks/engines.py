"""What other runners cost on one machine, where conversion needs all of its cores.

    python -m tests.benchmarks.engines --input FOLDER_OF_DICOM_SLICES [--prism PATH]

The slices are linked under new names until there are enough files, so that they lie in the page
cache. Each turn runs the pipeline once on every runner, with Beam's defaults where nothing else is
said: local with two worker processes; Beam's portable job service with one and with two SDK
workers, which start a pool; and Prism, if its program is there. The services are started before the
clock is. Wall time is that of the command, from its start to its end; CPU seconds are those of all
processes, and what services take without a job is measured apart and subtracted.

One more run of each is watched, several times a second: the memory of its processes, and the CPU
seconds that every process that reads headers or converts slices has used, by the worker that it
belongs to and the step that the output folder shows. So it is seen whether a step is spread.
"""

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median

import psutil

from headct.layout import MANIFEST, PLAN, UNFINISHED
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.outputs import check_count
from tests.benchmarks.processes import Cost, children, repeating, run_module
from tests.benchmarks.report import Figures, markdown, spread
from tests.benchmarks.ways import copy_usable, replicate
from tests.engines.portable_service import portable_engine

_TIMEOUT = 900.0
_SAMPLE_SECONDS = 0.2
_CONVERTER = "multiprocessing.forkserver"  # in the command lines of what reads and converts
_STEPS = ("read headers", "convert")
_REAPED_WITHIN = 10.0  # seconds
_USED_SECONDS = 0.1  # of CPU, from which on a process counts as having worked


@dataclass(frozen=True)
class Way:
    """A runner, and how it is called.

    Attributes:
        name: for the tables.
        sdk_workers: of the portable job service; 0 for runners without one.
        arguments: of the pipeline.
    """

    name: str
    sdk_workers: int
    arguments: tuple[str, ...]


@dataclass
class Watched:
    """What the processes of a run did.

    Attributes:
        harness: most memory of a process that runs Beam's steps, or starts the run; bytes.
        converter: most memory of a process that reads headers and converts slices.
        all: most memory of all together, pages that several share counted once.
        seconds: of CPU, by step, and by the worker and the id of the process.
        at_once: most processes that were at work at a time, by step.
    """

    harness: int = 0
    converter: int = 0
    all: int = 0
    seconds: dict[str, dict[tuple[int, int], float]] = field(
        default_factory=lambda: {step: {} for step in _STEPS}
    )
    at_once: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_STEPS, 0))


def ways(prism: str | None) -> list[Way]:
    found = [
        Way("local, 2 workers", 0, ("--workers", "2")),
        Way("portable, 1 SDK worker", 1, ()),
        Way("portable, 1 SDK worker, --workers 2", 1, ("--workers", "2")),
        Way("portable, 2 SDK workers", 2, ()),
    ]
    if prism:
        arguments = ("--runner", "PrismRunner", "--prism_location", prism)
        found.append(Way("Prism", 0, arguments))
    return found


@contextmanager
def service(way: Way, folder: Path) -> Iterator[list[str]]:
    """The arguments that choose the runner, while its service runs."""
    if not way.sdk_workers:
        yield list(way.arguments)
        return
    folder.mkdir()
    with portable_engine(folder, way.sdk_workers) as arguments:
        yield [*arguments, *way.arguments]
    shutil.rmtree(folder)


def run(way: Way, source: Path, scratch: Path, watched: Watched | None = None) -> Cost:
    """One run of a way, checked for an image a file."""
    output = scratch / "output"
    before = _cpu()
    with service(way, scratch / "service") as chosen:
        arguments = ["--input", str(source), "--output", str(output), "--leak_check", "off"]
        with watch(output, watched) if watched else nullcontext():
            cost = run_module("beam_pipeline", [*arguments, *chosen], scratch / "log", _TIMEOUT)
    cpu = _cpu() - before
    check_count(way.name, output, len(list(source.iterdir())))
    shutil.rmtree(output)
    return Cost(cost.wall, cpu - _idle_cpu(way, scratch))


@cache
def _idle_cpu(way: Way, scratch: Path) -> float:
    """CPU seconds of a way's services that get no job."""
    if not way.sdk_workers:
        return 0.0
    before = _cpu()
    with service(way, scratch / "service"):
        pass
    return _cpu() - before


def _cpu() -> float:
    """CPU seconds of all processes that this one started, or adopted, and that have ended."""
    end = time.monotonic() + _REAPED_WITHIN
    while time.monotonic() < end and (orphans := children()):
        for orphan in orphans:
            with suppress(ChildProcessError):
                os.waitpid(orphan, os.WNOHANG)
        time.sleep(0.05)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def watch(output: Path, watched: Watched) -> AbstractContextManager[None]:
    """Sample all processes that this one started, at once or later."""
    seconds: dict[int, float] = {}
    return repeating(lambda: _sample(_step(output), seconds, watched), _SAMPLE_SECONDS)


def _step(output: Path) -> str | None:
    """What is done, as the output folder shows it."""
    if (output / PLAN).exists():
        return _STEPS[1]
    if (output / MANIFEST).exists() or not (output / UNFINISHED).exists():
        return None
    return _STEPS[0]


def _sample(step: str | None, seconds: dict[int, float], watched: Watched) -> None:
    """Look at the processes once; `seconds` of CPU are those of processes that convert, so far."""
    total, busy = 0, 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            memory = process.memory_full_info()
            total += memory.pss
            if _CONVERTER not in " ".join(process.cmdline()):
                watched.harness = max(watched.harness, memory.rss)
                continue
            server = process.parent()
            if server is None or _CONVERTER not in " ".join(server.cmdline()):
                continue  # the server that others are forked from
            watched.converter = max(watched.converter, memory.rss)
            times = process.cpu_times()
            used = times.user + times.system - seconds.get(process.pid, 0.0)
            seconds[process.pid] = times.user + times.system
            if step and used > 0:
                key = (server.ppid(), process.pid)
                of_step = watched.seconds[step]
                of_step[key] = of_step.get(key, 0.0) + used
                busy += 1
    watched.all = max(watched.all, total)
    if step:
        watched.at_once[step] = max(watched.at_once[step], busy)


def tabulate_times(costs: dict[str, list[Cost]], files: int) -> Figures:
    columns = ("", "wall s", "of local", "CPU s", "of local", "CPU ms a slice")
    figures = Figures(f"{files:,} slices: median (least-greatest)", columns)
    base = next(iter(costs.values()))
    wall, cpu = (median(cost.wall for cost in base), median(cost.cpu for cost in base))
    for name, own in costs.items():
        walls, cpus = [cost.wall for cost in own], [cost.cpu for cost in own]
        row = (name, spread(walls, 1), f"{median(walls) / wall:.2f}", spread(cpus, 1))
        figures.rows.append(
            (*row, f"{median(cpus) / cpu:.2f}", f"{1e3 * median(cpus) / files:.2f}")
        )
    return figures


def tabulate_memory(watched: dict[str, Watched]) -> Figures:
    columns = ("", "process with Beam", "process that converts", "all processes")
    figures = Figures("Peak memory, MB", columns)
    for name, own in watched.items():
        sizes = (own.harness, own.converter, own.all)
        figures.rows.append((name, *(f"{size / 1e6:,.0f}" for size in sizes)))
    return figures


def tabulate_spread(watched: dict[str, Watched]) -> Figures:
    columns = ("", "step", "workers", "processes at once", "CPU s", "of the busiest worker")
    figures = Figures("How steps are spread", columns)
    for name, own in watched.items():
        for step, seconds in own.seconds.items():
            workers: dict[int, float] = {}
            for (worker, _), used in seconds.items():
                workers[worker] = workers.get(worker, 0.0) + used
            total = sum(workers.values())
            share = max(workers.values()) / total if total else 0.0
            count = sum(used > _USED_SECONDS for used in workers.values())
            row = (name, step, str(count), str(own.at_once[step]), f"{total:.1f}", f"{share:.0%}")
            figures.rows.append(row)
    return figures


def main() -> int:
    """Measure all ways in turns, and then watch a run of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--input", type=Path, required=True, help="folder of uncompressed 512 x 512 CT slices")
    add("--files", type=int, default=4_000, help="to replicate the slices to (default: 4000)")
    add("--repeats", type=int, default=3, help="turns, of which medians are shown (default: 3)")
    add("--prism", default=shutil.which("prism"), help="Prism's program (default: on the PATH)")
    options = parser.parse_args()
    notes = describe_machine(["apache-beam"])
    chosen = ways(options.prism)
    costs: dict[str, list[Cost]] = {way.name: [] for way in chosen}
    watched = {way.name: Watched() for way in chosen}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        slices, _ = copy_usable(options.input, Path(name, "slices"))
        source = replicate(slices, options.files, Path(name, "files"))
        run(chosen[0], source, Path(name))  # byte code is compiled, files come from the disk
        for number in range(options.repeats):
            for way in chosen:
                os.sync()  # what an earlier run wrote is not to be this one's burden
                began = time.monotonic()
                costs[way.name].append(run(way, source, Path(name)))
                cost, whole = costs[way.name][-1], time.monotonic() - began
                print(
                    f"turn {number + 1}, {way.name}: {cost.wall:.1f} s, {cost.cpu:.1f} s of CPU "
                    f"({whole:.1f} s in all)",
                    file=sys.stderr,
                )
        for way in chosen:
            run(way, source, Path(name), watched[way.name])
    notes["load at the end"] = f"{os.getloadavg()[0]:.1f} (1 min)"
    tables = [
        tabulate_times(costs, options.files),
        tabulate_memory(watched),
        tabulate_spread(watched),
    ]
    print(markdown(tables, notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
