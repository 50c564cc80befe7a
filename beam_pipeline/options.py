"""What a user can choose, checked before anything is read or written."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from beam_pipeline.dicom.hounsfield import RepairPolicy
from beam_pipeline.errors import UsageError
from beam_pipeline.images.convert import ImageSpec
from beam_pipeline.images.windows import FROM_FILE, PRESETS, VoiFunction, Window, parse_window
from beam_pipeline.keys import KEY_VARIABLE, key_check, read_key
from beam_pipeline.running.runners import (
    LOCAL,
    RUNNERS,
    Runner,
    choose_runner,
    complete_arguments,
    place_path,
)
from beam_pipeline.storage.retries import DEFAULT_PATIENCE

_DEFAULT_WINDOWS = ("brain", "subdural", "bone")
_MAX_CHANNELS = 4  # of a PNG
_PATHS = ("input", "labels", "output", "folds_from", "identifier_key_file")


class LeakCheck(StrEnum):
    """What to do about patients who share identical pixels."""

    JOIN = "join"
    REPORT = "report"
    OFF = "off"


class ImageId(StrEnum):
    """What identifies a slice."""

    FILE_NAME = "file_name"
    SOP_INSTANCE_UID = "sop_instance_uid"
    ORDINAL = "ordinal"


class Identifiers(StrEnum):
    """What is written for patient, study and series ids."""

    ORDINAL = "ordinal"
    HASH = "hash"
    KEEP = "keep"


class GroupBy(StrEnum):
    """What must not be in two folds."""

    PATIENT = "patient"
    STUDY = "study"


@dataclass(frozen=True)
class Options:
    """The options of a run.

    Attributes:
        input: a folder, a file or a pattern; local or a URL.
        labels: a label file, or None for a `test` split without labels.
        output: the shard directory.
        windows: one per channel; none to store Hounsfield units.
        voi: the windows' function.
        image_size: height and width of the stored images, pixels.
        hu_repair: which repair of badly encoded files to apply.
        image_id: what identifies a slice; labels are joined by the file name for `ordinal`.
        id_column: of a label file with a column per class; None to find it by its name.
        label_columns: of such a file; none for all but the id's.
        folds: how many folds patients are dealt to.
        holdout: fraction of the slices, by patients, kept apart from the folds.
        folds_from: a shard directory or table whose assignment is kept, or None.
        group_by: what must not be in two folds.
        leak_check: what to do about patients who share identical pixels.
        identifiers: what is written for patient, study and series ids.
        identifier_key_file: path or URL of the secret of `Identifiers.HASH`; None to take it from
            the environment.
        identifier_key_check: tells that secret from another; empty for other identifiers.
        examples_per_shard: the most examples in one shard file.
        seed: of every shuffle.
        max_reject_fraction: of the files seen; above it the run fails.
        storage_patience: seconds after which a store that gives no answer ends the run.
        decode_timeout: seconds after which a slice's decoder counts as hung.
        workers: processes that convert slices: on this machine, or beside each of a runner's
            workers.
        overwrite: whether to replace what an earlier run left in `output`.
    """

    input: str
    labels: str | None
    output: str
    windows: tuple[Window, ...] = tuple(Window(name, *PRESETS[name]) for name in _DEFAULT_WINDOWS)
    voi: VoiFunction = VoiFunction.LINEAR_EXACT
    image_size: int = 512
    hu_repair: RepairPolicy = RepairPolicy.AUTO
    image_id: ImageId = ImageId.FILE_NAME
    id_column: str | None = None
    label_columns: tuple[str, ...] = ()
    folds: int = 5
    holdout: float = 0.0
    folds_from: str | None = None
    group_by: GroupBy = GroupBy.PATIENT
    leak_check: LeakCheck = LeakCheck.JOIN
    identifiers: Identifiers = Identifiers.ORDINAL
    identifier_key_file: str | None = None
    identifier_key_check: str = ""
    examples_per_shard: int = 256
    seed: int = 0
    max_reject_fraction: float = 0.05
    storage_patience: float = DEFAULT_PATIENCE
    decode_timeout: float = 120.0
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for the first value that cannot be used."""
        names = ",".join(window.name for window in self.windows)
        _require(len(self.windows) <= _MAX_CHANNELS, "windows", names, "1 to 4 windows")
        unique = len({window.name for window in self.windows}) == len(self.windows)
        _require(unique, "windows", names, "different names")
        _require(16 <= self.image_size <= 4096, "image_size", self.image_size, "16 to 4096")
        _require(2 <= self.folds <= 100, "folds", self.folds, "2 to 100")
        _require(0 <= self.holdout <= 0.9, "holdout", self.holdout, "0 to 0.9")
        per_shard = self.examples_per_shard
        _require(per_shard >= 1, "examples_per_shard", per_shard, "at least 1")
        _require(0 <= self.seed < 1 << 32, "seed", self.seed, "0 to 4294967295")
        fraction = self.max_reject_fraction
        _require(0 <= fraction <= 1, "max_reject_fraction", fraction, "0 to 1")
        _require(self.workers >= 1, "workers", self.workers, "at least 1")
        _require(self.storage_patience >= 1, "storage_patience", self.storage_patience, "1 or more")
        _require(self.decode_timeout >= 1, "decode_timeout", self.decode_timeout, "1 or more")

    @property
    def image(self) -> ImageSpec:
        """What the stored images are to be."""
        return ImageSpec(self.windows, self.image_size, self.voi, self.hu_repair)

    def recorded(self) -> dict[str, Any]:
        """The options that decide what is written, as JSON values: the same give the same bytes.

        Of the key nothing is told but whether it is the same.
        """
        return {
            "input": self.input,
            "labels": self.labels,
            "windows": [
                {"name": window.name, "center": window.center, "width": window.width}
                for window in self.windows
            ],
            "hu": not self.windows,
            "voi": self.voi.value,
            "image_size": self.image_size,
            "hu_repair": self.hu_repair.value,
            "image_id": self.image_id.value,
            "id_column": self.id_column,
            "label_columns": list(self.label_columns),
            "folds": self.folds,
            "holdout": self.holdout,
            "folds_from": self.folds_from,
            "group_by": self.group_by.value,
            "leak_check": self.leak_check.value,
            "identifiers": self.identifiers.value,
            "identifier_key_check": self.identifier_key_check or None,
            "examples_per_shard": self.examples_per_shard,
            "seed": self.seed,
        }


