"""What a bucket costs that answers late: whole runs from a local disk and from S3, in turns.

    python -m tests.benchmarks.buckets --input FOLDER [--files 2400] [--latency 0.05] [--turns 3]

The slices, which must not be compressed, are copied as often as asked for, each copy with another
value in the middle of its pixels (so that none are identical), and stored in gofakes3 (in memory,
on this machine) behind a proxy that holds each answer back. Every run has two worker processes, and
is compared with one on few files, to tell what a slice costs apart from the start. Server and proxy
share the machine's cores with the pipeline: their CPU seconds are in the table, too.
"""

import argparse
import os
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.processes import Cost, children, run_module
from tests.benchmarks.report import Figures, markdown, spread
from tests.benchmarks.ways import copy_distinct
from tests.headct.faulty_proxy import FaultyProxy, Traffic
from tests.headct.object_stores import S3_CREDENTIALS, ObjectServer, serve_s3

_FEW = 48  # files of a run that is mostly start
_TIMEOUT = 1800.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Turn:
    """One run on all files, one on few, and what the first took of others.

    Attributes:
        few: of the run on few files.
        all: of the run on all.
        others: CPU seconds of server and proxy.
        requests: of the run on all.
        bytes: of the answers to them.
    """

    few: Cost
    all: Cost
    others: float
    requests: int
    bytes: int

    @property
    def apart(self) -> Cost:
        """What the files cost that the other run did not have."""
        return Cost(self.all.wall - self.few.wall, self.all.cpu - self.few.cpu)


def measure(files: int, run: Callable[[str], Cost], proxy: FaultyProxy) -> Turn:
    """One turn of a way; `run` is told which of the two folders to read."""
    few = run("few")
    proxy.traffic = Traffic()
    before = _others_cpu()
    whole = run("all")
    others = _others_cpu() - before
    return Turn(few, whole, others, *proxy.traffic.of(lambda _: True))


def _others_cpu() -> float:
    """CPU seconds of this process, in which the proxy is, and of the server."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    seconds = own.ru_utime + own.ru_stime
    for child in children():
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / _TICKS
    return seconds


def fill(folder: Path, server: ObjectServer, slices: list[Path], files: int) -> None:
    """Make both folders, on the disk and in the bucket."""
    for name, count in (("few", _FEW), ("all", files)):
        copies = copy_distinct(slices, count, folder / name).iterdir()
        server.put({f"{name}/{path.name}": path.read_bytes() for path in copies})


def tabulate(turns: dict[str, list[Turn]], files: int) -> Figures:
    """A row for each way; the first is what others are compared with."""
    columns = ("", "wall s", "ratio", "CPU s", "others' CPU s", "requests a file", "KB a file")
    figures = Figures(f"{files - _FEW:,} files, the start apart: median (least-greatest)", columns)
    base = median(turn.apart.wall for turn in next(iter(turns.values())))
    for name, own in turns.items():
        row = (
            name,
            spread([turn.apart.wall for turn in own], 1),
            f"{median(turn.apart.wall for turn in own) / base:.2f}",
            spread([turn.apart.cpu for turn in own], 1),
            spread([turn.others for turn in own], 1),
            f"{own[0].requests / files:.2f}",
            f"{own[0].bytes / files / 1e3:.0f}",
        )
        figures.rows.append(row)
    return figures


def main() -> None:
    """Measure all ways in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--files", type=int, default=2400)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    slices = sorted(arguments.input.rglob("*.dcm"))
    with FaultyProxy() as proxy, serve_s3(proxy) as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= S3_CREDENTIALS | {"AWS_ENDPOINT_URL": proxy.address}
        fill(folder, server, slices, arguments.files)

        def run(root: str, latency: float, files: str) -> Cost:
            proxy.latency = lambda _: latency
            options = ["--input", f"{root}/{files}", "--output", f"{root}/out", "--overwrite"]
            options += ["--workers", "2", "--max_reject_fraction", "0.5"]
            return run_module("beam_pipeline", options, folder / "log", _TIMEOUT)

        ways: dict[str, Callable[[str], Cost]] = {
            "local disk": lambda files: run(name, 0.0, files),
            "bucket": lambda files: run(server.url, 0.0, files),
            f"bucket, {1e3 * arguments.latency:.0f} ms": lambda files: run(
                server.url, arguments.latency, files
            ),
        }
        turns: dict[str, list[Turn]] = {way: [] for way in ways}
        run(name, 0.0, "few")  # byte code is compiled, libraries come from the disk
        for _ in range(arguments.turns):
            for way, action in ways.items():
                turns[way].append(measure(arguments.files, action, proxy))
    notes = describe_machine(["obstore", "apache-beam"])
    print(markdown([tabulate(turns, arguments.files)], notes))


if __name__ == "__main__":
    main()
