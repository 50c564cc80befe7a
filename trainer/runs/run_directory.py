"""The run directory: paths of its files, and the description in run.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from headct.errors import UsageError
from headct.json_documents import check_document, parse_json, read_bytes
from headct.printable import LONGEST_SHOWN, hide_secrets, shown
from trainer.data.shards import ShardDirectory
from trainer.files import remove_unfinished, write_json
from trainer.options import TrainOptions, run_identity
from trainer.runs.documents import RunDescription, TrainingShards
from trainer.runs.run_lock import LOCK


class RunDirectory:
    """The paths of a run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Options, data and versions; written first.
        self.description = path / "run.json"
        # Hashes of the ids of training examples and their patients.
        self.trained_on = path / "trained_on.parquet"
        # Training states; removed when the run is complete.
        self.checkpoints = path / "checkpoints"
        # Decoded images of --cache disk; removed when the run is complete.
        self.cache = path / "cache"
        # The best model so far: stored images → logits.
        self.model = path / "model.keras"
        # One row per epoch.
        self.history = path / "history.json"
        # Devices and versions that trained the run, and the time.
        self.machine = path / "machine.json"
        # The best model's figures for the validation fold; written last.
        self.metrics = path / "metrics.json"
        self.report = path / "report.html"
        # The calibration that `evaluate --fit_temperature` fitted.
        self.temperatures = path / "temperatures.json"

    def predictions(self, name: str) -> Path:
        """Return the path of predictions; `name` is a split or a variant such as `fold0-tta`."""
        return self.path / f"predictions-{name}.parquet"

    def evaluation(self, name: str) -> Path:
        """Return the path of the figures; `name` as for `predictions`."""
        return self.path / f"evaluation-{name}.json"

    @property
    def is_complete(self) -> bool:
        """Whether training has finished."""
        return self.metrics.is_file()


def check_model(run: RunDirectory) -> None:
    """Check that a run has a model.

    Raises:
        UsageError: the run has no model yet.
    """
    if not run.model.is_file():
        raise UsageError(f"{run.path}: no model yet; training has not finished an epoch")


def _describe_run(
    options: TrainOptions, shards: ShardDirectory, prevalence: Sequence[float]
) -> dict[str, Any]:
    """Return the content of run.json."""
    packages = ["keras", "tensorflow", "numpy", "scikit-learn"]
    packages += ["jax"] if options.backend == "jax" else []
    return {
        "options": run_identity(options),
        "shards": {
            "path": _locate(shards),
            "digest": shards.digest(),
            "manifest_sha256": shards.manifest_sha256,
            **describe_data(shards),
            "prevalence": list(prevalence),
            "preprocessing": dict(shards.preprocessing),
            "patient_ids": shards.patient_ids,
            "image_ids": shards.image_ids,
        },
        "versions": package_versions(packages),
    }


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version per package; `tensorflow` may be installed as `tensorflow-cpu`."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = version(f"{name}-cpu")
    return versions


def _locate(shards: ShardDirectory) -> str:
    """Return the absolute path or URL of the shards, for later commands.

    Passwords in a URL are left out; later commands then need `--shards`.
    """
    return (
        hide_secrets(shards.location) if "://" in shards.location else str(shards.path.absolute())
    )


def describe_data(shards: ShardDirectory) -> dict[str, Any]:
    """Return the properties that a model depends on: labels, windows, stored image."""
    return {
        "labels": list(shards.labels),
        "windows": [asdict(window) for window in shards.windows],
        "image": asdict(shards.image),
    }


def described_data(description: dict[str, Any]) -> dict[str, Any]:
    """Return `describe_data` of a run's training shards, from run.json."""
    trained = check_document(description["shards"], TrainingShards, "run.json")
    return {
        "labels": trained.labels,
        "windows": [asdict(window) for window in trained.windows],
        "image": asdict(trained.image),
    }


