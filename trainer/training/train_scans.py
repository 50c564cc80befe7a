"""Train a scan model on the features of a run's slice network, or resume it."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from trainer.data.input_pipeline import examples_as_read
from trainer.display import Display, counted, next_command, show_figures
from trainer.errors import Diverged
from trainer.evaluation.evaluate import measure, predict_labeled
from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import probabilities, split_figures, weighted_log_loss
from trainer.evaluation.predict import write_parquet
from trainer.evaluation.predict_models import Predictions, describe_slices
from trainer.files import file_sha256, write_json
from trainer.networks import hardware
from trainer.networks.saved_models import load_classifier
from trainer.networks.scan_model import (
    SCAN,
    SLICES,
    build_scan_model,
    control_scans,
    correct,
    features_model,
    load_scan_model,
)
from trainer.report.report import write_report
from trainer.runs import checkpoint
from trainer.runs.checkpoint import Progress
from trainer.runs.scan_setup import ScanSetup
from trainer.training.end_to_end import Joined
from trainer.training.scan_crops import Batches, Training, ahead
from trainer.training.scan_features import ScanFeatures, extract_features
from trainer.training.training_model import TwoRates, WeightedBinaryCrossentropy

MISTAKES = 12
# A gap between training and validation loss that the scan model would take for certainty.
_OVERFITTED = 2.0
_CHECKPOINT_SECONDS = 120.0


def train_scans(setup: ScanSetup) -> None:
    """Train the scan model of a run, or resume it.

    Raises:
        UsageError: a shard is damaged, or the network cannot be loaded.
        Diverged: the loss is no longer finite.
    """
    options, run, display = setup.options, setup.run, setup.display
    hardware.set_up_jax()
    hardware.begin_session(options.seed)
    with setup.begun(), hardware.device_errors_reported():
        if run.is_complete:
            return
        training = begin_end_to_end(setup) if options.end_to_end else begin(setup)
        model, progress = training.model, Progress(thawed=0, best_loss=training.before)
        if (saved := checkpoint.load_newest(run.checkpoints)) is not None:
            checkpoint.restore(model, saved, "weights", "optimizer")
            progress = saved.progress
            display.say(f"resumes after epoch {progress.epoch}, step {progress.step}")
        else:
            training.save(run)  # the answers before training
        while not progress.stopped and progress.epoch < options.epochs:
            train_epoch(setup, training, progress)
            checkpoint.save(run.checkpoints, checkpoint.capture(model, progress))
        finish(setup, training, progress)


def begin(setup: ScanSetup) -> Training:
    """Return the training of a scan model on features of the slice network."""
    options, labels = setup.options, len(setup.shards.labels)
    training, validation = read_features(setup)
    before = baseline(setup, training, validation)
    size = training[0].features.shape[1]
    model = build_scan_model(options.kind, size, labels, options.units, options.dropout)
    batches = Batches(training, options.crop, options.scans_a_step, options.seed, options.control)
    compile_model(model, setup, batches.steps)
    return Training(model, model, batches, lambda: validation, before)


def begin_end_to_end(setup: ScanSetup) -> Training:
    """Return the training of both networks together."""
    joined = Joined(setup)
    setup.display.begin("validating the start", setup.validation.examples)
    found, batches = joined.validate(), joined.batches
    answers = correct(
        joined.scan_model, found.features, found.logits, found.scans, setup.options.both_directions
    )
    before = scan_loss(setup, found, *answers)
    setup.display.end()
    setup.display.say(
        f"{setup.slices.path} end to end: {counted(len(batches.scans), 'scan')} to train on,"
        f" {len(found.scans)} of {setup.validation.name} to validate on, log loss {before:.4f}"
        " before the first step"
    )
    compile_model(joined.model, setup, batches.steps, joined.classifier)
    return Training(
        joined.model, joined.scan_model, batches, joined.validate, before, joined.classifier
    )


def read_features(setup: ScanSetup) -> tuple[list[ScanFeatures], ScanFeatures]:
    """Return the features of the training splits and of the validation split."""
    run, options = setup.slices, setup.options
    xla = run.record.options.get("xla", "auto")
    labels = len(setup.shards.labels)
    classifier = load_classifier(run.model, xla, setup.shards.image, labels, run.neighbors.slices)
    model = features_model(classifier, options.tta)
    digest = file_sha256(run.model)
    found = [
        extract_features(
            model,
            setup.shards,
            split,
            run.features,
            digest,
            run.neighbors,
            options.batch_size,
            options.tta,
            setup.display,
        )
        for split in (*setup.training, setup.validation)
    ]
    found = [replace(one, scans=control_scans(one.scans, options.control)) for one in found]
    return found[:-1], found[-1]


def baseline(setup: ScanSetup, training: list[ScanFeatures], validation: ScanFeatures) -> float:
    """Say how the slice network does on its own slices and on others; return the loss to beat."""
    weights = setup.slices.weights
    own = np.average(
        [weighted_log_loss(one.labels, probabilities(one.logits), weights) for one in training],
        weights=[len(one.labels) for one in training],
    )
    others = weighted_log_loss(validation.labels, probabilities(validation.logits), weights)
    scans = sum(len(one.scans) for one in training)
    setup.display.say(
        f"{setup.options.kind} on {counted(scans, 'scan')} to train on, {len(validation.scans)} of"
        f" {setup.validation.name} to validate on; log loss of the slice network: {own:.4f} on its"
        f" own slices, {others:.4f} on {setup.validation.name}"
    )
    if others > _OVERFITTED * own:
        setup.display.say(
            "The slice network knows its own slices far better than others, and its features of"
            " them look more certain than they are: a higher --dropout may help, or an earlier"
            " end of the slice network's training."
        )
    return scan_loss(setup, validation, validation.logits, scan_maxima(validation))


def scan_maxima(found: ScanFeatures) -> npt.NDArray[np.float32]:
    """Return the highest logits of the scan of each slice, [N, L]."""
    highest = np.maximum.reduceat(found.logits, found.scans.starts[:-1])
    return np.asarray(highest[found.scans.scan])


def scan_loss(
    setup: ScanSetup,
    found: ScanFeatures,
    of_slices: npt.NDArray[np.float32],
    of_scan: npt.NDArray[np.float32],
) -> float:
    """Return the log loss by which epochs are chosen: of slices, or of scans if labels are."""
    weights = setup.slices.weights
    if not setup.of_scans:
        return weighted_log_loss(found.labels, probabilities(of_slices), weights)
    first = found.scans.starts[:-1]
    labels = np.maximum.reduceat(found.labels, first)
    return weighted_log_loss(labels, probabilities(of_scan[first]), weights)


def compile_model(model: Any, setup: ScanSetup, steps: int, classifier: Any = None) -> None:
    """Compile the model; the loss is that of slices and scans, or of scans alone.

    Args:
        model: to train.
        setup: of the run.
        steps: per epoch.
        classifier: the slice network in the model, if that is trained, too.
    """
    options = setup.options
    schedule = keras.optimizers.schedules.CosineDecay(options.learning_rate, options.epochs * steps)
    slower = [] if classifier is None else classifier.trainable_variables
    optimizer = TwoRates(
        schedule,
        weight_decay=options.weight_decay,
        global_clipnorm=1.0,
        gradient_accumulation_steps=options.accumulate if options.accumulate > 1 else None,
        name="optimizer",
    )
    optimizer.exclude_from_weight_decay(
        var_list=[*slower, *(one for one in model.trainable_variables if len(one.shape) < 2)]
    )
    optimizer.build(model.trainable_variables)
    optimizer.slow_down(slower, options.slice_learning_rate / options.learning_rate)
    if classifier is not None and classifier.get_layer("core").dtype_policy.name == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
        optimizer.build(model.trainable_variables)
    loss = WeightedBinaryCrossentropy(setup.weights)
    model.compile(
        optimizer,
        loss={SLICES: loss, SCAN: loss},
        loss_weights={SLICES: 0.0 if setup.of_scans else 1.0, SCAN: 1.0 if setup.of_scans else 0.1},
        jit_compile="auto" if classifier is None else classifier.jit_compile,
    )


def train_epoch(setup: ScanSetup, training: Training, progress: Progress) -> None:
    """Train the rest of an epoch and validate; save the networks if they are the best so far."""
    options, run, display, model = setup.options, setup.run, setup.display, training.model
    steps, first = training.batches.steps, progress.step
    display.begin(f"epoch {progress.epoch + 1} of {options.epochs}", steps, first)
    begun = saved = time.monotonic()
    slices = 0.0
    for inputs, labels, weights in ahead(training.batches.epoch(progress.epoch, first)):
        loss = float(model.train_on_batch(inputs, labels, weights, return_dict=True)["loss"])
        model.reset_metrics()
        progress.step += 1
        progress.losses += loss
        slices += float(inputs["mask"].sum())
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss is {loss} at epoch {progress.epoch + 1}, step {progress.step}; try a"
                " lower --learning_rate in a new run directory"
            )
        display.update(progress.step)
        if time.monotonic() - saved >= _CHECKPOINT_SECONDS and progress.step < steps:
            checkpoint.save(run.checkpoints, checkpoint.capture(model, progress))
            saved = time.monotonic()
    seconds = max(time.monotonic() - begun, 1e-9)
    display.begin(f"validating epoch {progress.epoch + 1}", setup.validation.examples)
    validation = training.validate()
    found = correct(
        training.scan_model,
        validation.features,
        validation.logits,
        validation.scans,
        options.both_directions,
    )
    figures = split_figures(
        validation.labels, probabilities(found[0]), setup.shards.labels, setup.weights
    )
    row = {
        "epoch": progress.epoch + 1,
        "loss": progress.losses / steps,
        "learning_rate": float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
        "images_per_second": slices / seconds,
        "input_wait": 0.0,
        "val_loss": scan_loss(setup, validation, *found),
        "val_mean_roc_auc": figures["mean_roc_auc"],
        "val_roc_auc": {name: one["roc_auc"] for name, one in figures["labels"].items()},
    }
    better = progress.end_epoch(row, 0, options.patience)
    if better:
        training.save(run)
    write_json(run.history, progress.history)
    display.end()
    display.say(
        f"epoch {row['epoch']}: loss {row['loss']:.4f}, validation {row['val_loss']:.4f}"
        f"{' (best so far)' if better else ''}"
    )


def predict_best(setup: ScanSetup, training: Training) -> Predictions:
    """Predict the validation split by the best model, from stored features if it has its own."""
    if setup.options.end_to_end:
        return predict_labeled(setup.evaluation())
    found, names = training.validate(), setup.shards.labels
    examples = examples_as_read(setup.shards, (setup.validation,))
    rows, labels = describe_slices(examples, setup.validation)
    best = load_scan_model(setup.run.scan_model, len(names))
    both = setup.options.both_directions
    logits, pooled = correct(best, found.features, found.logits, found.scans, both)
    back = np.argsort(examples.scans().order)
    return Predictions(
        names, rows, labels, logits[back], alone=found.logits[back], pooled=pooled[back]
    )


def finish(setup: ScanSetup, training: Training, progress: Progress) -> None:
    """Evaluate the best model, compare it with the slice network, and complete the run."""
    run, display, evaluation = setup.run, setup.display, setup.evaluation()
    frame = predict_best(setup, training).frame()
    figures = measure(frame, evaluation)
    name = setup.validation.name
    write_parquet(run.predictions(name), frame)
    best = [row["epoch"] for row in progress.history if row["val_loss"] == progress.best_loss]
    measured = Measured(frame, setup.shards.labels, setup.weights)
    against = compare_with_slices(measured)
    metrics = {
        "epochs": progress.epoch,
        "best_epoch": best[0] if best else 0,
        "stopped_early": progress.stopped,
        **figures,
        "against_slices": against,
    }
    if setup.options.end_to_end:
        start = predict_labeled(replace(evaluation, run=setup.slices)).frame()
        metrics["against_start"] = compare(measured, replace(measured, frame=start))
    write_json(run.machine, hardware.describe_machine())
    write_json(run.metrics, metrics)
    for path in checkpoint.checkpoints(run.checkpoints):
        path.unlink()
    shutil.rmtree(run.cache, ignore_errors=True)
    if setup.options.report:
        write_report(evaluation, MISTAKES)
    show_figures(display, metrics, f"{run.path}: {name}, epoch {metrics['best_epoch']}")
    if setup.options.end_to_end:
        say_change(display, metrics["against_start"], str(setup.slices.path), "end to end")
    else:
        say_change(display, against)
    if not setup.is_fold:
        display.print_unwrapped(next_command("evaluate", run=run.path))


def say_change(
    display: Display,
    against: dict[str, Any],
    before: str = "Slice network alone",
    what: str = "the scan model",
) -> None:
    """Print what a scan model changes, from `compare`."""
    ends = against["difference_interval_95"]
    helps = "it helps, on the patients that chose its epoch"
    display.say(
        f"{before}: log loss {against['weighted_log_loss']:.4f}; {what} changes"
        f" it by {against['difference']:+.4f}"
        f"{f' (95 % interval {ends[0]:+.4f} to {ends[1]:+.4f})' if ends else ''}:"
        f" {helps if against['helps'] else 'no clear gain'}."
    )


def compare_with_slices(measured: Measured) -> dict[str, Any]:
    """Return the slice network's loss on the slices of a scan model, and the difference to it."""
    return compare(measured, measured.answered(measured.values("alone")))


def compare(measured: Measured, before: Measured) -> dict[str, Any]:
    """Return the loss of other predictions of the same slices, and the paired difference."""
    difference = measured.difference(before, "log_loss")
    return {
        "weighted_log_loss": before.figures["weighted_log_loss"],
        "mean_roc_auc": before.figures["mean_roc_auc"],
        "difference": difference.value,
        "difference_interval_95": difference.ends,
        "helps": difference.is_below_0,
    }
