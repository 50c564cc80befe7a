"""The run directory: what is in it, that one run alone is in it, whole files only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
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


@dataclass(frozen=True)
class RunDirectory:
    """The names of a run's files.

    run.json          options, data and versions; written first
    trained_on.parquet
                      whom it is trained on, as hashes
    .lock             held by the process that trains
    checkpoints/      where to go on from; empty once the run is complete
    model.keras       the best model so far
    history.json      one row per epoch
    predictions-FOLD.parquet
                      of the best model, for the fold that was left out
    machine.json      what it was trained on, and when
    metrics.json      written last: with it the run is complete
    evaluation-NAME.json, predictions-NAME.parquet
                      what `evaluate` found: NAME is the split, and what was done otherwise than
                      in training (`fold0-tta`)
    """

    path: Path

    @property
    def description(self) -> Path:
        """What the run is."""
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        """Training states, newest last."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The best model, uint8 images in, logits out."""
        return self.path / "model.keras"

    @property
    def metrics(self) -> Path:
        """The figures of the best model on the validation fold."""
        return self.path / "metrics.json"

    @property
    def machine(self) -> Path:
        """What the run was trained on, and when."""
        return self.path / "machine.json"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    @property
    def temperatures(self) -> Path:
        """What `evaluate --fit_temperature` found."""
        return self.path / "temperatures.json"

    @property
    def trained_on(self) -> Path:
        """Hashes of the ids of the training examples and their patients."""
        return self.path / "trained_on.parquet"

    @property
    def cache(self) -> Path:
        """Decoded images of --cache disk, while the run is not complete."""
        return self.path / "cache"

    def predictions(self, name: str) -> Path:
        """The best model's predictions for a split, or a variant of them."""
        return self.path / f"predictions-{name}.parquet"

    def evaluation(self, name: str) -> Path:
        """Their figures."""
        return self.path / f"evaluation-{name}.json"

    @property
    def is_complete(self) -> bool:
        """Whether training ran to its end."""
        return self.metrics.is_file()


def _describe_run(
    options: TrainOptions, shards: ShardDirectory, prevalence: Sequence[float]
) -> dict[str, Any]:
    """The content of run.json."""
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
        "versions": {name: version(name) for name in packages},
    }


def _locate(shards: ShardDirectory) -> str:
    """The path or URL by which later commands find the shards, wherever they are started.

    A password in a URL is not written down: such commands have to be told the shards again.
    """
    return (
        hide_secrets(shards.location) if "://" in shards.location else str(shards.path.absolute())
    )


def describe_data(shards: ShardDirectory) -> dict[str, Any]:
    """What a model depends on: labels, windows and the stored image."""
    return {
        "labels": list(shards.labels),
        "windows": [asdict(each) for each in shards.windows],
        "image": asdict(shards.image),
    }


def described_data(description: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of the same, without keys that nothing depends on."""
    trained = check_document(description["shards"], TrainingShards, "run.json")
    return {
        "labels": trained.labels,
        "windows": [asdict(window) for window in trained.windows],
        "image": asdict(trained.image),
    }


def check_fit(
    description: dict[str, Any], shards: ShardDirectory, may_lack_labels: bool = True
) -> None:
    """Compares what a run was trained on with what it shall answer for.

    Raises:
        UsageError: other labels, windows or images.
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
    """The run directory, which is new, or holds this very run; nothing is written.

    Args:
        options: of the run.
        shards: that it is trained on.
        continued: what `continuing.Origin.recorded` says, if it starts from another run.

    Raises:
        UsageError: it holds another run, or something else.
    """
    run = RunDirectory(options.run)
    if run.description.is_file():
        _refuse_other_run(run, options, shards, continued)
    elif run.path.exists() and (not run.path.is_dir() or _is_used(run.path)):
        raise UsageError(f"--run {run.path}: exists and is no run directory")
    else:  # a path of the shards, say, that no reader would take
        described = _describe_run(options, shards, [0.0] * len(shards.labels))  # not known yet
        check_document(described, RunDescription, f"--run {run.path}: for run.json")
    return run


def _is_used(folder: Path) -> bool:
    """Whether a folder holds more than the lock of a run that did not begin."""
    return any(each.name != LOCK for each in folder.iterdir())


def begin_run(
    run: RunDirectory,
    options: TrainOptions,
    shards: ShardDirectory,
    continued: dict[str, str] | None = None,
) -> None:
    """Says in the directory what the run is, unless it does; removes what was not written whole.

    Args:
        run: the directory.
        options: of the run.
        shards: that it is trained on.
        continued: see `check_run`.

    Raises:
        UsageError: another run began in it meanwhile.
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
    """Says what differs between the run that is there and the one asked for.

    Raises:
        UsageError: anything does.
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
    """An option's value as it is given, unless that would not be one short line."""
    text = str(value)
    plain = isinstance(value, str) and text.isprintable() and len(text) <= LONGEST_SHOWN
    return text if plain or value is None or isinstance(value, bool) else shown(value)


def read_description(run: RunDirectory) -> dict[str, Any]:
    """Reads run.json.

    Raises:
        UsageError: it is not there, not whole, or has a wrong value.
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