def check_fit(
    description: dict[str, Any], shards: ShardDirectory, may_lack_labels: bool = True
) -> None:
    """Check that a run's model fits other shards.

    Args:
        description: run.json of the run.
        shards: the other shards.
        may_lack_labels: whether unlabeled shards are accepted.

    Raises:
        UsageError: labels, windows or images differ.
    """
    trained, here = described_data(description), describe_data(shards)
    unlabeled = may_lack_labels and shards.is_unlabeled
    for name in ("windows", "image") if unlabeled else ("labels", "windows", "image"):
        if trained[name] != here[name]:
            raise UsageError(
                f"{shards.location}: the run was trained on {name} {trained[name]},"
                f" here: {here[name]}"
            )


def check_run(
    options: TrainOptions, shards: ShardDirectory, continued: dict[str, str] | None = None
) -> RunDirectory:
    """Check that the run directory is new or contains this run; write nothing.

    Args:
        options: options of the run.
        shards: training data.
        continued: `Origin.recorded()`, if the run starts from another run's model.

    Raises:
        UsageError: the directory contains another run, or other files.
    """
    run = RunDirectory(options.run)
    if run.description.is_file():
        _refuse_other_run(run, options, shards, continued)
    elif run.path.exists() and (not run.path.is_dir() or _is_used(run.path)):
        raise UsageError(f"--run {run.path}: exists and is no run directory")
    else:  # refuse values that cannot be read back, such as an odd path of the shards
        described = _describe_run(options, shards, [0.0] * len(shards.labels))
        check_document(described, RunDescription, f"--run {run.path}: for run.json")
    return run


def _is_used(folder: Path) -> bool:
    """Return whether a folder contains more than the lock of a run that did not begin."""
    return any(path.name != LOCK for path in folder.iterdir())


def begin_run(
    run: RunDirectory,
    options: TrainOptions,
    shards: ShardDirectory,
    continued: dict[str, str] | None = None,
) -> None:
    """Write run.json, unless it exists, and remove unfinished files.

    Args:
        run: run directory.
        options: options of the run.
        shards: training data.
        continued: `Origin.recorded()`, if the run starts from another run's model.

    Raises:
        UsageError: another run has begun in the directory.
    """
    check_run(options, shards, continued)
    remove_unfinished(run.path)
    remove_unfinished(run.checkpoints)
    if not run.description.is_file():
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        described = _describe_run(options, shards, shards.prevalence(options.fold))
        write_json(run.description, described | {"continued_from": continued})


def _refuse_other_run(
    run: RunDirectory,
    options: TrainOptions,
    shards: ShardDirectory,
    continued: dict[str, str] | None,
) -> None:
    """Compare the run in the directory with the requested one.

    Raises:
        UsageError: the runs differ; the message lists the differences.
    """
    before = read_description(run)
    differing = [
        f"--{name} {_shown_option(before['options'].get(name))} there, {value} now"
        for name, value in run_identity(options).items()
        if before["options"].get(name) != value
    ]
    if before["shards"]["digest"] != shards.digest():
        differing.append("other shards")
    model_before = (before.get("continued_from") or {}).get("model_sha256")
    if model_before != (continued or {}).get("model_sha256"):
        differing.append("began with the model of another run, or with none (--continue_from)")
    if before.get("logit_shift") and not run.is_complete:
        differing.append("begun by a version that corrected balanced sampling in another way")
    if differing:
        more = f"; for more epochs, a new --run with --continue_from {run.path}"
        longer = more if options.epochs != before["options"].get("epochs") else ""
        raise UsageError(f"--run {run.path} is of other options: {'; '.join(differing)}{longer}")


def _shown_option(value: Any) -> str:
    """Return an option's value; quoted and shortened unless it is one short line."""
    text = str(value)
    plain = isinstance(value, str) and text.isprintable() and len(text) <= LONGEST_SHOWN
    return text if plain or value is None or isinstance(value, bool) else shown(value)


def read_description(run: RunDirectory) -> dict[str, Any]:
    """Read run.json.

    Raises:
        UsageError: the file is missing or damaged, or has a wrong value.
    """
    try:
        description: dict[str, Any] = parse_json(read_bytes(run.description), str(run.description))
    except FileNotFoundError:
        raise UsageError(f"{run.path}: no run.json, so no run directory") from None
    check_document(description, RunDescription, str(run.description))
    shards = description["shards"]
    if len(shards["prevalence"]) != len(shards["labels"]):
        raise UsageError(f"{run.description}: shards.prevalence: must be a number per label")
    return description
