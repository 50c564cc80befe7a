"""What planning costs from 10^5 to 10^7 slices: time and memory of one process on one core.

    python -m tests.benchmarks.planning [--slices 100000 1000000 10000000]

An inventory is made up as `inspect_part` would leave it, with patient, study and series ids hashed,
image ids and file names of 64 characters (UIDs), 30 slices a patient, some identical fingerprints
(without pixels to compare), and a label file in the wide form. Then `plan_shards` reads it and
writes the plan of every shard, as in a run; each size in a process of its own.
"""

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from beam_pipeline.dicom.acquisition import Acquisition
from beam_pipeline.options import Options
from beam_pipeline.planning.inventory import SCHEMA, _part_size
from beam_pipeline.planning.labels import RSNA_LABELS
from beam_pipeline.planning.plan_shards import plan_shards
from beam_pipeline.shards.unfinished import Unfinished
from headct.layout import inventory_table
from headct.stores import Folder
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.report import Figures, markdown

SLICES_A_PATIENT = 30
# Of labels per slice, as in RSNA 2019's training set.
SHARES = (0.004, 0.048, 0.035, 0.047, 0.063)
HEADER = (
    '[{z},[0.488281,0.488281],512,512,"1.2.840.10008.1.2",[16,16,15,true,1.0,-1024.0,[-2000,-2000]],'
    '[40.0,80.0],"",1234,"{check}","{check}"]'
)


def options(folder: Path) -> Options:
    return Options.of(
        input=str(folder / "in"), labels=str(folder / "labels.csv"), output=str(folder / "out")
    )


def make(folder: Path, slices: int) -> int:
    """Make an inventory and labels; returns how many parts it has."""
    (folder / "in").mkdir()
    unfinished = Unfinished(Folder(str(folder / "out")))
    rng = np.random.default_rng(0)
    part, first = 0, 0
    names = ["image_id", *RSNA_LABELS]
    types = [pa.string(), *[pa.int8()] * len(RSNA_LABELS)]
    with csv.CSVWriter(
        str(folder / "labels.csv"), pa.schema(zip(names, types, strict=True))
    ) as out:
        while first < slices:
            numbers = range(first, min(first + _part_size(part), slices))
            table = _inventory(numbers, rng)
            unfinished.write(inventory_table(part), table, {"key_check": ""})
            out.write_table(_labels(table["image_id"], rng))
            part, first = part + 1, numbers.stop
    return part


def _inventory(numbers: range, rng: np.random.Generator) -> pa.Table:
    uids = [f"1.2.826.0.1.3680043.8.498.{number:038d}" for number in numbers]
    patients = [number // SLICES_A_PATIENT for number in numbers]
    rows: dict[str, Any] = {
        "source": [f"{uid}.dcm".encode() for uid in uids],
        "size": [526_000] * len(uids),
        "version": [f"{number:019d}" for number in numbers],
        "image_id": uids,
        "path_identifies": [False] * len(uids),
        "sop_instance_uid": [_hash(f"uid{number}") for number in numbers],
        "fingerprint": rng.integers(1, 1 << 63, len(uids), np.uint64),
        "pixel_offset": [1234] * len(uids),
        "pixel_bytes": [524_288] * len(uids),
        "header": [
            HEADER.format(z=number / 8, check=_hash(number) + "00000000") for number in numbers
        ],
        "reason": [""] * len(uids),
        "detail": [""] * len(uids),
        "acquisition": [ACQUISITIONS[patient % len(ACQUISITIONS)] for patient in patients],
    }
    for column in ("patient_id", "study_id", "series_id"):
        rows[column] = [_hash(f"{column}{patient}") for patient in patients]
    return pa.table({name: pa.array(rows[name], SCHEMA.field(name).type) for name in SCHEMA.names})


# As a hospital's scanners and protocols differ.
ACQUISITIONS = [
    Acquisition("axial", "HEAD", kernel, thickness, f"Maker Model {scanner}").encode()
    for kernel in ("H30s", "H60s", "Hr38f\\2", "FC21")
    for thickness in (0.625, 1.0, 2.5, 4.8, 5.0)
    for scanner in range(20)
]


def _hash(value: object) -> str:
    return hashlib.blake2b(str(value).encode(), digest_size=8).hexdigest()


def _labels(image_ids: pa.ChunkedArray, rng: np.random.Generator) -> pa.Table:
    values = [(rng.random(len(image_ids)) < share).astype(np.int8) for share in SHARES]
    columns = [*values, np.max(values, axis=0)]
    return pa.table([image_ids, *map(pa.array, columns)], ["image_id", *RSNA_LABELS])


def plan(folder: Path, parts: int) -> None:
    """Plan in this process, and print what it took."""
    pa.set_memory_pool(pa.system_memory_pool())  # as in a run
    before = resource.getrusage(resource.RUSAGE_SELF)
    began, cpu = time.monotonic(), time.process_time()
    found = plan_shards(parts, options(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        time.monotonic() - began,
        time.process_time() - cpu,
        peak * 1024,
        before.ru_maxrss * 1024,
        len(found.shards),
    )


def measure(slices: int) -> tuple[str, ...]:
    """A row of the table: one size, planned in a process on one core."""
    with tempfile.TemporaryDirectory() as name:
        parts = make(Path(name), slices)
        command = [sys.executable, "-m", "tests.benchmarks.planning", "--folder", name]
        done = subprocess.run(
            [*command, "--parts", str(parts)],
            check=True,
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        )
        wall, cpu, peak, before, shards = map(float, done.stdout.split())
    each = (peak - before) / slices
    return (
        f"{slices:,}",
        f"{parts:,}",
        f"{shards:,.0f}",
        f"{wall:.1f}",
        f"{cpu:.1f}",
        f"{peak / 1e6:,.0f}",
        f"{each:,.0f}",
    )


def main() -> None:
    """Measure every size, or plan one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        plan(arguments.folder, arguments.parts)
        return
    columns = ("slices", "parts", "shards", "wall s", "CPU s", "peak MB", "bytes a slice")
    figures = Figures("Planning, on one core", columns)
    for slices in arguments.slices:
        figures.rows.append(measure(slices))
    print(markdown([figures], describe_machine(["pyarrow", "numpy", "pandas"])))


if __name__ == "__main__":
    main()
