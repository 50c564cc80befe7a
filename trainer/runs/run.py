"""A run directory: its files, run.json, its lock, and the calibration of its model."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from headct.declarations import flags, quoted, toml_text
from headct.errors import UsageError
from headct.json_documents import PRINTABLE, check_document, key_path, must, read_document
from headct.layout import PREDICTIONS, fold_split
from headct.locks import Lock
from headct.manifest import ImageSpec, Labels, Options, Windows
from headct.printable import hide_secrets
from trainer.data.neighbors import Neighbors
from trainer.data.shards import ShardDirectory
from trainer.files import remove_unfinished, write_json, write_whole
from trainer.option_values import label_weights
from trainer.options import MOST_NEIGHBORS, TrainOptions, run_identity
from trainer.runs.smoothing import NO_KERNEL, Smoothing

LOCK = ".lock"


def _is_scalar(value: Any) -> Any:
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError("is a list or an object")
    return value


Scalar = Annotated[Any, AfterValidator(_is_scalar), must("text, a number, true, false or null")]
Text = Annotated[str, Field(strict=True, max_length=200), must("text")]
Line = Annotated[
    str,
    Field(strict=True, min_length=1, max_length=4096),
    PRINTABLE,
    must("text without control characters"),
]
Share = Annotated[float, Field(strict=True, ge=0, le=1), must("a number from 0 to 1")]


class RecordedOptions(BaseModel):
    """The options of a training that `run_identity` returns; earlier versions lack some."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)

    fold: Annotated[int, Field(strict=True, ge=0, le=1000000), must("a whole number, 0 or more")]
    label_weights: Annotated[str, Field(strict=True), PRINTABLE, must("text, name=weight,...")]
    neighbors: Annotated[
        int,
        Field(strict=True, ge=0, le=MOST_NEIGHBORS),
        must(f"a whole number from 0 to {MOST_NEIGHBORS}"),
    ] = 0
    neighbors_mm: Annotated[
        float, Field(strict=True, ge=0, allow_inf_nan=False), must("a number, 0 or more")
    ] = 0.0

    def get(self, name: str, default: Any = None) -> Any:
        """Return an option."""
        return dict(self).get(name, default)


@dataclass
class TrainingShards:
    """The shards of a training; `prevalence` is the share of positives per label."""

    path: Annotated[Line, must("the path or URL of a shard directory")]
    digest: Text
    labels: Annotated[Labels, Field(min_length=1), must("a list of 1 to 1000 different labels")]
    windows: Windows
    image: Annotated[ImageSpec, must("an object with height, width and channels")]
    prevalence: Annotated[list[Share], must("a list of numbers from 0 to 1")]
    preprocessing: Options = Field(default_factory=dict)
    patient_ids: Text = ""
    image_ids: Text = ""


@dataclass
class Origin:
    """The run whose best model a training started from (`--continue_from`)."""

    run: Line
    model_sha256: Line


@dataclass
class ScanOrigin:
    """The options of `train_scans`, and the run of the slice network."""

    options: Annotated[dict[str, Scalar], must("an object with the options of train_scans")]
    run: Line
    began_with: Text = ""  # hashes of its models


@dataclass
class RunRecord:
    """The content of run.json: what makes a run what it is."""

    options: Annotated[RecordedOptions, must("an object with the options of the run")]
    shards: Annotated[
        TrainingShards, must("an object with path, digest, labels, windows, image and prevalence")
    ]
    versions: Annotated[
        dict[str, Annotated[str, Field(strict=True), must("text")]],
        must("an object with a text per package"),
    ]
    continued_from: (
        Annotated[Origin, must("an object with run and model_sha256, or null")] | None
    ) = None
    scans: Annotated[ScanOrigin, must("an object with options and run, or null")] | None = None
    logit_shift: Any = None  # of a version that corrected balanced sampling in another way


