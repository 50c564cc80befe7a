"""The ways to convert a folder of slices, each run as a command of its own."""

import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
import pydicom

from tests.benchmarks.processes import Cost, Memory, measure_memory, run_module

SCRIPT, BEAM, OURS, FLOOR, LEAST, ALIKE = "a", "b", "c", "d", "e", "f"
MODULES = {
    SCRIPT: "tests.benchmarks.notebook_script",
    BEAM: "tests.benchmarks.plain_beam",
    OURS: "beam_pipeline",
    FLOOR: "tests.benchmarks.bare_floor",
    LEAST: "beam_pipeline",
    ALIKE: "beam_pipeline",
}
TITLES = {
    SCRIPT: "(a) notebook",
    BEAM: "(b) plain Beam",
    OURS: "(c) default",
    FLOOR: "(d) bare floor",
    LEAST: "(e) ours, bare",
    ALIKE: "(f) default, middles alike",
}
TIMEOUT = 3_600.0  # seconds; Beam's worker processes can hang

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def copy_usable(folder: Path, copies: Path) -> tuple[list[Path], int]:
    """Copies of the slices that all ways convert alike, and how many are left out."""
    copies.mkdir()
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    usable = [shutil.copy(path, copies / path.name) for path in paths if _is_plain(path)]
    if not usable:
        raise SystemExit(f"{folder} holds no uncompressed 512 x 512 CT slices")
    return usable, len(paths) - len(usable)


def _is_plain(path: Path) -> bool:
    """Whether a file is an uncompressed 512 x 512 slice that ends with its pixels.

    Not so constant images, which (c) rejects, and intercepts near 0, whose values it may repair.
    """
    try:
        dataset = pydicom.dcmread(path)
        shape = dataset.Rows, dataset.Columns, dataset.BitsAllocated
        return (
            not dataset.file_meta.TransferSyntaxUID.is_compressed
            and shape == (512, 512, 16)
            and len(dataset.PixelData) == 512 * 512 * 2
            and path.read_bytes().endswith(dataset.PixelData)
            and dataset.RescaleIntercept < -100
            and len(np.unique(dataset.pixel_array)) > 1
        )
    except (pydicom.errors.InvalidDicomError, AttributeError):
        return False


def copy_distinct(
    slices: list[Path], count: int, folder: Path, *, alike_in_the_middle: bool = False
) -> Path:
    """A folder of copies of slices, each with other values in the middle or at the end.

    The search for slices with identical pixels looks at the middle, and reads more of slices that
    are alike there.
    """
    folder.mkdir()
    for number, path in zip(range(count), cycle(slices), strict=False):
        data = bytearray(path.read_bytes())
        changed = len(data) - 4 if alike_in_the_middle else len(data) // 4 * 2
        high, low = divmod(number, 1000)
        data[changed : changed + 4] = struct.pack("<2H", low, high)
        (folder / f"{number:06d}.dcm").write_bytes(data)
    return folder


def replicate(slices: list[Path], count: int, folder: Path) -> Path:
    """A folder of links to slices."""
    folder.mkdir()
    for number, path in zip(range(count), cycle(slices), strict=False):
        (folder / f"{number:06d}.dcm").hardlink_to(path)
    return folder


@dataclass(frozen=True)
class Ways:
    """Runs them.

    Attributes:
        scratch: folder for outputs and logs.
        workers: processes of each.
        options: more arguments of a way.
    """

    scratch: Path
    workers: int
    options: dict[str, list[str]] = field(default_factory=dict)

    def run(self, way: str, source: Path) -> Cost:
        """Convert a folder into `output(way)`."""
        return run_module(MODULES[way], self._arguments(way, source), self._log(way), TIMEOUT)

    def measure_memory(self, way: str, source: Path) -> Memory:
        """The same, for its memory."""
        return measure_memory(MODULES[way], self._arguments(way, source), self._log(way), TIMEOUT)

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

    def _log(self, way: str) -> Path:
        return self.scratch / f"{way}.log"

    def _arguments(self, way: str, source: Path) -> list[str]:
        folders = ["--input", str(source), "--output", str(self.output(way))]
        return [*folders, "--workers", str(self.workers), *self.options.get(way, [])]
