"""What preprocessing costs, against what people would write and against the least possible.

    python -m tests.benchmarks.preprocess --input FOLDER_OF_DICOM_SLICES
    python -m tests.benchmarks.preprocess --input FOLDER_OF_DICOM_SLICES --memory

The slices of a folder are copied until there are enough files, each with other values in the middle
of its pixels; for (f), at their end. They lie in the page cache: what is measured is work, not a
disk. In one run, in turns, so that whatever else happens on the machine meets all alike:

(a) `notebook_script`: pydicom, float64 windows, cv2.imencode, TFRecordWriter, a process pool;
(b) `plain_beam`: the same conversion in a Beam pipeline that ends in WriteToTFRecord;
(c) ours: `python -m beam_pipeline`, with a label file and its defaults: what users run;
(d) `bare_floor`: read, look up, deflate, write, and nothing else;
(e) ours with `--leak_check off` and without labels, which is as little as (a), (b) and (d) do;
(f) (c), on slices that are alike in their middles: the search for identical pixels reads more.

Each runs as a command of its own, all with as many workers, on all files and on an eighth of them.
CPU seconds are user and system time of the command and of all processes that it started. The
difference between the two runs gives the cost of a slice without the start (imports, processes),
and the rest is the start. A first turn on the eighth warms up and is checked: an image a file, and
those of (a) and (c) within a gray level. Every later output is counted too.

`--memory` runs (c) alone on 5,000 and on 50,000 files and samples its processes' memory.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.figures import (
    Turn,
    Turns,
    judge_costs,
    judge_memory,
    split_costs,
    tabulate_costs,
    tabulate_memory,
    tabulate_starts,
)
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.outputs import WrongOutput, check_count, largest_difference, shard_bytes
from tests.benchmarks.processes import CommandFailed
from tests.benchmarks.report import Figures, markdown
from tests.benchmarks.ways import (
    ALIKE,
    BEAM,
    FLOOR,
    LEAST,
    MODULES,
    OURS,
    SCRIPT,
    TITLES,
    Ways,
    copy_distinct,
    copy_usable,
)

PACKAGES = ["numpy", "pydicom", "opencv-python-headless", "isal", "apache-beam", "tensorflow"]
COMPARED = 64  # images of (a) and (c)

Notes = dict[str, str]


def main() -> int:
    options = _parser().parse_args()
    measure = _measure_memory if options.memory else _measure_costs
    notes = describe_machine(PACKAGES)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.scratch) as folder:
        slices, left_out = copy_usable(options.input, Path(folder, "slices"))
        notes["input"] = f"{len(slices)} slices, each copy with other values; {left_out} not usable"
        notes["workers"] = str(options.workers)
        try:
            tables = measure(Path(folder), slices, options, notes)
        except (CommandFailed, WrongOutput) as error:
            print(f"benchmark failed: {error}", file=sys.stderr)
            return 1
    notes["load at the end"] = f"{os.getloadavg()[0]:.1f} (1 min)"
    print(markdown(tables, notes))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--input", type=Path, required=True, help="folder of uncompressed 512 x 512 CT slices")
    add("--files", type=int, default=10_000, help="to copy the slices to (default: 10000)")
    add("--repeats", type=int, default=3, help="turns, of which medians are shown (default: 3)")
    add("--workers", type=int, default=2, help="processes of each way (default: 2)")
    add("--memory", action="store_true", help="measure the memory of (c) instead")
    add("--memory_files", type=int, nargs=2, default=(5_000, 50_000), help="for --memory")
    add("--scratch", type=Path, help="folder for temporary files (default: the system's)")
    return parser


def _measure_costs(
    scratch: Path, slices: list[Path], options: argparse.Namespace, notes: Notes
) -> list[Figures]:
    part_files = max(1, options.files // 8)
    parts, wholes = (
        [
            copy_distinct(slices, count, scratch / f"{name}{alike}", alike_in_the_middle=alike)
            for alike in (False, True)
        ]
        for name, count in (("part", part_files), ("whole", options.files))
    )
    part, whole = parts[0], wholes[0]
    ways = Ways(scratch, options.workers, _options(whole))
    print(f"Warming up on {part_files:,} files ...", file=sys.stderr)
    notes["checked"] = _warm_up(ways, part, part_files)
    notes["(b)"] = " ".join(ways.options[BEAM])
    notes["runs"] = f"{options.files:,} files, medians of {options.repeats} in turns"
    turns: Turns = {way: [] for way in MODULES}
    for number in range(options.repeats):
        print(f"Turn {number + 1} of {options.repeats} on {options.files:,} files", file=sys.stderr)
        for way, own in turns.items():
            alike = way == ALIKE
            own.append(
                _take_turn(ways, way, parts[alike], part_files, wholes[alike], options.files)
            )
            cost = own[-1].whole
            print(f"  {TITLES[way]}: {1 / cost.wall:,.0f} slices/s", file=sys.stderr)
    return [tabulate_costs(turns), tabulate_starts(turns), judge_costs(turns)]


def _options(source: Path) -> dict[str, list[str]]:
    """The options of our own ways; labels of a folder's slices are written beside it."""
    labels = source.with_suffix(".csv")
    rows = (f"{path.stem},{int(i % 7 == 0)}\n" for i, path in enumerate(sorted(source.iterdir())))
    labels.write_text("".join(("image_id,any\n", *rows)))
    labeled = ["--labels", str(labels)]
    return {OURS: labeled, ALIKE: labeled, LEAST: ["--leak_check", "off"]}