def _require(valid: bool, name: str, value: object, wanted: str) -> None:
    if not valid:
        raise UsageError(f"--{name} {value}: want {wanted}")


@dataclass(frozen=True)
class Launch:
    """How a run is started; nothing of it decides what is written.

    Attributes:
        runner: to run on.
        arguments: of the runner.
        cancel_on_interrupt: whether Ctrl-C ends a job that would go on without the launcher.
    """

    runner: Runner
    arguments: tuple[str, ...] = ()
    cancel_on_interrupt: bool = False


def parse_options(argv: Sequence[str]) -> tuple[Options, Launch]:
    """What is to be done, and on what.

    Raises:
        UsageError: a value cannot be used.
        RunnerError: the runner cannot be reached.
        SystemExit: `--help`, or arguments that argparse refuses.
    """
    parser = _parser()
    parsed, beam_argv = parser.parse_known_args(argv)
    values = vars(parsed)
    runner = choose_runner(values.pop("runner"))
    cancel_on_interrupt = values.pop("cancel_on_interrupt")
    hounsfield = values.pop("hu")
    try:
        values["windows"] = tuple(map(parse_window, values["windows"].split(",")))
    except ValueError as error:
        raise UsageError(f"--windows: {error}") from None
    if hounsfield:
        values["windows"] = ()
    values["label_columns"] = tuple(filter(None, (values["label_columns"] or "").split(",")))
    if values["workers"] is None:
        values["workers"] = (os.cpu_count() or 1) if runner.is_local else 1
    if values["identifiers"] is Identifiers.HASH:
        key_file = values["identifier_key_file"]
        if key_file is None and not runner.is_local:
            raise UsageError(
                f"--identifiers hash on {runner.name} needs --identifier_key_file, a path or URL "
                f"that every worker can read: they do not have this machine's {KEY_VARIABLE}"
            )
        values["identifier_key_check"] = key_check(read_key(key_file, values["storage_patience"]))
    for name in _PATHS:
        values[name] = place_path(runner, name, values[name])
    options = Options(**values)
    arguments = complete_arguments(runner, beam_argv, parser._option_string_actions)
    return options, Launch(runner, tuple(arguments), cancel_on_interrupt)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m beam_pipeline",
        description="Convert head-CT DICOM files to stratified TFRecord shards.",
        epilog="All other options are those of the chosen Beam runner.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_files(parser.add_argument_group("files"))
    _add_images(parser.add_argument_group("images"))
    _add_labels(parser.add_argument_group("labels and ids"))
    _add_splits(parser.add_argument_group("splits"))
    _add_run(parser.add_argument_group("run"))
    return parser


