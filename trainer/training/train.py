"""Train a run: set up devices and network, run the loop, evaluate the best model."""

from __future__ import annotations

import shutil

import keras

from trainer.data.damage import damage_reported
from trainer.data.shards import count
from trainer.display import next_command, show_figures
from trainer.evaluation.evaluate import measure, predict_labeled
from trainer.evaluation.predict import write_parquet
from trainer.files import write_json
from trainer.networks.hardware import (
    begin_session,
    choose_precision,
    choose_xla,
    compute_capability,
    describe_machine,
    device_errors_reported,
    free_device_memory,
    leave_gpu_to_jax,
    make_deterministic,
    unused_gpus,
    use_all_devices,
)
from trainer.networks.model import build_classifier
from trainer.networks.saved_models import copy_saved_weights, load_classifier
from trainer.report.report import write_report
from trainer.runs import checkpoint
from trainer.runs.checkpoint import Progress
from trainer.runs.evaluation_setup import evaluation_of
from trainer.runs.run_directory import begin_run
from trainer.runs.run_lock import held
from trainer.runs.trained_on import write_trained_on
from trainer.runs.training_setup import TrainingSetup
from trainer.training.feeds import open_feed
from trainer.training.loop import run_epochs

MISTAKES = 12


def train(setup: TrainingSetup) -> None:
    """Train a run, or resume it.

    Raises:
        UsageError: the weights cannot be loaded, or a shard is damaged.
        Diverged: the loss is no longer finite.
    """
    options = setup.options
    leave_gpu_to_jax()
    if options.deterministic:
        make_deterministic()
    begin_session(options.seed)
    devices = use_all_devices(options.batch_size)
    capability = compute_capability()
    # Before the first tensor: TensorFlow then reserves all free memory.
    free = free_device_memory(capability) if options.cache == "device" else None
    xla = choose_xla(options.xla, capability, options.deterministic)
    policy = choose_precision(options.precision, capability)
    classifier = build_classifier(
        options, setup.shards.image, setup.prevalence, policy, setup.builder
    )
    if setup.origin is not None:
        copy_saved_weights(setup.origin.run.model, classifier.core)
    # All input is checked before anything is written.
    with held(setup.run.path):
        begin_run(
            setup.run, options, setup.shards, setup.origin.recorded() if setup.origin else None
        )
        if setup.run.is_complete:
            return
        if setup.trained_on is not None:
            write_trained_on(setup.run.trained_on, setup.trained_on)
        _announce(setup, policy, xla, devices)
        feed = open_feed(setup, free)
        saved = checkpoint.load_newest(setup.run.checkpoints)
        read = (*setup.training, setup.validation)
        with damage_reported(setup.shards, read), device_errors_reported():
            _finish(setup, run_epochs(setup, feed, classifier, xla, saved))


def _announce(setup: TrainingSetup, policy: str, xla: bool, devices: int) -> None:
    """Print the network, the devices and the number of slices."""
    options = setup.options
    if setup.origin is not None:
        setup.display.say(f"starts from the best model of {setup.origin.run.path}, head and all")
    setup.display.say(
        f"{options.model} at {options.image_size} x {options.image_size}, {policy}"
        f"{', XLA' if xla else ''}, {keras.backend.backend()}"
        f"{f' on {devices} devices' if devices > 1 else ''}:"
        f" {count(setup.training)} slices to train on, {setup.validation.examples} of"
        f" {setup.validation.name} to validate on"
    )
    if unused := unused_gpus():
        setup.display.say(f"{unused} more GPUs are there; with --backend jax all are used")


def _finish(setup: TrainingSetup, progress: Progress) -> None:
    """Evaluate the best model, and complete the run with metrics.json."""
    evaluation = evaluation_of(setup)
    classifier = load_classifier(setup.run.model, evaluation.xla)
    frame = predict_labeled(classifier, evaluation).frame()
    figures = measure(frame, evaluation)
    name = setup.validation.name
    write_parquet(setup.run.predictions(name), frame)
    best = min(progress.history, key=lambda row: float(row["val_loss"]))
    metrics = {
        "epochs": progress.epoch,
        "best_epoch": best["epoch"],
        "stopped_early": progress.stopped,
        **figures,
    }
    # Separate from the figures, which are reproducible.
    write_json(setup.run.machine, describe_machine())
    write_json(setup.run.metrics, metrics)
    checkpoint.clear(setup.run.checkpoints)
    shutil.rmtree(setup.run.cache, ignore_errors=True)
    if setup.options.report:
        write_report(evaluation, MISTAKES)
    path = setup.options.run
    show_figures(setup.display, figures, f"{path}: {name}, epoch {best['epoch']}")
    if not setup.is_fold:
        setup.display.print_unwrapped(next_command("evaluate", run=path))