def _warm_up(ways: Ways, part: Path, files: int) -> str:
    """Run and check all."""
    with ways.outputs():
        for way in (SCRIPT, OURS, FLOOR, LEAST, ALIKE):
            ways.run(way, part)
        _find_beam_mode(ways, part)
        for way in MODULES:
            check_count(TITLES[way], ways.output(way), files)
        ids = {path.stem for path in sorted(part.iterdir())[:COMPARED]}
        difference = largest_difference(ways.output(SCRIPT), ways.output(OURS), ids)
    if difference > 1:
        raise WrongOutput(f"(a) and (c) differ by {difference} gray levels")
    return f"(a) and (c) differ by {difference} gray levels at most in {len(ids)} images"


def _find_beam_mode(ways: Ways, part: Path) -> None:
    """Choose processes for (b), or threads where these fail or hang."""
    ways.options[BEAM] = ["--mode", "multi_processing"]
    try:
        ways.run(BEAM, part)
    except CommandFailed:
        shutil.rmtree(ways.output(BEAM), ignore_errors=True)
        ways.options[BEAM] = ["--mode", "in_memory"]
        ways.run(BEAM, part)


def _take_turn(ways: Ways, way: str, part: Path, part_files: int, whole: Path, files: int) -> Turn:
    with ways.outputs():
        os.sync()  # what an earlier run wrote is not to be this one's burden
        part_cost = ways.run(way, part)
    with ways.outputs():
        os.sync()
        whole_cost = ways.run(way, whole)
        check_count(TITLES[way], ways.output(way), files)
        size = shard_bytes(ways.output(way))
    return split_costs(part_cost, part_files, whole_cost, files, size)


def _measure_memory(
    scratch: Path, slices: list[Path], options: argparse.Namespace, notes: Notes
) -> list[Figures]:
    notes["sampling"] = "sampled every 0.25 s; of all processes shared pages count once (PSS)"
    peaks = {}
    for count in options.memory_files:
        print(f"Running (c) on {count:,} files ...", file=sys.stderr)
        source = copy_distinct(slices, count, scratch / f"{count}")
        ways = Ways(scratch, options.workers, _options(source))
        with ways.outputs():
            peaks[count] = ways.measure_memory(OURS, source)
            check_count(TITLES[OURS], ways.output(OURS), count)
        shutil.rmtree(source)
    return [tabulate_memory(peaks), judge_memory(peaks)]


if __name__ == "__main__":
    sys.exit(main())