def _add_files(group: Any) -> None:
    add = group.add_argument
    add("--input", required=True, help="folder, file or pattern of DICOM files; local or a URL")
    add("--labels", type=_optional, help="label file: CSV, gzip or Parquet")
    add("--output", required=True, help="shard directory to make")


def _add_images(group: Any) -> None:
    add = group.add_argument
    add(
        "--windows",
        default=",".join(_DEFAULT_WINDOWS),
        help=f"1 to 4 channels: {', '.join(PRESETS)}, name:center:width in HU, "
        f"or {FROM_FILE} for each file's own",
    )
    add("--voi", type=VoiFunction, choices=[*VoiFunction], default=Options.voi, help="function")
    add("--hu", action="store_true", help="store Hounsfield units (16 bits) instead of windows")
    add("--image_size", type=int, default=Options.image_size, help="height and width, pixels")
    add(
        "--hu_repair",
        type=RepairPolicy,
        choices=[*RepairPolicy],
        default=Options.hu_repair,
        help="of badly encoded 12-bit files",
    )


def _add_labels(group: Any) -> None:
    add = group.add_argument
    add(
        "--image_id",
        type=ImageId,
        choices=[*ImageId],
        default=Options.image_id,
        help="what identifies a slice",
    )
    add("--id_column", type=_optional, help="of a label file with a column per class")
    add("--label_columns", help="of such a file, separated by commas; all others if not given")
    add(
        "--identifiers",
        type=Identifiers,
        choices=[*Identifiers],
        default=Options.identifiers,
        help="what is written for patient, study and series ids",
    )
    add(
        "--identifier_key_file",
        type=_optional,
        help=f"path or URL of the secret of '--identifiers hash'; or set {KEY_VARIABLE}",
    )


def _add_splits(group: Any) -> None:
    add = group.add_argument
    add("--folds", type=int, default=Options.folds, help="folds that patients are dealt to")
    add("--holdout", type=float, default=Options.holdout, help="fraction kept apart from the folds")
    add("--folds_from", type=_optional, help="shard directory or table whose assignment is kept")
    add(
        "--group_by",
        type=GroupBy,
        choices=[*GroupBy],
        default=Options.group_by,
        help="what must not be in two folds",
    )
    add(
        "--leak_check",
        type=LeakCheck,
        choices=[*LeakCheck],
        default=Options.leak_check,
        help="patients who share identical pixels: one group, only counted, or not looked for",
    )
    add("--examples_per_shard", type=int, default=Options.examples_per_shard, help="at most")
    add("--seed", type=int, default=Options.seed, help="of every shuffle")


def _add_run(group: Any) -> None:
    add = group.add_argument
    add(
        "--max_reject_fraction",
        type=float,
        default=Options.max_reject_fraction,
        help="fail if more of the files are rejected",
    )
    add(
        "--storage_patience",
        type=float,
        default=Options.storage_patience,
        help="seconds after which a store that gives no answer ends the run",
    )
    add(
        "--decode_timeout",
        type=float,
        default=Options.decode_timeout,
        help="seconds after which a slice's decoder counts as hung; it is tried twice",
    )
    add(
        "--workers",
        type=int,
        help="processes that convert: on this machine, by default one per core; with another "
        "runner beside each of its workers, by default one",
    )
    add("--overwrite", action="store_true", help="replace what an earlier run left in --output")
    add("--runner", default=LOCAL.name, help=f"one of {', '.join(RUNNERS)}")
    add(
        "--cancel_on_interrupt",
        action="store_true",
        help="let Ctrl-C end a job that would go on without this command",
    )


def _optional(text: str) -> str | None:
    """An empty text is no text, as an unset variable of a Makefile gives it."""
    return text or None
