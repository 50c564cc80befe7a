"""How fast slices are read at random out of shards, against PNG files that a library decodes.

    python -m tests.benchmarks.random_access --input FOLDER_OF_DICOM_SLICES

The slices are linked under new names until there are enough, and made into shards. In one run, in
turns, in one process, from the page cache, as uint8 [C, H, W]:

(a) `files`: the same PNGs as files of their own, read by `np.fromfile` and `cv2.imdecode`;
(b) `headct`: `headct.open`, transposed.

In each turn all read the same slices, some of all shards at random and the first ones in order.
Images a second and CPU time, medians of --repeats turns after one that warms up, before which some
slices' pixels are compared.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

import headct
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.processes import run_module
from tests.benchmarks.report import Figures, markdown, spread
from tests.benchmarks.ways import copy_usable, replicate

Read = Callable[[int], np.ndarray]
# Images a second and CPU ms an image, by the order and the way.
Costs = dict[tuple[str, str], list[tuple[float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=4000, help="in the shards")
    parser.add_argument("--reads", type=int, default=1000, help="in a turn of each way")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        images = make_shards(options.input, options.slices, Path(name))
        ways = make_ways(images, Path(name, "png"))
        costs = measure(ways, len(images), options.reads, options.repeats)
    columns = ("order", "way", "images/s", "of (a)", "CPU ms an image")
    table = Figures("Reading slices one by one", columns, tabulate(costs))
    notes = describe_machine(["numpy", "opencv-python-headless", "imagecodecs"])
    notes["data"] = f"{len(images)} slices, {images.image_shape}; {options.reads} reads in a turn"
    print(markdown([table], notes))


def make_shards(source: Path, slices: int, scratch: Path) -> headct.Shards:
    """New shards, opened."""
    usable, _ = copy_usable(source, scratch / "slices")
    arguments = ["--input", str(replicate(usable, slices, scratch / "links"))]
    arguments += ["--output", str(scratch / "shards"), "--leak_check", "off"]
    run_module("beam_pipeline", arguments, scratch / "log", timeout=600)
    return headct.open(scratch / "shards")


def make_ways(images: headct.Shards, folder: Path) -> dict[str, Read]:
    """What is measured: each reads one image, uint8 [C, H, W]."""
    files = write_files(images, folder)

    def read_file(row: int) -> np.ndarray:
        image = cv2.imdecode(np.fromfile(files[row], np.uint8), cv2.IMREAD_UNCHANGED)
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    def read_shard(row: int) -> np.ndarray:
        return np.ascontiguousarray(images[row]["image"].transpose(2, 0, 1))

    return {"(a) files": read_file, "(b) headct": read_shard}


def write_files(images: headct.Shards, folder: Path) -> list[str]:
    """Write a PNG file for each image; return their paths."""
    folder.mkdir()
    paths = [folder / f"{row}.png" for row in range(len(images))]
    for row, path in enumerate(paths):
        path.write_bytes(images.png(row))
    return [str(path) for path in paths]


def measure(ways: dict[str, Read], slices: int, reads: int, repeats: int) -> Costs:
    """Of `repeats` turns after one that warms up; `slices` is how many there are to read from."""
    rng = np.random.default_rng(0)
    costs: Costs = {}
    check(ways, rng.permutation(slices)[:100].tolist())
    for turn in range(repeats + 1):
        orders = {"random": rng.permutation(slices)[:reads].tolist(), "in order": range(reads)}
        for order, rows in orders.items():
            for way, read in ways.items():
                cost = take_turn(read, rows)
                if turn:
                    costs.setdefault((order, way), []).append(cost)
    return costs


def take_turn(read: Read, rows: Sequence[int]) -> tuple[float, float]:
    """Images a second, and CPU ms an image."""
    started, spent = time.perf_counter(), time.process_time()
    for row in rows:
        read(row)
    wall, cpu = time.perf_counter() - started, time.process_time() - spent
    return len(rows) / wall, cpu / len(rows) * 1000


def check(ways: dict[str, Read], rows: list[int]) -> None:
    """Compares the pixels; OpenCV gives channels from blue to red."""
    file, *others = ways.values()
    for row in rows:
        for read in others:
            np.testing.assert_array_equal(read(row), file(row)[::-1])


def tabulate(costs: Costs) -> list[tuple[str, ...]]:
    """A row for each order and way."""
    rows = []
    for (order, way), each in costs.items():
        speeds, cpu = zip(*each, strict=True)
        base = np.median([speed for speed, _ in costs[order, "(a) files"]])
        ratio = f"{np.median(speeds) / base:.2f}"
        rows.append((order, way, spread(speeds, 0), ratio, spread(cpu)))
    return rows


if __name__ == "__main__":
    main()
