"""What a run on a cluster moves, asks for, computes and costs, from 10^5 to 10^8 slices.

    python -m tests.benchmarks.costs [--slices 100000 ...] [--vcpu_hour 0.056 ...]
    python -m tests.benchmarks.costs --measure FOLDER_OF_DICOM_SLICES

All rates are flags: `--help` tells where each default was measured. Prices are examples, and
change: give those of your provider and region. The model counts a bucket's requests as the steps
make them, has the bucket in the region of the workers, and takes conversion as evenly spread over
the vCPUs; while a single process plans, and while one describes the shards at the end, they are
paid for and wait.

`--measure` runs all steps but the last on 300 and on --files slices, linked under new names, and
takes from these runs the bytes of the tables in `.unfinished`, and those that went into
GroupByKeys, encoded as a runner gets them. The last step is measured apart, on the tables of one
shard under a thousand names.
"""

import argparse
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from beam_pipeline.finish import finish_directory
from beam_pipeline.options import LeakCheck, Options
from beam_pipeline.planning.inventory import _part_size
from beam_pipeline.shards.unfinished import decode_table, encode_table, table_metadata
from headct.layout import MANIFEST, PLAN, SHARDS_A_PART, UNFINISHED, ShardFile
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.report import Figures, markdown

_SINGLE_PUT, _UPLOADED_PART = 1 << 26, 1 << 24  # bytes: larger shards go in parts of the latter
_PAGE = 1000  # objects that a request lists
_LOOK_SECONDS = 10.0  # between the launcher's looks at the output,
_WATCHED = ("listing", "inventory", "written")  # of which it lists these tables
_FEW = 300  # slices of the smaller run that is measured
_FINISHED_SHARDS = 1000  # that the last step is measured on
_KINDS = ("listing", "inventory", "plan", "written")  # of tables

_PLANNED = (10**5, 10**6, 10**7)  # slices, for which planning was measured


