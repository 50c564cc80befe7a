"""Setup of evaluations, predictions, reports and exports.

Everything is checked before TensorFlow is loaded or anything is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import numpy as np
import pandas as pd

from headct.commands import installation
from headct.errors import StorageError, UsageError
from headct.layout import PATIENT_ID
from headct.manifest import ImageSpec
from headct.printable import shown
from trainer.data.dicom import converted, pipeline_flags
from trainer.data.sampling import priors
from trainer.data.shard_source import find_shards
from trainer.data.shards import ALL_LABELED, ShardDirectory, Split, count
from trainer.display import Display
from trainer.files import check_new_folder, check_output, check_writable
from trainer.option_values import parse_formats
from trainer.options import (
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    ReportOptions,
    ShardAccess,
)
from trainer.runs.ensemble import Ensemble, open_runs
from trainer.runs.run import Calibration, Run, TrainingShards, choose_calibration
from trainer.runs.smoothing import NO_SMOOTHING, Smoothing, choose_smoothing
from trainer.runs.trained_on import COMPARED_IDS, read_ids, trained_on_split
from trainer.runs.training_setup import TrainingSetup

EXAMPLES = 16  # images to try an exported model on


@dataclass(frozen=True)
class EvaluationSetup:
    """A saved run or an ensemble of runs, and the split to evaluate or predict.

    Attributes:
        calibration: calibration of the logits.
        flip: whether to average the logits of each image and its mirror image.
        same_shards: whether the run was trained on these shards.
        trained_on: whether the run was trained on this split; None: compare ids.
        xla: whether to compile with XLA, like `TrainOptions.xla`; run: as in training.
        smoothing: smoothing of the logits along z, before the calibration.
    """

    run: Run
    shards: ShardDirectory
    split: Split
    calibration: Calibration
    flip: bool
    batch_size: int
    display: Display
    same_shards: bool = True
    trained_on: bool | None = False
    xla: str = "auto"
    smoothing: Smoothing = NO_SMOOTHING

    @property
    def weights(self) -> tuple[float, ...]:
        """Loss weight per label, as in training."""
        return self.run.weights

    @property
    def prevalence(self) -> tuple[float, ...]:
        """Share of positives per label in the training data; the head's initial output."""
        return priors(self.run.record.shards.prevalence)

    @property
    def model_name(self) -> str:
        """The backbone, or those of an ensemble."""
        names = [run.record.options.get("model", "not recorded") for run in self.run.networks]
        return ", ".join(str(name) for name in dict.fromkeys(names))

    def compiled(self, run: Run) -> str:
        """Return whether to compile a run's model with XLA."""
        return str(run.record.options.get("xla", "auto")) if self.xla == "run" else self.xla

    @property
    def name(self) -> str:
        """The split and the differences from training, such as `fold0-tta-temperature`."""
        parts = [self.split.name]
        parts += [] if self.same_shards else [self.shards.digest()[:8]]
        parts += ["tta"] if self.flip else []
        parts += ["smooth_z"] if self.smoothing.changes else []
        parts += ["temperature"] if self.calibration.changes else []
        return "-".join(parts)


def prepare_evaluation(options: EvaluateOptions | PredictOptions) -> EvaluationSetup:
    """Open a saved run and the shards to evaluate or predict.

    Raises:
        UsageError: the run or the shards cannot be used, or do not fit each other.
    """
    run, display = open_named(options), Display()
    record = run.record
    source = find_shards(options.shards or record.shards.path, options, display)
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
    run.check_fit(shards, may_lack_labels=isinstance(options, PredictOptions))
    split = shards.split(options.split or run.validation)
    same_shards = shards.digest() == record.shards.digest
    if not split.examples:
        raise UsageError(f"{shards.location}: split {split.name} has no examples")
    check_run(options)
    calibration, smoothing = choose_corrections(run, options)
    labeled = count(shards.labeled())
    if not same_shards and not options.split and split.examples < labeled:
        display.say(
            f"{shards.location}: measuring {split.name}, {split.examples} of {labeled} labeled"
            f" slices; --split {ALL_LABELED} measures all"
        )
    if differing := differing_preparation(record.shards, shards):
        display.say(f"{shards.location}: images were made otherwise than the run's: {differing}")
    source.provide(shards, (split,))
    if isinstance(run, Ensemble) and isinstance(options, EvaluateOptions):
        run = without_training_patients(run, shards, split)
        if len({each.weights for each in run.networks}) > 1:
            display.say(f"losses are weighted as in the training of {run.networks[0].path}")
    if any(each.neighbors.count or each.record.scans for each in run.networks):
        shards.examples((split,)).scans()  # must be known
    return EvaluationSetup(
        run=run,
        shards=shards,
        split=split,
        calibration=calibration,
        flip=options.tta,
        batch_size=options.batch_size,
        display=display,
        same_shards=same_shards,
        trained_on=trained_on_split(run, shards, split),
        xla=options.xla,
        smoothing=smoothing,
    )


