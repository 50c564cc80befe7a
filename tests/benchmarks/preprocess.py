"""What preprocessing costs, against what people would write and against the least possible.

    python -m tests.benchmarks.preprocess --input FOLDER_OF_DICOM_SLICES
    python -m tests.benchmarks.preprocess --input FOLDER_OF_DICOM_SLICES --memory

The slices of a folder are linked under new names until there are enough files. They so lie in the
page cache: what is measured is work, not a disk. In one run, in turns, so that whatever else
happens on the machine meets all alike:

(a) `notebook_script`: pydicom, float64 windows, cv2.imencode, TFRecordWriter, a process pool;
(b) `plain_beam`: the same conversion in a Beam pipeline that ends in WriteToTFRecord;
(c) ours: `python -m beam_pipeline --leak_check off`, unlabelled;
(d) `bare_floor`: read, look up, deflate, write, and nothing else.

Each runs as a command of its own, all with as many workers, on all files and on an eighth of them.
CPU seconds are user and system time of the command and of all processes that it started. The
difference between the two runs gives the cost of a slice without the start (imports, processes),
and the rest is the start. A first turn on the eighth warms up and is checked: an image a file, and
those of (a) and (c) within a grey level. Every later output is counted too.

`--memory` runs (c) alone on 5,000 and on 50,000 files and samples its processes' memory.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

from rich.console import Console

from beam_pipeline.convert import convert_slice
from beam_pipeline.dicom import read_slice
from beam_pipeline.errors import Rejected
from beam_pipeline.hounsfield import Repair
from beam_pipeline.options import Options
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.outputs import WrongOutput, check_count, largest_difference, shard_bytes
from tests.benchmarks.processes import CommandFailed, Cost, Memory, measure_memory, run_module
from tests.benchmarks.report import Figures, markdown, show, spread

SCRIPT, BEAM, OURS, FLOOR = "a", "b", "c", "d"
MODULES = {
    SCRIPT: "tests.benchmarks.notebook_script",
    BEAM: "tests.benchmarks.plain_beam",
    OURS: "beam_pipeline",
    FLOOR: "tests.benchmarks.bare_floor",
}
TITLES = {
    SCRIPT: "(a) notebook",
    BEAM: "(b) plain Beam",
    OURS: "(c) ours",
    FLOOR: "(d) bare floor",
}
PACKAGES = ["numpy", "pydicom", "opencv-python-headless", "isal", "apache-beam", "tensorflow"]
COMPARED = 64  # images of (a) and (c)
MEMORY_FILES = (5_000, 50_000)
TIMEOUT = 3_600.0  # seconds; Beam's worker processes can hang


@dataclass(frozen=True)
class Turn:
    """One way's runs in one turn: on an eighth of the files, and on all."""

    part_files: int
    files: int
    part: Cost
    whole: Cost
    bytes: int

    def per_slice(self, what: str) -> float:
        """Milliseconds a slice, `cpu` or `wall`, the start included."""
        return 1e3 * getattr(self.whole, what) / self.files

    def at_scale(self, what: str) -> float:
        """The same without the start."""
        difference = getattr(self.whole, what) - getattr(self.part, what)
        return 1e3 * difference / (self.files - self.part_files)

    def start(self, what: str) -> float:
        """Seconds that do not depend on the number of files."""
        return getattr(self.part, what) - self.at_scale(what) / 1e3 * self.part_files


def main() -> int:
    options = _parser().parse_args()
    console = Console(stderr=options.markdown)
    console.print(f"Measuring on {options.input}: expect minutes.", highlight=False)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.scratch) as scratch:
        bench = Bench(Path(scratch), options.workers, console)
        slices = _copy_usable(options.input, Path(scratch, "slices"), console)
        notes = describe_machine(PACKAGES)
        try:
            measure = _memory_tables if options.memory else _speed_tables
            tables = measure(bench, slices, options, notes)
        except (CommandFailed, WrongOutput) as error:
            console.print(f"[red]benchmark failed:[/red] {error}")
            return 1
    notes["load at the end"] = f"{os.getloadavg()[0]:.1f} (1 min)"
    if options.markdown:
        print(markdown(tables, notes))
    else:
        show(console, tables, notes)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.preprocess",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--input", type=Path, required=True, help="folder of uncompressed 512 x 512 CT slices")
    add("--files", type=int, default=5_000, help="to replicate the slices to (default: 5000)")
    add("--repeats", type=int, default=3, help="turns, of which medians are shown (default: 3)")
    add("--workers", type=int, default=2, help="processes of each way (default: 2)")
    add("--memory", action="store_true", help="measure the memory of (c) instead")
    add("--memory-files", type=int, nargs=2, default=MEMORY_FILES, help="for --memory")
    add("--markdown", action="store_true", help="print Markdown, and progress to stderr")
    add("--scratch", type=Path, help="folder for temporary files (default: the system's)")
    return parser