class Run:
    """A run directory: the paths of its files, and access to those that all commands share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Options, data and versions; written first.
        self.description = path / "run.json"
        # The same options for `--config`.
        self.config = path / "train.toml"
        # Hashes of the ids of training examples and their patients.
        self.trained_on = path / "trained_on.parquet"
        # Training states; removed when the run is complete.
        self.checkpoints = path / "checkpoints"
        # Decoded images of --cache disk; removed when the run is complete.
        self.cache = path / "cache"
        # The best model so far: stored images → logits.
        self.model = path / "model.keras"
        # The best scan model so far; only in a run of `train_scans`.
        self.scan_model = path / "scan_model.keras"
        # Features of the slices, for scan models; `train_scans` makes them again.
        self.features = path / "features"
        # One row per epoch.
        self.history = path / "history.json"
        # Devices and versions that trained the run, and the time.
        self.machine = path / "machine.json"
        # The best model's figures for the validation fold; written last.
        self.metrics = path / "metrics.json"
        self.report = path / "report.html"
        # The calibration that `evaluate --fit_temperature` fitted.
        self.temperatures = path / "temperatures.json"
        # The smoothing along z that `evaluate --fit_smooth_z` fitted.
        self.smoothing = path / "smoothing.json"

    @property
    def networks(self) -> tuple[Run, ...]:
        """The runs whose models answer: this one."""
        return (self,)

    @property
    def validation(self) -> str:
        """The split that training left out."""
        return fold_split(self.record.options.fold)

    def predictions(self, name: str) -> Path:
        """Return the path of predictions; `name` is a split or a variant such as `fold0-tta`."""
        return self.path / PREDICTIONS.format(name)

    def evaluation(self, name: str) -> Path:
        """Return the path of the figures; `name` as for `predictions`."""
        return self.path / f"evaluation-{name}.json"

    @property
    def is_complete(self) -> bool:
        """Whether training has finished."""
        return self.metrics.is_file()

    @cached_property
    def record(self) -> RunRecord:
        """The content of run.json.

        Raises:
            UsageError: the file is missing or damaged, or has an invalid value.
        """
        try:
            record: RunRecord = read_document(self.description, RunRecord)
        except FileNotFoundError:
            raise UsageError(f"{self.path}: no run.json, so no run directory") from None
        if len(record.shards.prevalence) != len(record.shards.labels):
            raise UsageError(f"{self.description}: shards.prevalence: must be a number per label")
        return record

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the model predicts."""
        return tuple(self.record.shards.labels)

    @property
    def weights(self) -> tuple[float, ...]:
        """Loss weight per label, as in training."""
        return label_weights(self.record.options.label_weights, self.labels, saved=True)

    @property
    def neighbors(self) -> Neighbors:
        """The slices that the model sees with a slice."""
        options = self.record.options
        return Neighbors(options.neighbors, options.neighbors_mm)

    @property
    def control(self) -> str:
        """The option `control` of a scan model; none of other runs."""
        scans = self.record.scans
        return str(scans.options.get("control", "none")) if scans else "none"

    def check_model(self) -> None:
        """Raise UsageError if there is no such run, or it has no model yet."""
        if self.description.is_file() and self.record.scans and not self.scan_model.is_file():
            raise UsageError(f"{self.path}: no scan model yet; training has not begun")
        if not self.model.is_file():
            _ = self.record  # no run directory is another mistake
            raise UsageError(f"{self.path}: no model yet; training has not finished an epoch")

    def check_fit(self, shards: ShardDirectory, may_lack_labels: bool = True) -> None:
        """Raise UsageError if labels, windows or images of other shards differ from the run's."""
        trained, here = model_inputs(self.record.shards), model_inputs(shards)
        for name in ("windows", "image") if may_lack_labels and shards.is_unlabeled else trained:
            if trained[name] != here[name]:
                raise UsageError(
                    f"{shards.location}: the run was trained on {name} {trained[name]},"
                    f" here: {here[name]}"
                )

    def check(
        self, options: TrainOptions, shards: ShardDirectory, origin: Origin | None = None
    ) -> None:
        """Raise UsageError if the directory contains another run, or other files."""
        if self.description.is_file():
            self._refuse_other_run(options, shards, origin)
        elif self.path.exists() and (
            # A run that did not begin leaves its lock.
            not self.path.is_dir() or any(path.name != LOCK for path in self.path.iterdir())
        ):
            raise UsageError(f"--run {self.path}: exists and is no run directory")
        else:  # refuse values that cannot be read back, such as an odd path of the shards
            described = _describe(options, shards, origin, (0.0,) * len(shards.labels))
            check_document(described, RunRecord, f"--run {self.path}: for run.json")

    @contextmanager
    def begun(
        self, options: TrainOptions, shards: ShardDirectory, origin: Origin | None = None
    ) -> Iterator[None]:
        """Lock the directory while the block runs; write run.json, unless it exists.

        Files that killed processes left unfinished are removed.

        Raises:
            UsageError: another process holds the lock, or the directory contains another run.
        """
        with held(self.path):
            # Read again: another process may have begun a run after the setup.
            Run(self.path).check(options, shards, origin)
            remove_unfinished(self.path)
            remove_unfinished(self.checkpoints)
            if not self.description.is_file():
                self.checkpoints.mkdir(exist_ok=True)
                prevalence = shards.prevalence(options.fold)
                described = _describe(options, shards, origin, prevalence)
                text = _config_text(options, described["shards"]["path"])
                write_whole(self.config, lambda path: path.write_text(text, encoding="utf-8"))
                write_json(self.description, described)
            yield

    def _refuse_other_run(
        self, options: TrainOptions, shards: ShardDirectory, origin: Origin | None
    ) -> None:
        """Compare the run in the directory with the requested one; name the differences."""
        if self.record.scans:
            raise UsageError(f"--run {self.path}: is a run of train_scans, which resumes it")
        # A run of an earlier version lacks later options, which are off by default.
        defaults = {name: field.default for name, field in flags(type(options)).items()}
        record, before = self.record, defaults | dict(self.record.options)
        differing = [
            f"--{name} {quoted(before.get(name))} there, {value} now"
            for name, value in run_identity(options).items()
            if before.get(name) != value
        ]
        if record.shards.digest != shards.digest():
            differing.append("other shards")
        models = [one.model_sha256 if one else None for one in (record.continued_from, origin)]
        if models[0] != models[1]:
            differing.append("began with the model of another run, or with none (--continue_from)")
        if record.logit_shift and not self.is_complete:
            differing.append("begun by a version that corrected balanced sampling in another way")
        if differing:
            more = f"; for more epochs, a new --run with --continue_from {self.path}"
            raise UsageError(
                f"--run {self.path} is of other options: {'; '.join(differing)}"
                f"{more if options.epochs != before.get('epochs') else ''}"
            )


