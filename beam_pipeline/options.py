"""What a user can choose, checked before anything is read or written."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from beam_pipeline.errors import UsageError
from beam_pipeline.hounsfield import RepairPolicy
from beam_pipeline.windows import PRESETS, Window, parse_window

_MAX_CHANNELS = 4  # of a PNG


@dataclass(frozen=True)
class Options:
    """The options of a run.

    Attributes:
        input: a folder, a file or a pattern; local or a URL.
        labels: a label file, or None for a `test` split without labels.
        output: the shard directory.
        windows: one a channel.
        image_size: height and width of the stored images, pixels.
        hu_repair: which repair of badly encoded files to apply.
        folds: how many folds patients are dealt to.
        examples_per_shard: the most examples in one shard file.
        seed: of every shuffle.
        max_reject_fraction: of the files seen; above it the run fails.
        workers: processes that convert slices on this machine.
        overwrite: whether to replace what an earlier run left in `output`.
    """

    input: str
    labels: str | None
    output: str
    windows: tuple[Window, ...] = tuple(Window(name, *PRESETS[name]) for name in PRESETS)
    image_size: int = 512
    hu_repair: RepairPolicy = RepairPolicy.AUTO
    folds: int = 5
    examples_per_shard: int = 256
    seed: int = 0
    max_reject_fraction: float = 0.05
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for the first value that cannot be used."""
        names = [window.name for window in self.windows]
        _require(1 <= len(names) <= _MAX_CHANNELS, "windows", ",".join(names), "1 to 4 windows")
        _require(len(set(names)) == len(names), "windows", ",".join(names), "different names")
        _require(16 <= self.image_size <= 4096, "image_size", self.image_size, "16 to 4096")
        _require(2 <= self.folds <= 100, "folds", self.folds, "2 to 100")
        _require(
            self.examples_per_shard >= 1, "examples_per_shard", self.examples_per_shard, ">= 1"
        )
        _require(0 <= self.seed < 1 << 32, "seed", self.seed, "0 to 4294967295")
        fraction = self.max_reject_fraction
        _require(0 <= fraction <= 1, "max_reject_fraction", fraction, "0 to 1")
        _require(self.workers >= 1, "workers", self.workers, "at least 1")

    def recorded(self) -> dict[str, Any]:
        """The options that decide what is written, as JSON values: the same give the same bytes."""
        record = asdict(self)
        for name in ("output", "workers", "max_reject_fraction", "overwrite"):
            del record[name]
        record["windows"] = [asdict(window) for window in self.windows]
        record["hu_repair"] = self.hu_repair.value
        return record


def _require(valid: bool, name: str, value: object, wanted: str) -> None:
    if not valid:
        raise UsageError(f"--{name} {value}: want {wanted}")


def parse_options(argv: Sequence[str]) -> tuple[Options, str, list[str]]:
    """The options, the name of the Beam runner, and the arguments left for Beam.

    Raises:
        UsageError: a value cannot be used.
        SystemExit: `--help`, or arguments that argparse refuses.
    """
    parsed, beam_argv = _parser().parse_known_args(argv)
    values = vars(parsed)
    runner = values.pop("runner")
    try:
        values["windows"] = tuple(map(parse_window, values["windows"].split(",")))
    except ValueError as error:
        raise UsageError(f"--windows: {error}") from None
    values["hu_repair"] = RepairPolicy(values["hu_repair"])
    values["labels"] = values["labels"] or None
    return Options(**values), runner, beam_argv


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m beam_pipeline",
        description="Convert head-CT DICOM files to stratified TFRecord shards.",
        epilog="All other options are Beam's, for runners other than 'local'.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", required=True, help="folder, file or pattern of DICOM files; local or a URL")
    add("--labels", help="CSV with the columns ID (ID_xxx_subdural) and Label (0 or 1)")
    add("--output", required=True, help="shard directory to make")
    add("--windows", default=",".join(PRESETS), help="presets or name:center:width in HU, 1 to 4")
    add("--image_size", type=int, default=Options.image_size, help="height and width, pixels")
    add("--hu_repair", choices=[*RepairPolicy], default="auto", help="for badly encoded files")
    add("--folds", type=int, default=Options.folds, help="folds that patients are dealt to")
    add("--examples_per_shard", type=int, default=Options.examples_per_shard, help="at most")
    add("--seed", type=int, default=Options.seed, help="of every shuffle")
    add(
        "--max_reject_fraction",
        type=float,
        default=Options.max_reject_fraction,
        help="fail if more of the files are rejected",
    )
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes on this machine")
    add("--overwrite", action="store_true", help="replace what an earlier run left in --output")
    add("--runner", default="local", help="'local', or a Beam runner such as DataflowRunner")
    for action in parser._actions:
        if action.help and action.default not in (None, False, argparse.SUPPRESS):
            action.help += " (default: %(default)s)"
    return parser