def choose_corrections(
    run: Run, options: EvaluateOptions | PredictOptions
) -> tuple[Calibration, Smoothing]:
    """Return the calibration and the smoothing kept in the run, if wanted.

    Raises:
        UsageError: one is missing or damaged, or the calibration is of another smoothing.
    """
    calibration = choose_calibration(run, run.labels, options.temperature)
    smoothing = choose_smoothing(run.smoothing, options.smooth_z)
    calibration.check_smoothing(smoothing)
    return calibration, smoothing


def open_named(options: EvaluateOptions | PredictOptions) -> Run:
    """Open the run or the ensemble that the options name.

    Raises:
        UsageError: the runs cannot be used together, or a fit or folder is for an ensemble only.
    """
    output = options.output if isinstance(options, EvaluateOptions) else None
    kept = {name: getattr(options, name) for name in ("temperature", "smooth_z")}
    run = open_runs(options.run, options.ensemble_mean, output, kept)
    if not isinstance(run, Ensemble):
        for name in ("ensemble_mean", "fit_weights"):
            if getattr(options, name, None):
                raise UsageError(f"--{name}: {run.path} is one run; it is for several")
    if not isinstance(options, EvaluateOptions):
        return run
    if "output" in options.model_fields_set and run.path != options.output:
        raise UsageError(
            f"--output {options.output}: is for an ensemble; figures of {run.path} go there"
        )
    if isinstance(run, Ensemble):
        run.check_home(options.fit_weights)
    return run


def without_training_patients(run: Ensemble, shards: ShardDirectory, split: Split) -> Ensemble:
    """Check that each member can answer for every patient of a split without its training on them.

    Returns:
        The ensemble; if it is a cross-validation and no run was trained on these patients, with
        each of its runs as a member.

    Raises:
        UsageError: all runs of a member were trained on a patient.
    """
    is_unseen = True
    for part in shards.parts(split):
        try:
            ids = read_ids(shards, (part,))
            texts = {str(name): ids[name].to_numpy(str) for name in ids}
        except UsageError:  # the index has no ids: what the folds tell
            texts = {name: np.full(part.examples, "") for name in COMPARED_IDS}
        is_unseen &= not any(k is not None and k.any() for k in run.known(shards, part, texts))
        patients = texts[PATIENT_ID]
        for title, seen in run.seen_by_members(shards, part, texts).items():
            if seen is not None and seen.any():
                everyone, some = (len(np.unique(ids)) for ids in (patients, patients[seen]))
                share = "" if some == everyone else f"{some} of {everyone} patients of "
                raise UsageError(
                    f"--run: {title} was trained on {share}{part.name}; want slices that no run"
                    " was trained on, or the folder of a cross-validation, which answers each fold"
                    " by the run that left it out"
                )
    return run.of_single_runs() if is_unseen and len(run.members) == 1 else run


def check_run(options: EvaluateOptions | PredictOptions) -> None:
    """Check what does not depend on the shards.

    Raises:
        UsageError: the run has no model or no calibration, or the output cannot be written.
    """
    run = open_named(options)
    run.check_model()
    if isinstance(options, EvaluateOptions):
        check_writable(run.path, f"--run {run.path}")
    elif options.writes_folder:
        check_new_folder(options.output)
    else:
        check_output(options.output)
    _ = run.weights  # must be valid
    choose_corrections(run, options)