def _copy_usable(folder: Path, copies: Path, console: Console) -> list[Path]:
    """Copies to link to, of the slices that all four ways convert alike."""
    copies.mkdir()
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    usable = [shutil.copy(path, copies / path.name) for path in paths if _is_plain(path)]
    if not usable:
        raise SystemExit(f"{folder} holds no uncompressed 512 x 512 CT slices")
    if len(usable) < len(paths):
        left_out = len(paths) - len(usable)
        console.print(f"{left_out} of {len(paths)} files are not as (d) needs them: left out.")
    return usable


def _is_plain(path: Path) -> bool:
    """Whether a file is an uncompressed, sound 512 x 512 slice that ends with its pixels."""
    data = path.read_bytes()
    try:
        slice_ = read_slice(data)
    except Rejected:
        return False
    header, image = slice_.header, convert_slice(slice_, Options("", None, "").image)
    ends_with_pixels = header.pixel_offset == len(data) - 2 * 512 * 512
    return header.is_native and ends_with_pixels and image.repair is Repair.NONE


@dataclass(frozen=True)
class Bench:
    """Runs the four ways in a scratch folder."""

    scratch: Path
    workers: int
    console: Console

    def replicate(self, slices: list[Path], count: int) -> Path:
        """A folder of links to slices."""
        folder = self.scratch / f"input-{count}"
        folder.mkdir()
        for number, path in zip(range(count), cycle(slices), strict=False):
            (folder / f"{number:06d}.dcm").hardlink_to(path)
        return folder

    def run(self, way: str, source: Path, more: list[str]) -> Cost:
        """Convert a folder, into `output(way)`."""
        os.sync()  # what an earlier run wrote is not to be this one's burden
        arguments = self._arguments(way, source, more)
        cost = run_module(MODULES[way], arguments, self.scratch / f"{way}.log", TIMEOUT)
        self.console.print(f"  {TITLES[way]}: {cost.wall:.1f} s, {cost.cpu:.1f} s of CPU")
        return cost

    def measure_memory(self, source: Path) -> Memory:
        arguments = self._arguments(OURS, source, [])
        return measure_memory(MODULES[OURS], arguments, self.scratch / "c.log", TIMEOUT)

    def output(self, way: str) -> Path:
        return self.scratch / f"output-{way}"

    @contextmanager
    def outputs(self) -> Iterator[None]:
        """Remove outputs at the end."""
        try:
            yield
        finally:
            for way in MODULES:
                shutil.rmtree(self.output(way), ignore_errors=True)

    def _arguments(self, way: str, source: Path, more: list[str]) -> list[str]:
        folders = ["--input", str(source), "--output", str(self.output(way))]
        if way == OURS:
            more = [*more, "--leak_check", "off"]
        return [*folders, "--workers", str(self.workers), *more]