def model_inputs(shards: TrainingShards | ShardDirectory) -> dict[str, Any]:
    """Return the properties that a model depends on, as in run.json."""
    return {
        "labels": list(shards.labels),
        "windows": [asdict(window) for window in shards.windows],
        "image": asdict(shards.image),
    }


def _describe(
    options: TrainOptions,
    shards: ShardDirectory,
    origin: Origin | None,
    prevalence: tuple[float, ...],
) -> dict[str, Any]:
    """Return the content of run.json.

    Passwords in the URL of the shards are left out; later commands then need `--shards`.
    """
    is_url = "://" in shards.location
    packages = ["keras", "tensorflow", "numpy", "scikit-learn"]
    packages += ["jax"] if options.backend == "jax" else []
    return {
        "options": run_identity(options),
        "shards": {
            "path": hide_secrets(shards.location) if is_url else str(shards.path.absolute()),
            "digest": shards.digest(),
            "manifest_sha256": shards.manifest_sha256,
            **model_inputs(shards),
            "prevalence": list(prevalence),
            "preprocessing": dict(shards.preprocessing),
            "patient_ids": shards.manifest.patient_ids,
            "image_ids": shards.manifest.image_ids,
        },
        "versions": package_versions(packages),
        "continued_from": asdict(origin) if origin else None,
    }


def _config_text(options: TrainOptions, shards: str) -> str:
    """Return the TOML file for `--config` that trains such a run again."""
    head = "Options of this run, for another one:\nheadct train --config train.toml --run FOLDER"
    others = {"shards": shards, "continue_from": options.continue_from or None}
    return toml_text(head, [TrainOptions], run_identity(options) | others)


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version per package; `tensorflow` may be installed as `tensorflow-cpu`."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = version(f"{name}-cpu")
    return versions


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a run directory while the block runs; create the folder if missing.

    Raises:
        UsageError: another process holds the lock; the message names the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    try:
        lock = Lock(path)
    except BlockingIOError:
        holder = path.read_text(encoding="utf-8") or "another process"
        raise UsageError(f"--run {folder}: in use by {holder}") from None
    with lock:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        try:
            yield
        finally:
            os.truncate(path, 0)


