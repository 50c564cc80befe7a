"""Train a scan model on the features of a run's slice network, or resume it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from headct.layout import IMAGE_ID
from trainer.display import Display, next_command, show_figures
from trainer.errors import Diverged
from trainer.evaluation.evaluate import measure, predict_labeled
from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import probabilities, split_figures, weighted_log_loss
from trainer.evaluation.predict import write_parquet
from trainer.files import file_sha256, write_json, write_whole
from trainer.networks import hardware
from trainer.networks.saved_models import load_classifier
from trainer.networks.scan_model import (
    SCAN,
    SLICES,
    arrange,
    build_scan_model,
    control_scans,
    correct,
    features_model,
)
from trainer.report.report import write_report
from trainer.runs import checkpoint
from trainer.runs.checkpoint import Progress
from trainer.runs.scan_setup import ScanSetup
from trainer.training.scan_features import ScanFeatures, extract_features
from trainer.training.training_model import WeightedBinaryCrossentropy

MISTAKES = 12
_THINNED = 0.25  # share of the crops that take every second slice
# A gap between training and validation loss that the scan model would take for certainty.
_OVERFITTED = 2.0


def train_scans(setup: ScanSetup) -> None:
    """Train the scan model of a run, or resume it.

    Raises:
        UsageError: a shard is damaged, or the network cannot be loaded.
        Diverged: the loss is no longer finite.
    """
    options, run, display = setup.options, setup.run, setup.display
    hardware.leave_gpu_to_jax()
    hardware.begin_session(options.seed)
    with setup.begun(), hardware.device_errors_reported():
        if run.is_complete:
            return
        training, validation = read_features(setup)
        before = baseline(setup, training, validation)
        labels = len(setup.shards.labels)
        size = training[0].features.shape[1]
        model = build_scan_model(options.kind, size, labels, options.units, options.dropout)
        batches = Batches(
            training, options.crop, options.scans_a_step, options.seed, options.control
        )
        compile_model(model, setup, batches.steps)
        progress = Progress(thawed=0, best_loss=before)
        if (saved := checkpoint.load_newest(run.checkpoints)) is not None:
            checkpoint.restore(model, saved, "weights", "optimizer")
            progress = saved.progress
            display.say(f"resumes after epoch {progress.epoch}")
        else:
            write_whole(run.scan_model, model.save)  # the slice model's own answers
        while not progress.stopped and progress.epoch < options.epochs:
            train_epoch(setup, model, batches, validation, progress)
            checkpoint.save(run.checkpoints, checkpoint.capture(model, progress))
        finish(setup, progress)


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
        f"{setup.options.kind} on {scans} scans to train on, {len(validation.scans)} of"
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


def compile_model(model: Any, setup: ScanSetup, steps: int) -> None:
    """Compile the model; the loss is that of slices and scans, or of scans alone."""
    options = setup.options
    schedule = keras.optimizers.schedules.CosineDecay(options.learning_rate, options.epochs * steps)
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=options.weight_decay, global_clipnorm=1.0, name="optimizer"
    )
    optimizer.exclude_from_weight_decay(
        var_list=[weight for weight in model.trainable_variables if len(weight.shape) < 2]
    )
    loss = WeightedBinaryCrossentropy(setup.slices.weights)
    model.compile(
        optimizer,
        loss={SLICES: loss, SCAN: loss},
        loss_weights={SLICES: 0.0 if setup.of_scans else 1.0, SCAN: 1.0 if setup.of_scans else 0.1},
    )
    optimizer.build(model.trainable_variables)


class Batches:
    """Crops of scans, changed at random: every second slice dropped, and reversed.

    A long scan gives several crops per epoch.

    Args:
        training: features of the training splits.
        crop: slices of a crop, at most.
        size: crops per step.
        seed: of all draws; an epoch's depend on it and on the epoch alone.
        control: as in `control_scans`, which the scans have passed; a step has as many slices.
    """

    def __init__(
        self,
        training: list[ScanFeatures],
        crop: int,
        size: int,
        seed: int,
        control: str = "none",
    ) -> None:
        self.training, self.seed, self.shuffled = training, seed, control == "shuffled"
        self.crop, self.size = (1, crop * size) if control == "alone" else (crop, size)
        crop = self.crop
        self.scans = [
            (number, begin, end)
            for number, one in enumerate(training)
            for begin, end in one.scans.ranges()
        ]
        crops = [math.ceil((end - begin) / crop) for _, begin, end in self.scans]
        self.drawn = np.repeat(np.arange(len(self.scans)), crops)

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return math.ceil(len(self.drawn) / self.size)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any, Any]]:
        """Yield inputs, labels and weights of each step."""
        random = np.random.default_rng((self.seed, number))
        order = np.resize(random.permutation(self.drawn), self.steps * self.size)
        for chosen in order.reshape(self.steps, self.size):
            parts = [self.draw(self.scans[scan], random) for scan in chosen]
            inputs = {name: np.stack([one[0][name] for one in parts]) for name in parts[0][0]}
            labels = np.stack([labels for _, labels in parts])
            mask = inputs["mask"][..., 0]
            yield (
                inputs,
                {SLICES: labels, SCAN: labels.max(axis=1)},
                # Keras divides by all, padding too.
                {SLICES: mask * (mask.size / mask.sum()), SCAN: np.ones(len(parts), np.float32)},
            )

    def draw(
        self, scan: tuple[int, int, int], random: np.random.Generator
    ) -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
        """Return the inputs of a crop, and its labels, [crop, L]."""
        number, begin, end = scan
        found = self.training[number]
        step = 2 if random.random() < _THINNED and end - begin > 2 else 1
        rows = np.arange(begin + int(random.integers(step)), end, step)
        if self.shuffled:
            random.shuffle(rows)
        first = int(random.integers(max(len(rows) - self.crop, 0) + 1))
        rows = rows[first : first + self.crop]
        if random.random() < 0.5:
            rows = rows[::-1]
        z = found.scans.z[rows]
        inputs = arrange(found.features[rows], found.logits[rows], z, self.crop)
        labels = np.zeros((self.crop, found.labels.shape[1]), np.float32)
        labels[: len(rows)] = found.labels[rows]
        return inputs, labels


def train_epoch(
    setup: ScanSetup, model: Any, batches: Batches, validation: ScanFeatures, progress: Progress
) -> None:
    """Train and validate an epoch; save the model if it is the best so far."""
    options, run, display = setup.options, setup.run, setup.display
    display.begin(f"epoch {progress.epoch + 1} of {options.epochs}", batches.steps)
    begun, losses, slices = time.monotonic(), [], 0.0
    for step, (inputs, labels, weights) in enumerate(batches.epoch(progress.epoch), 1):
        losses.append(
            float(model.train_on_batch(inputs, labels, weights, return_dict=True)["loss"])
        )
        slices += float(inputs["mask"].sum())
        model.reset_metrics()
        if not math.isfinite(losses[-1]):
            raise Diverged(
                f"the loss is {losses[-1]} at epoch {progress.epoch + 1}, step {step}; try a lower"
                " --learning_rate in a new run directory"
            )
        display.update(step)
    seconds = max(time.monotonic() - begun, 1e-9)
    found = correct(
        model, validation.features, validation.logits, validation.scans, options.both_directions
    )
    figures = split_figures(
        validation.labels, probabilities(found[0]), setup.shards.labels, setup.slices.weights
    )
    row = {
        "epoch": progress.epoch + 1,
        "loss": float(np.mean(losses)),
        "learning_rate": float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
        "images_per_second": slices / seconds,
        "input_wait": 0.0,
        "val_loss": scan_loss(setup, validation, *found),
        "val_mean_roc_auc": figures["mean_roc_auc"],
        "val_roc_auc": {name: one["roc_auc"] for name, one in figures["labels"].items()},
    }
    better = progress.end_epoch(row, 0, options.patience)
    if better:
        write_whole(run.scan_model, model.save)
    write_json(run.history, progress.history)
    display.end()
    display.say(
        f"epoch {row['epoch']}: loss {row['loss']:.4f}, validation {row['val_loss']:.4f}"
        f"{' (best so far)' if better else ''}"
    )


def finish(setup: ScanSetup, progress: Progress) -> None:
    """Evaluate the best model, compare it with the slice network, and complete the run."""
    run, display, evaluation = setup.run, setup.display, setup.evaluation()
    frame = predict_labeled(evaluation).frame()
    figures = measure(frame, evaluation)
    name = setup.validation.name
    write_parquet(run.predictions(name), frame)
    best = [row["epoch"] for row in progress.history if row["val_loss"] == progress.best_loss]
    against = compare_with_slices(frame, setup.shards.labels, setup.weights)
    metrics = {
        "epochs": progress.epoch,
        "best_epoch": best[0] if best else 0,
        "stopped_early": progress.stopped,
        **figures,
        "against_slices": against,
    }
    write_json(run.machine, hardware.describe_machine())
    write_json(run.metrics, metrics)
    for path in checkpoint.checkpoints(run.checkpoints):
        path.unlink()
    if setup.options.report:
        write_report(evaluation, MISTAKES)
    show_figures(display, metrics, f"{run.path}: {name}, epoch {metrics['best_epoch']}")
    say_against_slices(display, against)
    if not setup.is_fold:
        display.print_unwrapped(next_command("evaluate", run=run.path))


def say_against_slices(display: Display, against: dict[str, Any]) -> None:
    """Print what a scan model changes, from `compare_with_slices`."""
    ends = against["difference_interval_95"]
    display.say(
        f"Slice network alone: log loss {against['weighted_log_loss']:.4f}; the scan model changes"
        f" it by {against['difference']:+.4f}"
        f"{f' (95 % interval {ends[0]:+.4f} to {ends[1]:+.4f})' if ends else ''}:"
        f" {'it helps' if against['helps'] else 'no clear gain'}."
    )


def compare_with_slices(
    frame: Any, names: tuple[str, ...], weights: tuple[float, ...]
) -> dict[str, Any]:
    """Return the slice network's loss on the same slices, and the paired difference to it.

    Args:
        frame: predictions of a scan model, with alone_<name>.
        names: of the labels.
        weights: of the labels in the loss.
    """
    with_it, without = (
        Measured(one.sort_values(IMAGE_ID, ignore_index=True), names, weights)
        for one in (frame, frame.assign(**{f"probability_{n}": frame[f"alone_{n}"] for n in names}))
    )
    difference = with_it.difference(without, "log_loss")
    return {
        "weighted_log_loss": without.figures["weighted_log_loss"],
        "mean_roc_auc": without.figures["mean_roc_auc"],
        "difference": difference.value,
        "difference_interval_95": difference.ends,
        "helps": bool(difference.ends and difference.ends[1] < 0),
    }
