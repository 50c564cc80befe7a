"""What reading a ZIP archive in place costs, beside the folder that was packed and unpacking it.

    python -m tests.benchmarks.archives --input FOLDER_OF_DICOM_SLICES

The slices are copied as often as asked for, each copy with other values in the middle of its
pixels, so that none are identical, and packed by Deflate. In one run, in turns, with two worker
processes, from the page cache:

(a) `folder`: the pipeline on the copies;
(b) `archive`: the pipeline on the archive;
(c) `unpack`: `python -m zipfile -e`, one process, which writes the copies to the disk.

Each also runs on few files, to tell what a slice costs apart from the start; (a) and (b) have to
write the same shards. CPU is user and system time of all processes, medians of --turns.
"""

import argparse
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.processes import Cost, run_module
from tests.benchmarks.report import Figures, markdown, spread
from tests.benchmarks.ways import copy_distinct, copy_usable

FEW = 256  # files of a run that is mostly start
TIMEOUT = 1800.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        slices, _ = copy_usable(options.input, scratch / "slices")
        pack(slices, {"few": FEW, "all": options.files}, scratch)
        turns = measure(make_ways(scratch), options.turns)
        if shards(scratch / "out-folder") != shards(scratch / "out-archive"):
            raise SystemExit("the archive gave other shards than the folder")
        stored = (scratch / "all.zip").stat().st_size / options.files
    notes = describe_machine(["isal", "apache-beam"])
    notes["data"] = f"{options.files} slices, {stored / 1000:.0f} KB each in the archive"
    print(markdown([tabulate(turns, options.files)], notes))


def pack(slices: list[Path], counts: dict[str, int], scratch: Path) -> None:
    """Make folders and archives of so many files."""
    for name, count in counts.items():
        copies = copy_distinct(slices, count, scratch / name)
        with zipfile.ZipFile(scratch / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for copy in sorted(copies.iterdir()):
                archive.write(copy, copy.name)


def make_ways(scratch: Path) -> dict[str, Callable[[str], Cost]]:
    """What is measured: each works on the folder or archive of a name."""

    def preprocess(source: Path, way: str) -> Cost:
        output = scratch / f"out-{way}"
        shutil.rmtree(output, ignore_errors=True)
        options = ["--input", str(source), "--output", str(output), "--workers", "2"]
        return run_module("beam_pipeline", options, scratch / "log", TIMEOUT)

    def unpack(name: str) -> Cost:
        target = scratch / "unpacked"
        shutil.rmtree(target, ignore_errors=True)
        options = ["-e", str(scratch / f"{name}.zip"), str(target)]
        return run_module("zipfile", options, scratch / "log", TIMEOUT)

    return {
        "(a) folder": lambda name: preprocess(scratch / name, "folder"),
        "(b) archive": lambda name: preprocess(scratch / f"{name}.zip", "archive"),
        "(c) unpack": unpack,
    }


def measure(
    ways: dict[str, Callable[[str], Cost]], turns: int
) -> dict[str, list[tuple[Cost, Cost]]]:
    """What each way took on few files and on all, in turns, after one that warms up."""
    costs: dict[str, list[tuple[Cost, Cost]]] = {way: [] for way in ways}
    for turn in range(turns + 1):
        for way, run in ways.items():
            few, whole = run("few"), run("all")
            if turn:
                costs[way].append((few, whole))
    return costs


def shards(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("ich-*")}


def tabulate(turns: dict[str, list[tuple[Cost, Cost]]], files: int) -> Figures:
    """A row for each way."""
    columns = ("way", "CPU s", "wall s", "CPU ms a slice, the start apart", "of (a)")
    figures = Figures("ZIP archives: median (least-greatest)", columns)
    apart = {
        way: [1000 * (whole.cpu - few.cpu) / (files - FEW) for few, whole in own]
        for way, own in turns.items()
    }
    for way, own in turns.items():
        row = (
            way,
            spread([whole.cpu for _, whole in own], 1),
            spread([whole.wall for _, whole in own], 1),
            spread(apart[way]),
            f"{median(apart[way]) / median(apart['(a) folder']):.2f}",
        )
        figures.rows.append(row)
    return figures


if __name__ == "__main__":
    main()