# ---- Calibration


@plain_dataclass(frozen=True)
class Calibration:
    """Calibrates logits: logit / temperature + bias, per label.

    Attributes:
        temperatures: [L].
        biases: [L].
        split: split of the fit; empty if unknown.
        digest: digest of the split's shards; empty if unknown.
        smoothing: width (mm) and amount of the smoothing along z that the logits had in the fit.
    """

    temperatures: tuple[float, ...]
    biases: tuple[float, ...]
    split: str = ""
    digest: str = ""
    smoothing: tuple[float, float] = NO_KERNEL

    @classmethod
    def none(cls, labels: int) -> Calibration:
        """Return a calibration that changes nothing."""
        return cls((1.0,) * labels, (0.0,) * labels)

    @property
    def changes(self) -> bool:
        """Whether the calibration changes logits."""
        return any(temperature != 1 for temperature in self.temperatures) or any(self.biases)

    def apply(self, logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Calibrate logits, [N, L]."""
        return np.asarray(logits / np.array(self.temperatures) + np.array(self.biases))

    def check_smoothing(self, smoothing: Smoothing) -> None:
        """Raise UsageError if the calibration was fitted to logits with another smoothing."""
        if self.changes and self.smoothing != smoothing.kernel:
            with_it = "with another smoothing along z" if smoothing.changes else "with --smooth_z"
            before = with_it if self.smoothing != NO_KERNEL else "without --smooth_z"
            now = "--smooth_z " if smoothing.changes else ""
            raise UsageError(
                f"--temperature: the temperatures were fitted {before};"
                f" `evaluate {now}--fit_temperature` fits others"
            )

    def describe(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return the entry for files, by label."""
        return {
            "temperatures": dict(zip(labels, self.temperatures, strict=True)),
            "biases": dict(zip(labels, self.biases, strict=True)),
        }


def _with_bias(value: Any) -> Any:
    """Convert an entry of earlier versions, a temperature alone."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value
    if not 0.001 <= value <= 1000:
        raise ValueError("out of range")
    return {"temperature": value, "bias": 0.0}


@dataclass
class _FittedLabel:
    """The calibration of a label, and what it was fitted on."""

    temperature: Annotated[
        float, Field(strict=True, ge=0.001, le=1000), must("a number from 0.001 to 1000")
    ]
    bias: Annotated[
        float, Field(strict=True, ge=-1000, le=1000), must("a number from -1000 to 1000")
    ]
    split: Annotated[str, Field(strict=True, max_length=64), must("text")] = ""
    digest: Text = ""
    smoothing: Annotated[
        tuple[float, float], must("width and amount of a smoothing, two numbers")
    ] = NO_KERNEL


_ENTRY = must("a number from 0.001 to 1000, or an object with temperature and bias")
_TEMPERATURES = Annotated[
    dict[str, Annotated[_FittedLabel, BeforeValidator(_with_bias), _ENTRY]],
    must("an object with a temperature per label"),
]


def choose_calibration(run: Run, labels: tuple[str, ...], wanted: bool) -> Calibration:
    """Return the calibration in temperatures.json; unless wanted, one that changes nothing.

    Raises:
        UsageError: the file is missing or damaged, or lacks a label.
    """
    if not wanted:
        return Calibration.none(len(labels))
    try:
        kept = read_document(run.temperatures, _TEMPERATURES)
    except FileNotFoundError:
        raise UsageError(
            f"--temperature: {run.path} has none; `evaluate --fit_temperature` finds them"
        ) from None
    for label in labels:
        if label not in kept:
            raise UsageError(f"{run.temperatures}: {key_path([label])}: is missing")
    return Calibration(
        tuple(kept[label].temperature for label in labels),
        tuple(kept[label].bias for label in labels),
        kept[labels[0]].split,
        kept[labels[0]].digest,
        kept[labels[0]].smoothing,
    )


def write_calibration(run: Run, labels: tuple[str, ...], calibration: Calibration) -> None:
    """Write temperatures.json."""
    pairs = zip(labels, calibration.temperatures, calibration.biases, strict=True)
    fit = (calibration.split, calibration.digest, calibration.smoothing)
    content = {
        label: asdict(_FittedLabel(temperature, bias, *fit)) for label, temperature, bias in pairs
    }
    write_json(run.temperatures, content)
