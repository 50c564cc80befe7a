"""Setup of evaluations, predictions, reports and exports; a run's calibration.

Everything is checked before TensorFlow is loaded or anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headct.errors import StorageError, UsageError
from headct.json_documents import key_path, read_document
from headct.layout import fold_split
from headct.manifest import ImageSpec
from headct.printable import shown
from trainer.data.sampling import priors
from trainer.data.shard_source import find_shards
from trainer.data.shards import ALL_LABELED, ShardDirectory, Split, count
from trainer.display import Display
from trainer.files import write_json
from trainer.options import (
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    ReportOptions,
    ShardAccess,
    label_weights,
)
from trainer.runs.documents import Temperatures
from trainer.runs.outputs import check_formats, check_new_folder, check_output, check_writable
from trainer.runs.run_directory import (
    RunDirectory,
    check_fit,
    check_model,
    described_data,
    read_description,
)
from trainer.runs.training_setup import TrainingSetup

EXAMPLES = 16  # images to try an exported model on


@dataclass(frozen=True)
class Calibration:
    """Calibrates logits: logit / temperature + bias, per label.

    Attributes:
        temperatures: [L].
        biases: [L].
        split: split of the fit; empty if unknown.
        digest: digest of the split's shards; empty if unknown.
    """

    temperatures: tuple[float, ...]
    biases: tuple[float, ...]
    split: str = ""
    digest: str = ""

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

    def describe(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return the entry for files, by label."""
        return {
            "temperatures": dict(zip(labels, self.temperatures, strict=True)),
            "biases": dict(zip(labels, self.biases, strict=True)),
        }


def choose_calibration(run: RunDirectory, labels: tuple[str, ...], wanted: bool) -> Calibration:
    """Return the run's calibration if wanted, else a calibration that changes nothing.

    Raises:
        UsageError: the wanted calibration is missing or damaged.
    """
    if not wanted:
        return Calibration.none(len(labels))
    try:
        return read_calibration(run, labels)
    except FileNotFoundError:
        raise UsageError(
            f"--temperature: {run.path} has none; `evaluate --fit_temperature` finds them"
        ) from None


def read_calibration(run: RunDirectory, labels: tuple[str, ...]) -> Calibration:
    """Read temperatures.json.

    Raises:
        FileNotFoundError: the file is missing.
        UsageError: the file is damaged, or lacks a label.
    """
    kept = read_document(run.temperatures, Temperatures)
    for label in labels:
        if label not in kept:
            raise UsageError(f"{run.temperatures}: {key_path([label])}: is missing")
    fitted = [kept[label] for label in labels]
    return Calibration(
        tuple(label.temperature for label in fitted),
        tuple(label.bias for label in fitted),
        fitted[0].split,
        fitted[0].digest,
    )


def write_calibration(run: RunDirectory, labels: tuple[str, ...], calibration: Calibration) -> None:
    """Write temperatures.json."""
    fitted_on = {"split": calibration.split, "digest": calibration.digest}
    pairs = zip(calibration.temperatures, calibration.biases, strict=True)
    content = {
        label: {"temperature": temperature, "bias": bias} | fitted_on
        for label, (temperature, bias) in zip(labels, pairs, strict=True)
    }
    write_json(run.temperatures, content)


@dataclass(frozen=True)
class EvaluationSetup:
    """A saved run, and the split to evaluate or predict.

    Attributes:
        weights: loss weight per label, as in training.
        prevalence: share of positives per label in the training data; the head's initial output.
        calibration: calibration of the logits.
        flip: whether to average the logits of each image and its mirror image.
        same_shards: whether the run was trained on these shards.
        trained_on: whether the run was trained on this split; None: compare ids.
        xla: whether to compile with XLA, like `TrainOptions.xla`.
    """

    run: RunDirectory
    shards: ShardDirectory
    split: Split
    weights: tuple[float, ...]
    prevalence: tuple[float, ...]
    calibration: Calibration
    flip: bool
    batch_size: int
    display: Display
    same_shards: bool = True
    trained_on: bool | None = False
    xla: str = "auto"

    @property
    def name(self) -> str:
        """The split and the differences from training, such as `fold0-tta-temperature`."""
        parts = [self.split.name]
        parts += [] if self.same_shards else [self.shards.digest()[:8]]
        parts += ["tta"] if self.flip else []
        parts += ["temperature"] if self.calibration.changes else []
        return "-".join(parts)