def _rate(default: float | tuple[float, ...], text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Rates:
    """What was measured of a slice, what is chosen, and prices."""

    file_bytes: float = _rate(525_000, "of a file: 512 x 512, uncompressed")
    head_bytes: float = _rate(58_000, "of a file, read before planning (make bench-buckets)")
    shard_bytes: float = _rate(112_000, "written of a slice in three windows (make bench)")
    listing_bytes: float = _rate(18, "of a slice in the listing (--measure)")
    inventory_bytes: float = _rate(89, "of a slice in the inventory (--measure)")
    plan_bytes: float = _rate(319, "of a slice in the plan (--measure)")
    written_bytes: float = _rate(75, "of a slice in the tables of written shards (--measure)")
    element_bytes: float = _rate(18, "of an element that goes through the shuffle (--measure)")
    examples_per_shard: float = _rate(256, "as the pipeline's option")
    local_cpu_ms: float = _rate(2.3, "of a slice, from a local disk: 2.1 to 2.5 (make bench)")
    bucket_cpu_ms: float = _rate(10.4, "of a slice, from a bucket (make bench-buckets)")
    finishing_us: float = _rate(
        14, "of CPU for a slice, in the last step (--measure, on a busy machine)"
    )
    planning_seconds: tuple[float, ...] = _rate(
        (1.0, 8.0, 110.0), "of CPU, for 10^5, 10^6 and 10^7 slices (make bench-planning)"
    )
    planning_mb: tuple[float, ...] = _rate(
        (272, 1_200, 2_638), "of memory, for 10^5, 10^6 and 10^7 slices (make bench-planning)"
    )
    planning_bytes: float = _rate(170, "of memory, for each slice beyond 10^7 (BENCHMARKS.md)")
    planning_disk: float = _rate(400, "bytes of a slice beyond 10^6, in temporary files")
    hours: float = _rate(1.0, "that conversion is to take: decides how many vCPUs there are")
    min_vcpus: float = _rate(4, "at least")
    max_vcpus: float = _rate(400, "at most")
    gb_per_vcpu: float = _rate(3.75, "memory of the machine type")
    start_minutes: float = _rate(3.0, "until a worker is there and set up; assumed, not measured")
    vcpu_hour: float = _rate(0.056, "price")
    gb_hour: float = _rate(0.003557, "price of memory")
    shuffle_gb: float = _rate(0.011, "price")
    list_1000: float = _rate(0.005, "price of 1000 LIST requests")
    put_1000: float = _rate(0.005, "price of 1000 PUT requests")
    get_1000: float = _rate(0.0004, "price of 1000 GET or HEAD requests")
    egress_gb: float = _rate(0.0, "price of a GB read; none within a region")


def _along(known: Sequence[int], values: Sequence[float], at: int) -> float:
    """On the lines between points, and beyond the last."""
    slope = (values[-1] - values[-2]) / (known[-1] - known[-2])
    return float(np.interp(at, known, values)) + max(at - known[-1], 0) * slope


def describe(slices: int, rates: Rates) -> dict[str, dict[str, str]]:
    """The costs of a run on so many slices: tables of texts."""
    parts, left = 0, slices  # of the inventory, each one task
    while left > 0:
        left -= _part_size(parts)
        parts += 1
    shards = math.ceil(slices / rates.examples_per_shard)
    plan_tables = math.ceil(shards / SHARDS_A_PART)

    a_slice = rates.listing_bytes + rates.inventory_bytes + rates.plan_bytes + rates.written_bytes
    # A listing once, the inventory by planning twice, a plan's table for each of its shards, and
    # what was written of shards twice.
    read_again = rates.listing_bytes + 2 * rates.inventory_bytes + 2 * rates.written_bytes
    tables_read = slices * (read_again + SHARDS_A_PART * rates.plan_bytes)
    # Into GroupByKeys: each part and each shard, before and after its task.
    shuffled_bytes = 2 * (parts + shards) * rates.element_bytes

    tables = 2 * parts + plan_tables + shards
    size = rates.examples_per_shard * rates.shard_bytes
    puts_a_shard = 1 if size <= _SINGLE_PUT else 2 + math.ceil(size / _UPLOADED_PART)
    put = shards * puts_a_shard + tables
    # Of a slice a header, some pixels, and the file. Of a part: its listing, the first listing and
    # the first file for the key, an earlier inventory, and by planning twice the inventory. Of a
    # shard: its plan, an earlier result, the version of its file, and at the end twice what was
    # written. The launcher looks once at each table that it can count with.
    got = 3 * slices + 8 * parts + 6 * shards

    core_hours = slices * rates.bucket_cpu_ms / 3.6e6
    planning = _along(_PLANNED, rates.planning_seconds, slices)
    finishing = slices * rates.finishing_us / 1e6
    beyond = max(slices - _PLANNED[-1], 0) * rates.planning_bytes
    memory = float(np.interp(slices, _PLANNED, rates.planning_mb)) * 1e6 + beyond
    disk = slices * rates.planning_disk if slices > _PLANNED[1] else 0.0
    vcpus = max(math.ceil(core_hours / rates.hours), rates.min_vcpus)
    vcpus = round(min(vcpus, rates.max_vcpus, shards))
    # From the first worker's start to the end.
    hours = rates.start_minutes / 60 + core_hours / vcpus + (planning + finishing) / 3600

    # The input; the tables, when they are removed; and the launcher's looks at them, at each of
    # which it lists what there is by then: half of it in the mean.
    watched = (2 * parts + shards / 2) / _PAGE + len(_WATCHED)
    looks = 3600 * hours / _LOOK_SECONDS
    listed = math.ceil(slices / _PAGE + tables / _PAGE + looks * watched)
    read = slices * (rates.head_bytes + rates.file_bytes) + tables_read
    requests = listed * rates.list_1000 + put * rates.put_1000 + got * rates.get_1000
    prices = {
        "vCPUs": vcpus * hours * rates.vcpu_hour,
        "memory": vcpus * hours * rates.gb_per_vcpu * rates.gb_hour,
        "requests": requests / 1000,
        "shuffle": shuffled_bytes / 1e9 * rates.shuffle_gb,
        "egress": read / 1e9 * rates.egress_gb,
    }
    return {
        "What is moved": {
            "read: headers": _bytes(slices * rates.head_bytes),
            "read: whole files": _bytes(slices * rates.file_bytes),
            "written to shards": _bytes(slices * rates.shard_bytes),
            "tables in `.unfinished`": _bytes(slices * a_slice),
            "read of these tables": _bytes(tables_read),
            "through the shuffle": _bytes(shuffled_bytes),
        },
        "What is asked for": {
            "tasks that read headers": f"{parts:,}",
            "tasks that write shards": f"{shards:,}",
            "LIST (class A)": f"{listed:,}",
            "PUT (class A)": f"{put:,}",
            "GET and HEAD (class B)": f"{got:,}",
        },
        "What is computed": {
            "core hours, local disk": f"{slices * rates.local_cpu_ms / 3.6e6:,.2f}",
            "core hours, bucket": f"{core_hours:,.2f}",
            "planning: seconds on one core": f"{planning:,.0f}",
            "planning: memory": _bytes(memory),
            "planning: temporary disk": _bytes(disk),
            "last step: seconds on one core": f"{finishing:,.0f}",
            "vCPUs": f"{vcpus:,}",
            "hours": f"{hours:.1f}",
        },
        "What is paid, USD": {
            name: f"{price:,.2f}" for name, price in {**prices, "all": sum(prices.values())}.items()
        },
    }


def tabulate(sizes: Sequence[int], rates: Rates) -> list[Figures]:
    """A column for each number of slices."""
    columns = [describe(slices, rates) for slices in sizes]
    heads = ("slices", *(f"{slices:,}" for slices in sizes))
    return [
        Figures(title, heads, [(name, *(each[title][name] for each in columns)) for name in rows])
        for title, rows in columns[0].items()
    ]


def _bytes(size: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= factor:
            digits = 0 if size >= 100 * factor else 1
            return f"{size / factor:,.{digits}f} {unit}"
    return f"{size:.0f}"


@dataclass
class Shuffled:
    """Bytes that went into GroupByKeys, as their input's coders encode it."""

    bytes: int = 0


@contextmanager
def shuffled() -> Iterator[Shuffled]:
    """Count what the local runner groups while the block lasts."""
    from apache_beam.runners.portability.fn_api_runner.execution import GroupingBuffer

    counted = Shuffled()
    append = GroupingBuffer.append

    def count(buffer: Any, data: bytes) -> None:
        counted.bytes += len(data)
        append(buffer, data)

    with mock.patch.object(GroupingBuffer, "append", count):
        yield counted


def measure(folder: Path, files: int) -> tuple[dict[str, Any], Figures]:
    """Rates of tables, shuffle and last step, and the table that most are taken from."""
    from tests.benchmarks.ways import copy_usable  # it changes settings of pydicom

    runs = {}
    with tempfile.TemporaryDirectory() as name:
        slices, _ = copy_usable(folder, Path(name, "slices"))
        for count in (_FEW, files):
            source = _link(slices, count, Path(name, f"in{count}"))
            runs[count] = _run(source, Path(name, f"out{count}"))
        finishing = _finish(Path(name, f"out{files}"))
    columns = (
        "slices",
        *(f"{kind}, bytes a slice" for kind in _KINDS),
        "elements",
        "shuffle bytes",
    )
    figures = Figures("Measured", columns)
    for count, (sizes, elements, counted) in runs.items():
        each = (f"{sizes[kind] / count:.0f}" for kind in _KINDS)
        figures.rows.append((f"{count:,}", *each, str(elements), str(counted.bytes)))
    sizes, elements, counted = runs[files]
    rates: dict[str, Any] = {f"{kind}_bytes": sizes[kind] / files for kind in _KINDS}
    rates["element_bytes"] = counted.bytes / elements
    rates["finishing_us"] = 1e6 * finishing
    return rates, figures


def _link(slices: list[Path], count: int, folder: Path) -> Path:
    """A folder of links to slices, with names such as RSNA's, which hardly can be compressed."""
    folder.mkdir()
    for number, path in zip(range(count), cycle(slices), strict=False):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        (folder / f"ID_{digest[:9]}.dcm").hardlink_to(path)
    return folder


def _run(source: Path, output: Path) -> tuple[dict[str, int], int, Shuffled]:
    """Bytes of the tables by their kind, elements that are grouped, and their bytes."""
    # With fingerprints; that the copies are identical is only counted.
    options = Options.of(
        input=str(source), output=str(output), leak_check=LeakCheck.REPORT, workers=2
    )
    with shuffled() as counted:
        run_steps(options)
    sizes, tables = {}, {}
    for kind in _KINDS:
        paths = list((output / UNFINISHED / kind).iterdir())
        sizes[kind], tables[kind] = sum(path.stat().st_size for path in paths), len(paths)
    return sizes, 2 * (tables["listing"] + tables["written"]), counted


def _finish(output: Path) -> float:
    """CPU seconds of the last step, a slice: the tables of a shard stand for those of all."""
    folder = output / UNFINISHED
    paths = sorted((folder / "written").iterdir())
    table = decode_table(paths[0].read_bytes())
    for path in paths:
        path.unlink()
    names = [ShardFile("test", number, _FINISHED_SHARDS).name for number in range(_FINISHED_SHARDS)]
    for name in names:
        (output / name).touch()
        data = encode_table(table, table_metadata(table) | {"file": name})
        (folder / "written" / f"{name}.arrow").write_bytes(data)
    plan = json.loads((output / PLAN).read_text()) | {"shards": names}
    (output / PLAN).write_text(json.dumps(plan))
    before = time.process_time()
    finish_directory(_FINISHED_SHARDS, Options.of(input="", output=str(output)))
    seconds: float = time.process_time() - before
    assert (output / MANIFEST).exists()
    return seconds / (_FINISHED_SHARDS * len(table))


def run_steps(options: Options) -> None:
    """Run all steps but the last, so that the tables stay."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    from beam_pipeline.pipeline import write_shards

    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        write_shards(pipeline, options)


def main() -> None:
    """Show the costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--slices", type=int, nargs="+", default=[10**5, 10**6, 10**7, 10**8])
    add("--measure", type=Path, metavar="FOLDER", help="of slices: measure tables and shuffle")
    add("--files", type=int, default=3_000, help="for --measure (default: 3000)")
    for rate in fields(Rates):
        values = rate.default if isinstance(rate.default, tuple) else (rate.default,)
        text = f"{rate.metadata['help']} (default: {' '.join(f'{value:g}' for value in values)})"
        add(
            f"--{rate.name}",
            type=float,
            nargs=len(values) if isinstance(rate.default, tuple) else None,
            default=rate.default,
            help=text,
        )
    given = parser.parse_args()
    rates = Rates(**{rate.name: getattr(given, rate.name) for rate in fields(Rates)})
    tables, notes = [], {}
    if given.measure:
        measured, figures = measure(given.measure, given.files)
        rates, notes = replace(rates, **measured), describe_machine(["apache-beam", "pyarrow"])
        tables.append(figures)
    tables += tabulate(given.slices, rates)
    print(markdown(tables, notes))


if __name__ == "__main__":
    main()
