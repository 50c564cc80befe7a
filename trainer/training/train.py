"""The training loop: one `fit` an epoch, and everything between two of them."""

from __future__ import annotations

import shutil
from typing import Any

import keras
import tensorflow as tf

from trainer.data.damage import damage_reported
from trainer.data.input_pipeline import Order
from trainer.data.shards import count
from trainer.evaluation.evaluate import measure, predict_labeled
from trainer.evaluation.metrics import probabilities, split_figures
from trainer.evaluation.predict import check_finite, predict_split, write_parquet
from trainer.files import write_json, write_whole
from trainer.networks.averaging import averaged_weights, reset_averages
from trainer.networks.hardware import (
    begin_session,
    choose_precision,
    choose_xla,
    compute_capability,
    device_errors_reported,
    free_device_memory,
    leave_gpu_to_jax,
    make_deterministic,
    unused_gpus,
    use_all_devices,
)
from trainer.networks.machine import describe_machine
from trainer.networks.model import Classifier, build_classifier, load_classifier, take_weights
from trainer.progress import next_command, show_figures
from trainer.report import plots, tensorboard
from trainer.report.report import write_report
from trainer.runs import checkpoint
from trainer.runs.checkpoint import Checkpoint, Progress
from trainer.runs.job import Job, evaluation_of
from trainer.runs.run_directory import begin_run
from trainer.runs.run_lock import held
from trainer.runs.trained_on import write_trained_on
from trainer.training.feeds import Feed, open_feed
from trainer.training.input_clock import InputClock
from trainer.training.optimizers import learning_rate
from trainer.training.phases import compile_phase
from trainer.training.step_watch import Callbacks, StepWatch

MISTAKES = 12


def train(job: Job) -> None:
    """Trains, or resumes where an earlier start of the same run stopped.

    Raises:
        UsageError: the weights cannot be had, or a shard is damaged.
        Diverged: the loss is no longer finite.
    """
    options = job.options
    leave_gpu_to_jax()
    if options.deterministic:
        make_deterministic()
    begin_session(options.seed)
    devices = use_all_devices(options.batch_size)
    capability = compute_capability()
    # Before the first tensor: TensorFlow takes all the memory there is then.
    free = free_device_memory(capability) if options.cache == "device" else None
    xla = choose_xla(options.xla, capability, options.deterministic)
    policy = choose_precision(options.precision, capability)
    classifier = build_classifier(options, job.shards.image, job.prevalence, policy, job.builder)
    if job.origin is not None:
        take_weights(classifier, job.origin.run.model)
    # Only now is everything known to be good.
    with held(job.run.path):
        begin_run(job.run, options, job.shards, job.origin.recorded() if job.origin else None)
        if job.run.is_complete:
            return
        if job.trained_on is not None:
            write_trained_on(job.run.trained_on, job.trained_on)
        _announce(job, policy, xla, devices)
        feed = open_feed(job, free)
        saved = checkpoint.load_newest(job.run.checkpoints)
        read, image = (*job.training, job.validation), job.shards.image
        with damage_reported(read, image, len(job.shards.labels)), device_errors_reported():
            finish(job, run_epochs(job, feed, classifier, xla, saved))


def _announce(job: Job, policy: str, xla: bool, devices: int) -> None:
    """Says what is about to be trained, and on what."""
    options = job.options
    if job.origin is not None:
        job.display.say(f"starts from the best model of {job.origin.run.path}, head and all")
    job.display.say(
        f"{options.model} at {options.image_size} x {options.image_size}, {policy}"
        f"{', XLA' if xla else ''}, {keras.backend.backend()}"
        f"{f' on {devices} devices' if devices > 1 else ''}:"
        f" {count(job.training)} slices to train on, {job.validation.examples} of"
        f" {job.validation.name} to validate on"
    )
    if unused := unused_gpus():
        job.display.say(f"{unused} more GPUs are there; with --backend jax all are used")


def run_epochs(
    job: Job, feed: Feed, classifier: Classifier, xla: bool, saved: Checkpoint | None
) -> Progress:
    """Trains until the last epoch, or until nothing gets better any more."""
    progress = (
        saved.progress if saved else Progress(thawed=None if job.options.freeze_epochs else 0)
    )
    if saved:
        job.display.say(f"resumes after epoch {progress.epoch}, step {progress.step}")
        draw_history(job, progress)
    model, phase = None, None
    while not progress.stopped and progress.epoch < last_epoch(job, progress):
        frozen = progress.thawed is None
        if phase != frozen:
            model, phase = compile_phase(job, feed, classifier, frozen, xla), frozen
            if saved and progress.begins_phase():
                checkpoint.restore_weights(model, saved)
                reset_averages(model)
            elif saved:
                checkpoint.restore(model, saved)
        row = train_epoch(job, feed, model, progress, saved)
        saved = None
        validate_epoch(job, feed, classifier, model, progress, row)
        checkpoint.save(job.run.checkpoints, checkpoint.capture(model, progress))
        draw_history(job, progress)
    return progress