def _speed_tables(
    bench: Bench, slices: list[Path], options: argparse.Namespace, notes: dict[str, str]
) -> list[Figures]:
    part_files = max(1, options.files // 8)
    part = bench.replicate(slices, part_files)
    whole = bench.replicate(slices, options.files)
    bench.console.print(f"Warming up on {part_files} files")
    mode = _warm_up(bench, part, part_files, notes)
    turns: dict[str, list[Turn]] = {way: [] for way in MODULES}
    for number in range(options.repeats):
        bench.console.print(f"Turn {number + 1} of {options.repeats}")
        for way in MODULES:
            more = ["--mode", mode] if way == BEAM else []
            turns[way].append(_take_turn(bench, way, (part, part_files), whole, options, more))
    notes["input"] = f"{len(slices)} slices linked as {options.files:,} files, in the page cache"
    notes["runs"] = f"{options.repeats} in turns, {options.workers} workers each, (b) is {mode}"
    return [_costs(turns), _starts(turns), _aims(turns)]


def _warm_up(bench: Bench, part: Path, files: int, notes: dict[str, str]) -> str:
    """Run and check all; the mode in which (b) works."""
    with bench.outputs():
        for way in (SCRIPT, OURS, FLOOR):
            bench.run(way, part, [])
        mode = _find_beam_mode(bench, part)
        for way in MODULES:
            check_count(TITLES[way], bench.output(way), files)
        names = sorted(path.stem for path in part.iterdir())[:COMPARED]
        script, ours = bench.output(SCRIPT), bench.output(OURS)
        difference = largest_difference(script, ours, set(names))
    if difference > 1:
        raise WrongOutput(f"(a) and (c) differ by {difference} grey levels")
    notes["checked"] = f"(a) and (c) differ by {difference} at most in {len(names)} images"
    return mode


def _find_beam_mode(bench: Bench, part: Path) -> str:
    try:
        bench.run(BEAM, part, ["--mode", "multi_processing"])
    except CommandFailed as error:
        bench.console.print(f"(b) fails with multi_processing, so in_memory: {error}")
        shutil.rmtree(bench.output(BEAM), ignore_errors=True)
        bench.run(BEAM, part, ["--mode", "in_memory"])
        return "in_memory"
    return "multi_processing"


def _take_turn(
    bench: Bench,
    way: str,
    part: tuple[Path, int],
    whole: Path,
    options: argparse.Namespace,
    more: list[str],
) -> Turn:
    with bench.outputs():
        part_cost = bench.run(way, part[0], more)
    with bench.outputs():
        cost = bench.run(way, whole, more)
        check_count(TITLES[way], bench.output(way), options.files)
        size = shard_bytes(bench.output(way))
    return Turn(part[1], options.files, part_cost, cost, size)


def _costs(turns: dict[str, list[Turn]]) -> Figures:
    columns = ("", "CPU ms a slice", "slices a second", "KB a slice", "CPU / c", "wall / c")
    figures = Figures("Whole runs, the start included: median (least to greatest)", columns)
    for way, own in turns.items():
        ratios = (f"{_ratio(turns, way, 'per_slice', what):.2f}" for what in ("cpu", "wall"))
        row = (
            TITLES[way],
            spread([turn.per_slice("cpu") for turn in own]),
            spread([1e3 / turn.per_slice("wall") for turn in own], 0),
            f"{own[0].bytes / own[0].files / 1e3:.1f}",
            *ratios,
        )
        figures.rows.append(row)
    return figures


def _starts(turns: dict[str, list[Turn]]) -> Figures:
    columns = ("", "CPU ms a slice", "slices a second", "start: CPU s", "wall s", "CPU / c")
    figures = Figures("The start apart", columns)
    for way, own in turns.items():
        row = (
            TITLES[way],
            spread([turn.at_scale("cpu") for turn in own]),
            spread([1e3 / turn.at_scale("wall") for turn in own], 0),
            spread([turn.start("cpu") for turn in own], 1),
            spread([turn.start("wall") for turn in own], 1),
            f"{_ratio(turns, way, 'at_scale', 'cpu'):.2f}",
        )
        figures.rows.append(row)
    return figures


def _ratio(
    turns: dict[str, list[Turn]], way: str, figure: str, what: str, base: str = OURS
) -> float:
    """The median cost of one way over that of another."""
    cost, base_cost = (
        median(getattr(turn, figure)(what) for turn in turns[key]) for key in (way, base)
    )
    return cost / base_cost


def _aims(turns: dict[str, list[Turn]]) -> Figures:
    figures = Figures("Aims", ("", "aim", "found", "start apart", "reached"))
    for what, name in (("cpu", "CPU"), ("wall", "wall")):
        found = _ratio(turns, SCRIPT, "per_slice", what)
        apart = _ratio(turns, SCRIPT, "at_scale", what)
        figures.rows.append(_aim(f"(a) / (c), {name}", ">= 6", found, apart, found >= 6))
    for what, name in (("cpu", "CPU"), ("wall", "wall")):
        found = _ratio(turns, OURS, "per_slice", what, FLOOR)
        apart = _ratio(turns, OURS, "at_scale", what, FLOOR)
        figures.rows.append(_aim(f"(c) / (d), {name}", "<= 1.3", found, apart, found <= 1.3))
    size = turns[OURS][0].bytes / turns[SCRIPT][0].bytes
    row = ("(c) / (a), shard bytes", "<= 0.87", f"{size:.3f}", "", _said(size <= 0.87))
    figures.rows.append(row)
    return figures


def _aim(name: str, aim: str, found: float, apart: float, reached: bool) -> tuple[str, ...]:
    return name, aim, f"{found:.2f}", f"{apart:.2f}", _said(reached)


def _said(reached: bool) -> str:
    return "yes" if reached else "no"


def _memory_tables(
    bench: Bench, slices: list[Path], options: argparse.Namespace, notes: dict[str, str]
) -> list[Figures]:
    found = {}
    for count in options.memory_files:
        source = bench.replicate(slices, count)
        with bench.outputs():
            found[count] = bench.measure_memory(source)
            check_count(TITLES[OURS], bench.output(OURS), count)
        shutil.rmtree(source)
        bench.console.print(f"  {count:,} files: {found[count].total / 2**20:.0f} MiB")
    notes["input"] = f"{len(slices)} slices linked as {options.memory_files} files"
    notes["samples"] = "every 0.25 s; all processes: shared pages count once (PSS)"
    return [_peaks(found), _memory_aims(found)]


def _peaks(found: dict[int, Memory]) -> Figures:
    columns = ("files", "largest process", "main process", "all processes", "processes", "samples")
    figures = Figures("Peak memory of (c), MB", columns)
    for count, memory in found.items():
        sizes = (f"{size / 1e6:.0f}" for size in (memory.largest, memory.main, memory.total))
        row = (f"{count:,}", *sizes, str(memory.processes), str(memory.samples))
        figures.rows.append(row)
    return figures


def _memory_aims(found: dict[int, Memory]) -> Figures:
    figures = Figures("Aims", ("", "aim", "found", "reached"))
    (few, less), (many, more) = found.items()
    growth = (more.total - less.total) / (many - few)
    largest = max(less.largest, more.largest) / 1e6
    figures.rows += [
        ("memory a slice more, bytes", "< 2,000", f"{growth:,.0f}", _said(growth < 2_000)),
        ("largest process, MB", "<= 500", f"{largest:.0f}", _said(largest <= 500)),
    ]
    return figures


if __name__ == "__main__":
    sys.exit(main())