def prepare_evaluation(options: EvaluateOptions | PredictOptions) -> EvaluationSetup:
    """Open a saved run and the shards to evaluate or predict.

    Raises:
        UsageError: the run or the shards cannot be used, or do not fit each other.
    """
    run = RunDirectory(options.run)
    description = read_description(run)
    display = Display()
    source = find_shards(options.shards or description["shards"]["path"], options, display)
    try:
        shards = source.open()
    except UsageError as error:
        if options.shards:
            raise
        raise UsageError(
            f"{error}; if the shards of {run.path} have moved, --shards names them"
        ) from None
    if isinstance(options, EvaluateOptions) and not shards.labels:
        raise UsageError(f"{shards.location}: has no labels to measure by; `predict` is for such")
    check_fit(description, shards, may_lack_labels=isinstance(options, PredictOptions))
    labels = tuple(description["shards"]["labels"])
    validation = fold_split(description["options"]["fold"])
    split = shards.split(options.split or validation)
    same_shards = shards.digest() == description["shards"]["digest"]
    if not split.examples:
        raise UsageError(f"{shards.location}: split {split.name} has no examples")
    check_model(run)
    if isinstance(options, PredictOptions):
        check_output(options.output)
    else:
        check_writable(run.path, f"--run {run.path}")
    weights = label_weights(description["options"]["label_weights"], labels, saved=True)
    calibration = choose_calibration(run, labels, options.temperature)
    if not same_shards and not options.split and split.examples < count(shards.labeled()):
        display.say(
            f"{shards.location}: measuring {split.name}, {split.examples} of "
            f"{count(shards.labeled())} labeled slices; --split {ALL_LABELED} measures all"
        )
    if differing := differing_preparation(description, shards):
        display.say(f"{shards.location}: images were made otherwise than the run's: {differing}")
    by_split = None
    if same_shards and not description.get("continued_from"):
        others = [fold.name for fold in shards.folds() if fold.name != validation]
        by_split = split.name in (*others, ALL_LABELED)
    source.provide(shards, (split,))
    return EvaluationSetup(
        run=run,
        shards=shards,
        split=split,
        weights=weights,
        prevalence=priors(description["shards"]["prevalence"]),
        calibration=calibration,
        flip=options.tta,
        batch_size=options.batch_size,
        display=display,
        same_shards=same_shards,
        trained_on=by_split,
        xla=description["options"].get("xla", "auto") if options.xla == "run" else options.xla,
    )


@dataclass(frozen=True)
class SavedRun:
    """A saved run to export.

    Attributes:
        description: content of run.json.
        image: format of the stored images.
        calibration: calibration of the logits.
        shards: images to try the model on; None if no shards are available.
        split: one of their shards.
    """

    run: RunDirectory
    description: dict[str, Any]
    labels: tuple[str, ...]
    image: ImageSpec
    calibration: Calibration
    shards: ShardDirectory | None
    split: Split | None
    display: Display

    @property
    def examples(self) -> int:
        """Number of images to try the model on."""
        return min(EXAMPLES, self.split.examples) if self.split else EXAMPLES

    @property
    def examples_of(self) -> str:
        """Description of these images."""
        return f"slices of {self.split.name}" if self.split else "images of noise"


def prepare_export(options: ExportOptions) -> SavedRun:
    """Open a saved run, and one shard of images to try the exported model on.

    Raises:
        UsageError: the run has no model yet, or no calibration; a format or the folder cannot be
            written; `--shards` does not fit.
        StorageError: the store of `--shards` fails.
    """
    run = RunDirectory(options.run)
    description = read_description(run)
    labels = tuple(description["shards"]["labels"])
    check_model(run)
    calibration = choose_calibration(run, labels, options.temperature)
    check_formats(options.formats)
    check_new_folder(options.output)
    display, shards, split = Display(), None, None
    try:
        source = find_shards(options.shards or description["shards"]["path"], options, display)
        shards = source.open()
        check_fit(description, shards)
        split = shards.first_shard()
        source.provide(shards, (split,))
    except (UsageError, StorageError) as error:
        if options.shards:
            raise
        display.say(f"no slices to try the model on, noise instead; --shards names some ({error})")
        shards = split = None
    image = ImageSpec(**described_data(description)["image"])
    return SavedRun(run, description, labels, image, calibration, shards, split, display)


def prepare_report(options: ReportOptions) -> EvaluationSetup:
    """Open a complete run and its training shards.

    Raises:
        UsageError: the run is not complete, or the shards are missing.
    """
    run = RunDirectory(options.run)
    read_description(run)
    if not run.is_complete:
        raise UsageError(f"{options.run}: training is not complete, so there is nothing to report")
    access = {name: getattr(options, name) for name in ShardAccess.model_fields}
    named = {"shards": options.shards} if options.shards else {}
    return prepare_evaluation(EvaluateOptions(run=options.run, xla=options.xla, **named, **access))


def evaluation_of(setup: TrainingSetup) -> EvaluationSetup:
    """Return the setup of the final evaluation of a training."""
    return EvaluationSetup(
        run=setup.run,
        shards=setup.shards,
        split=setup.validation,
        weights=setup.weights,
        prevalence=priors(setup.prevalence),
        calibration=Calibration.none(len(setup.shards.labels)),
        flip=False,
        batch_size=setup.options.batch_size,
        display=setup.display,
        # The origin may not have recorded its training patients.
        trained_on=None if setup.origin else False,
        # Keras does not compile TensorFlow's deterministic operations.
        xla="off" if setup.options.deterministic else setup.options.xla,
    )


def differing_preparation(description: dict[str, Any], shards: ShardDirectory) -> str:
    """List the pipeline options that change gray levels and differ from the run's, if known."""
    before, here = description["shards"].get("preprocessing", {}), shards.preprocessing
    return ", ".join(
        f"--{name} {shown(here[name])}, not {shown(before[name])}"
        for name in ("voi", "hu_repair")
        if name in before and name in here and before[name] != here[name]
    )