def last_epoch(job: Job, progress: Progress) -> int:
    """The number of epochs; a head that got no better leaves the whole network its own."""
    options = job.options
    begun = options.freeze_epochs if progress.thawed is None else progress.thawed
    return begun + options.epochs - options.freeze_epochs


def train_epoch(
    job: Job, feed: Feed, model: Any, progress: Progress, saved: Checkpoint | None
) -> dict[str, Any]:
    """Trains an epoch, or what is left of it; its figures."""
    options = job.options
    clock = InputClock()
    order = Order(options.seed, progress.epoch, progress.step)
    batches = clock.measure(feed.batches(order))
    batches = batches.apply(tf.data.experimental.assert_cardinality(job.steps - progress.step))
    watch = StepWatch(job, progress, clock, saved)
    title = f"epoch {progress.epoch + 1} of {last_epoch(job, progress)}"
    job.display.begin(title, job.steps, progress.step)
    callbacks = Callbacks([watch], add_history=True, model=model)
    fitted = model.fit(batches, shuffle=False, verbose=0, callbacks=callbacks)
    speed, wait = watch.speed_and_wait()
    return {
        "epoch": progress.epoch + 1,
        "loss": fitted.history["loss"][-1],
        "learning_rate": learning_rate(model.optimizer),
        "images_per_second": speed,
        "input_wait": wait,
    }


def _predict_validation(job: Job, feed: Feed, classifier: Classifier) -> tuple[Any, Any]:
    """Labels and probabilities of the whole validation fold, [N, L] each."""
    cached = feed.validation_logits(classifier)
    if cached is not None:
        logits, labels = cached
        check_finite(logits, job.validation.name)
        return labels, probabilities(logits)
    predictions = predict_split(
        classifier.model,
        job.shards,
        job.validation,
        job.options.batch_size,
        job.display.update,
    )
    return predictions.labels, predictions.probabilities


def validate_epoch(
    job: Job,
    feed: Feed,
    classifier: Classifier,
    model: Any,
    progress: Progress,
    row: dict[str, Any],
) -> None:
    """Measures the validation fold, keeps the model if it is the best, and takes note."""
    with averaged_weights(model):
        job.display.begin(f"validating epoch {row['epoch']}", job.validation.examples)
        labels, predicted = _predict_validation(job, feed, classifier)
        figures = split_figures(labels, predicted, job.shards.labels, job.weights)
        aucs = {name: each["roc_auc"] for name, each in figures["labels"].items()}
        row |= {
            "val_loss": figures["weighted_log_loss"],
            "val_mean_roc_auc": figures["mean_roc_auc"],
            "val_roc_auc": aucs,
        }
        better = progress.end_epoch(row, job.options.freeze_epochs, job.options.patience)
        if better:
            write_whole(job.run.model, classifier.model.save)
    _report_epoch(job, progress, better)


def _report_epoch(job: Job, progress: Progress, better: bool) -> None:
    """Shows and logs the last epoch of the history."""
    row = progress.history[-1]
    auc = row["val_mean_roc_auc"]
    job.display.end()
    job.display.say(
        f"epoch {row['epoch']}: loss {row['loss']:.4f}, validation {row['val_loss']:.4f}"
        f"{f', mean AUC {auc:.4f}' if auc is not None else ''},"
        f" {row['images_per_second']:.1f} images/s, {row['input_wait']:.0%} waiting for input"
        f"{' (best so far)' if better else ''}"
    )
    write_json(job.run.path / "history.json", progress.history)
    tensorboard.log_epoch(job.run.path / "tensorboard", row)


def draw_history(job: Job, progress: Progress) -> None:
    """Draw the history so far; after the checkpoint, so that no drawing can cost an epoch."""
    if progress.history:
        figure = plots.plot_history(progress.history, job.shards.labels)
        plots.save_figure(figure, job.run.path / "history.png")


def finish(job: Job, progress: Progress) -> None:
    """Measures the best model, and completes the run with metrics.json."""
    evaluation = evaluation_of(job)
    predictions = predict_labeled(load_classifier(job.run.model, evaluation.xla), evaluation)
    figures = measure(predictions, evaluation)
    name = job.validation.name
    write_parquet(job.run.predictions(name), predictions, job.shards.labels)
    best = min(progress.history, key=lambda row: float(row["val_loss"]))
    metrics = {
        "epochs": progress.epoch,
        "best_epoch": best["epoch"],
        "stopped_early": progress.stopped,
        **figures,
    }
    # Not among the figures, which are the same wherever and whenever the same run is made.
    write_json(job.run.machine, describe_machine())
    write_json(job.run.metrics, metrics)
    checkpoint.clear(job.run.checkpoints)
    shutil.rmtree(job.run.cache, ignore_errors=True)
    if job.options.report:
        write_report(evaluation, MISTAKES)
    path = job.options.run
    show_figures(job.display, figures, f"{path}: {name}, epoch {best['epoch']}")
    if not job.is_part:
        job.display.point_out(next_command("evaluate", run=path))