@contextmanager
def converted_input(
    options: PredictOptions,
) -> Iterator[tuple[PredictOptions, pd.DataFrame | None]]:
    """Convert `--input` to temporary shards like those of the run, while the block runs.

    For an output without patient ids, the other ids are the original ones: a user knows scans by
    these. A copy of a slice then counts once in its scan, whatever the copy's name.

    Yields:
        The options with the shards in place of the input, and the rejected files: source, image_id,
        reason and detail. Without `--input`, the options, and None.

    Raises:
        UsageError: no file can be used, or the run does not record how its images were made.
        StorageError: a store failed, or the disk is full.
    """
    if not options.input:
        yield options, None
        return
    trained, display = open_named(options).record.shards, Display()
    windows = [asdict(each) for each in trained.windows]
    flags = pipeline_flags(windows, trained.preprocessing)
    flags += ["--leak_check=off"]  # there are no folds
    flags += [f"--where={condition}" for condition in options.where]
    flags += [f"--files={options.files}"] if options.files else []
    if options.writes_folder:
        flags += ["--identifiers=keep", "--image_id=sop_instance_uid"]
    with converted(options.input, flags, show_progress=True) as (shards, rejects):
        for reason, files in Counter(rejects["reason"]).most_common():
            display.say(f"not used {files:>6}  {reason}")
        yield options.model_copy(update={"shards": str(shards), "input": ""}), rejects


@dataclass(frozen=True)
class SavedRun:
    """A saved run to export.

    Attributes:
        image: format of the stored images.
        calibration: calibration of the logits.
        shards: images to try the model on; None if no shards are available.
        split: one of their shards.
    """

    run: Run
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
    run, display, shards, split = open_runs([options.run]), Display(), None, None
    if isinstance(run, Ensemble):
        raise UsageError(
            f"{options.run}: is {len(run.networks)} runs, and an export is one model; want one of"
            f" them, such as {run.networks[0].path}"
        )
    trained, labels = run.record.shards, run.labels
    run.check_model()
    if run.control != "none":
        raise UsageError(f"{run.path}: is a control ({run.control}), for figures alone")
    calibration = choose_calibration(run, labels, options.temperature)
    calibration.check_smoothing(NO_SMOOTHING)
    needed = ("onnx", "tf2onnx", "onnxruntime") if "onnx" in parse_formats(options.formats) else ()
    for name in needed:
        if find_spec(name) is None:
            remedy = installation("export", "onnx")
            raise UsageError(f"--formats onnx: {name} is not installed; {remedy}")
    check_new_folder(options.output)
    try:
        source = find_shards(options.shards or trained.path, options, display)
        shards = source.open()
        run.check_fit(shards)
        split = shards.first_shard()
        source.provide(shards, (split,))
    except (UsageError, StorageError) as error:
        if options.shards:
            raise
        display.say(f"no slices to try the model on, noise instead; --shards names some ({error})")
        shards = split = None
    return SavedRun(run, labels, trained.image, calibration, shards, split, display)


def prepare_report(options: ReportOptions) -> EvaluationSetup:
    """Open a complete run and its training shards, or an ensemble and those of its evaluation.

    Raises:
        UsageError: the run is not complete, the ensemble was not evaluated, or the shards are
            missing.
    """
    run = open_runs([options.run])
    _ = run.record  # must be valid
    if isinstance(run, Ensemble):
        if not run.evaluation(run.validation).is_file():
            raise UsageError(
                f"{options.run}: is an ensemble or a cross-validation without figures of"
                f" {run.validation}; `evaluate --run {options.run}` writes them, and its report"
            )
    elif not run.is_complete:
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
        calibration=Calibration.none(len(setup.shards.labels)),
        flip=False,
        batch_size=setup.options.batch_size,
        display=setup.display,
        # The origin may not have recorded its training patients.
        trained_on=None if setup.origin else False,
        # Keras does not compile TensorFlow's deterministic operations.
        xla="off" if setup.options.deterministic else setup.options.xla,
    )


def differing_preparation(trained: TrainingShards, shards: ShardDirectory) -> str:
    """List the pipeline options that change gray levels and differ from the run's, if known."""
    before, here = trained.preprocessing, shards.preprocessing
    return ", ".join(
        f"--{name} {shown(here[name])}, not {shown(before[name])}"
        for name in ("voi", "hu_repair")
        if name in before and name in here and before[name] != here[name]
    )
