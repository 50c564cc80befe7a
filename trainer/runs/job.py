"""What a command works on, checked before TensorFlow is loaded or anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from headct.errors import StorageError, UsageError
from headct.layout import fold_split
from headct.manifest import ImageSpec
from headct.printable import shown
from trainer.data.index import Index, read_index, with_label_counts
from trainer.data.priors import priors
from trainer.data.sampling import balanced_rates
from trainer.data.shard_source import ShardSource, find_shards
from trainer.data.shards import ALL_LABELED, ShardDirectory, Split, count
from trainer.networks.catalog import check_weights, find_backbone
from trainer.options import (
    CrossvalOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    ReportOptions,
    ShardAccess,
    TrainOptions,
    label_weights,
)
from trainer.progress import Display
from trainer.runs.calibration import Calibration, choose_calibration
from trainer.runs.continuing import Origin, check_validation, find_origin, take_network
from trainer.runs.outputs import (
    check_formats,
    check_new_folder,
    check_output,
    check_writable,
)
from trainer.runs.run_directory import (
    RunDirectory,
    check_fit,
    check_run,
    described_data,
    read_description,
)
from trainer.runs.trained_on import hash_examples

EXAMPLES = 16  # images that an exported model is tried on


@dataclass(frozen=True)
class Job:
    """What stays the same from the first step of a run to the last.

    Attributes:
        weights: of the labels in the loss.
        index: of the training examples, where training draws among them.
        trained_on: hashes of the training examples' ids, until the run has recorded them.
        origin: the run whose best model it starts from, if there is one.
        builder: what makes the backbone; None where it is one of `catalog.BACKBONES`.
        is_part: whether other runs follow, so that no advice is given at the end.
    """

    options: TrainOptions
    shards: ShardDirectory
    training: tuple[Split, ...]
    validation: Split
    weights: tuple[float, ...]
    run: RunDirectory
    display: Display
    index: Index | None = None
    trained_on: pd.DataFrame | None = field(default=None, repr=False)
    origin: Origin | None = None
    builder: Callable[..., Any] | None = None
    is_part: bool = False

    @property
    def prevalence(self) -> tuple[float, ...]:
        """The share of positives of each label in the training data."""
        return self.shards.prevalence(self.options.fold)

    @property
    def rates(self) -> tuple[float, ...]:
        """How much more often than it occurs an example is drawn; empty where none is."""
        return balanced_rates(self.index.labels) if self.index else ()

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return count(self.training) // self.options.batch_size


def prepare_training(options: TrainOptions, builder: Callable[..., Any] | None = None) -> Job:
    """Checks all that can be known without a network, and looks into the run directory.

    Raises:
        UsageError: the shards, the options or the run directory cannot be used.
        StorageError: the shards are in a bucket that fails, or refuses access.
    """
    display = Display()
    source = find_shards(options.shards, options, display)
    return _prepare_job(options, source, source.open(), display, builder)


def _prepare_job(
    options: TrainOptions,
    source: ShardSource,
    shards: ShardDirectory,
    display: Display,
    builder: Callable[..., Any] | None = None,
) -> Job:
    """Checks a training on shards that were opened; copies them where they are far away."""
    training, validation = shards.training_and_validation(options.fold)
    origin = find_origin(options)
    if origin is not None:
        check_fit(origin.description, shards)
        options = take_network(options, origin)
    if builder is None:
        find_backbone(options.model, options.image_size)
        check_weights(options.model, options.weights)
    elif options.weights != "none":
        raise UsageError(f"--weights {options.weights}: {options.model} brings its own weights")
    weights = label_weights(options.label_weights, shards.labels)
    for name in ("windows", "window_jitter"):
        if getattr(options, name) and not shards.image.is_hounsfield:
            raise UsageError(f"--{name}: the shards hold windowed images, not Hounsfield units")
    if count(training) < options.batch_size:
        raise UsageError(
            f"--batch_size {options.batch_size}: there are {count(training)} training examples"
        )
    run = check_run(options, shards, origin.recorded() if origin else None)
    index = trained_on = None
    if not run.is_complete:
        check_writable(run.path, f"--run {run.path}")
        if options.cache == "disk" and options.cache_dir:
            check_writable(Path(options.cache_dir), f"--cache_dir {options.cache_dir}")
        source.provide(shards, (*training, validation))
        shards = with_label_counts(shards)
        index = read_index(shards, training) if options.sampling == "balanced" else None
        if not run.trained_on.is_file():
            trained_on = _hash_examples(shards, training, display)
        if origin is not None:
            check_validation(origin, options, shards, validation)
    what = (options, shards, training, validation, weights)
    return Job(*what, run, display, index, trained_on, origin, builder)


def _hash_examples(
    shards: ShardDirectory, training: tuple[Split, ...], display: Display
) -> pd.DataFrame | None:
    """Reads whom the run is trained on; None where the index does not say."""
    try:
        return hash_examples(shards, training)
    except UsageError as error:
        display.say(f"{error}: evaluations will not know whom the run was trained on")
        return None


@dataclass(frozen=True)
class EvaluationJob:
    """A saved run and the split it is asked about.

    Attributes:
        weights: of the labels, as in training.
        prevalence: of each label where the run was trained, as its head began with it.
        same_shards: whether these are the shards that the run was trained on.
        trained_on: whether the run was trained on this very split; None where only ids can tell.
        calibration: of its logits.
        flip: whether to look at mirror images too.
        xla: whether to compile with XLA, as `TrainOptions.xla` has it.
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
        """The split, and what is done otherwise than in training: `fold0-tta-temperature`."""
        parts = [self.split.name]
        parts += [] if self.same_shards else [self.shards.digest()[:8]]
        parts += ["tta"] if self.flip else []
        parts += ["temperature"] if self.calibration.changes else []
        return "-".join(parts)


def prepare_evaluation(options: EvaluateOptions | PredictOptions) -> EvaluationJob:
    """Opens a saved run and the shards it is asked about.

    Raises:
        UsageError: either cannot be used, or they do not fit each other.
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
    return EvaluationJob(
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
    """A saved run that answers without its shards.

    Attributes:
        description: the content of run.json.
        image: that it takes.
        calibration: of its logits.
        split: of shards like the run's, if there are any, to try the model on.
    """

    run: RunDirectory
    description: dict[str, Any]
    labels: tuple[str, ...]
    image: ImageSpec
    calibration: Calibration
    split: Split | None
    display: Display

    @property
    def examples(self) -> int:
        """How many images the model is tried on."""
        return min(EXAMPLES, self.split.examples) if self.split else EXAMPLES

    @property
    def examples_of(self) -> str:
        """What they are."""
        return f"slices of {self.split.name}" if self.split else "images of noise"


def prepare_export(options: ExportOptions) -> SavedRun:
    """Opens a saved run, and a shard of images like those that it was trained on.

    Raises:
        UsageError: it has no model yet, or no temperatures; a format or the folder cannot be
            written; shards are named and do not fit.
        StorageError: shards are named whose store fails.
    """
    run = RunDirectory(options.run)
    description = read_description(run)
    labels = tuple(description["shards"]["labels"])
    check_model(run)
    calibration = choose_calibration(run, labels, options.temperature)
    check_formats(options.formats)
    check_new_folder(options.output)
    display, split = Display(), None
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
        split = None
    image = ImageSpec(**described_data(description)["image"])
    return SavedRun(run, description, labels, image, calibration, split, display)


def prepare_report(options: ReportOptions) -> EvaluationJob:
    """Opens a run that is complete, and the shards it was trained on.

    Raises:
        UsageError: it is not complete, or the shards are not there.
    """
    run = RunDirectory(options.run)
    read_description(run)
    if not run.is_complete:
        raise UsageError(f"{options.run}: training is not complete, so there is nothing to report")
    access = {name: getattr(options, name) for name in ShardAccess.model_fields}
    named = {"shards": options.shards} if options.shards else {}
    return prepare_evaluation(EvaluateOptions(run=options.run, xla=options.xla, **named, **access))


def prepare_crossval(options: CrossvalOptions) -> tuple[Job, ...]:
    """A job for each labeled fold, in run directories of their own below `options.run`.

    Raises:
        UsageError: the shards, the options or a run directory cannot be used.
    """
    display = Display()
    source = find_shards(options.shards, options, display)
    shards = source.open()
    if len(shards.folds()) < 2:
        raise UsageError(
            f"{shards.location}: has {len(shards.folds())} labeled folds; it takes two or more"
        )
    values = dict(options)
    # One for all folds: each is trained on by the runs of all others.
    values["cache_dir"] = options.cache_dir or str(RunDirectory(options.run).cache)
    changes = ({"fold": int(s.name[4:]), "run": options.run / s.name} for s in shards.folds())
    return tuple(
        _prepare_job(TrainOptions(**values | each), source, shards, display) for each in changes
    )


def evaluation_of(job: Job) -> EvaluationJob:
    """The question that ends a training: how good is it on the fold left out?"""
    return EvaluationJob(
        run=job.run,
        shards=job.shards,
        split=job.validation,
        weights=job.weights,
        prevalence=priors(job.prevalence),
        calibration=Calibration.none(len(job.shards.labels)),
        flip=False,
        batch_size=job.options.batch_size,
        display=job.display,
        # What it continues may be a run that does not say whom it was trained on.
        trained_on=None if job.origin else False,
        # TensorFlow's deterministic operations are not compiled.
        xla="off" if job.options.deterministic else job.options.xla,
    )


def check_model(run: RunDirectory) -> None:
    """Looks for the best model so far.

    Raises:
        UsageError: there is none.
    """
    if not run.model.is_file():
        raise UsageError(f"{run.path}: no model yet; training has not finished an epoch")


def differing_preparation(description: dict[str, Any], shards: ShardDirectory) -> str:
    """Options of the pipeline that move gray levels and had other values, as far as is known."""
    before, here = description["shards"].get("preprocessing", {}), shards.preprocessing
    return ", ".join(
        f"--{name} {shown(here[name])}, not {shown(before[name])}"
        for name in ("voi", "hu_repair")
        if name in before and name in here and before[name] != here[name]
    )
