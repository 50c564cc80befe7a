"""Train a run: devices and network, phases and epochs, and the work between steps.

`training_model` contains the step. The next step is dispatched before the device finishes the
current step: a thread waits for the losses, and at most one call of the training function is in
flight.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from trainer.data.damage import damage_reported
from trainer.data.image_cache import cache_bytes
from trainer.data.input_pipeline import as_written, with_options
from trainer.data.sampling import Order
from trainer.data.shards import count
from trainer.display import next_command, show_figures
from trainer.errors import Diverged
from trainer.evaluation.evaluate import measure, predict_labeled
from trainer.evaluation.metrics import split_figures
from trainer.evaluation.predict import write_parquet
from trainer.files import write_json, write_whole
from trainer.networks import hardware
from trainer.networks.answers import in_flight
from trainer.networks.model import Classifier, build_classifier
from trainer.networks.saved_models import copy_saved_weights
from trainer.report import plots
from trainer.report.report import write_report
from trainer.runs import checkpoint
from trainer.runs.checkpoint import Checkpoint, Progress
from trainer.runs.evaluation_setup import evaluation_of
from trainer.runs.run import Run
from trainer.runs.training_setup import TrainingSetup
from trainer.training.feeds import Feed, open_feed
from trainer.training.tracking import Tracking, tracked
from trainer.training.training_model import compile_phase, learning_rate

MISTAKES = 12


def train(setup: TrainingSetup) -> None:
    """Train a run, or resume it.

    Raises:
        UsageError: the weights cannot be loaded, or a shard is damaged.
        Diverged: the loss is no longer finite.
    """
    options, run = setup.options, setup.run
    hardware.set_up_jax()
    if options.deterministic:
        hardware.make_deterministic()
    hardware.begin_session(options.seed)
    is_given = "batch_size" in options.model_fields_set
    memory = None if is_given else hardware.gpu_memory()
    devices = hardware.use_all_devices(options.batch_size if memory is None else None)
    capability = hardware.compute_capability()
    xla = hardware.choose_xla(options.xla, capability, options.deterministic)
    policy = hardware.choose_precision(options.precision, capability)
    classifier = build_classifier(
        options, setup.shards.image, setup.prevalence, policy, setup.builder
    )
    if memory is not None:
        setup = with_batch_size(setup, classifier, memory, devices)
        options = setup.options
    if setup.origin is not None:
        copy_saved_weights(Run(Path(setup.origin.run)).model, classifier.core)
    # All input is checked before anything is written.
    with run.begun(options, setup.shards, setup.origin):
        if run.is_complete:
            return
        if (hashes := setup.trained_on) is not None:
            write_whole(run.trained_on, lambda path: hashes.to_parquet(path, index=False))
        display = setup.display
        if setup.origin is not None:
            display.say(f"starts from the best model of {setup.origin.run}, head and all")
        display.say(
            f"{options.model} at {options.image_size} x {options.image_size}, {policy}"
            f"{', XLA' if xla else ''}, {keras.backend.backend()}"
            f"{f' on {devices} devices' if devices > 1 else ''}:"
            f" {count(setup.training)} slices to train on, {setup.validation.examples} of"
            f" {setup.validation.name} to validate on"
        )
        if capability is not None and not xla:
            display.say(
                "batch normalization is not fused without XLA: steps take 10 to 25 % longer"
                " (by reckoning); --backend jax has XLA with --deterministic, too"
            )
        if unused := hardware.unused_gpus():
            display.say(f"{unused} more GPUs are there; with --backend jax all are used")
        feed = open_feed(setup)
        saved = checkpoint.load_newest(run.checkpoints)
        read = (*setup.training, setup.validation)
        with (
            damage_reported(setup.shards, read),
            hardware.device_errors_reported(),
            tracked(options, run, display, Run(run.path.parent) if setup.is_fold else None) as sent,
        ):
            progress = Loop(setup, feed, classifier, xla, saved, sent).run()
            _finish(setup, progress, classifier, xla, sent)


def with_batch_size(
    setup: TrainingSetup, classifier: Classifier, memory: int, devices: int
) -> TrainingSetup:
    """Return the setup with the batch size for GPUs with so many bytes of memory each."""
    options, examples = setup.options, count(setup.training)
    if options.cache == "device":
        memory -= cache_bytes(setup.shards, examples, options.image_size)
    size = hardware.choose_batch_size(classifier.core, memory, devices, examples)
    setup.display.say(f"--batch_size {size}, by the memory of the GPU")
    return replace(setup, options=options.model_copy(update={"batch_size": size}))


def _finish(
    setup: TrainingSetup, progress: Progress, classifier: Classifier, xla: bool, tracking: Tracking
) -> None:
    """Evaluate the best model, and complete the run with metrics.json."""
    run, name, evaluation = setup.run, setup.validation.name, evaluation_of(setup)
    # The network of the training, which is compiled already.
    copy_saved_weights(run.model, classifier.core)
    classifier.model.jit_compile = xla
    frame = predict_labeled(evaluation, classifier.model).frame()
    figures = measure(frame, evaluation)
    write_parquet(run.predictions(name), frame)
    best = min(progress.history, key=lambda row: float(row["val_loss"]))
    metrics = {
        "epochs": progress.epoch,
        "best_epoch": best["epoch"],
        "stopped_early": progress.stopped,
        **figures,
    }
    # Separate from the figures, which are reproducible.
    write_json(run.machine, hardware.describe_machine())
    write_json(run.metrics, metrics)
    for path in checkpoint.checkpoints(run.checkpoints):  # large, and not needed any more
        path.unlink()
    shutil.rmtree(run.cache, ignore_errors=True)
    if setup.options.report:
        write_report(evaluation, MISTAKES)
    tracking.end(metrics, progress.history)
    show_figures(setup.display, figures, f"{run.path}: {name}, epoch {best['epoch']}")
    if not setup.is_fold:
        setup.display.print_unwrapped(next_command("evaluate", run=run.path))


class Loop:
    """The epochs of a run, until the last one or until the validation loss stops improving.

    Args:
        setup: the run.
        feed: input of the run.
        classifier: network of the run.
        xla: whether to compile with XLA.
        saved: the checkpoint to resume from; None for a new run.
        tracking: trackers, which get the figures of every epoch.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        feed: Feed,
        classifier: Classifier,
        xla: bool,
        saved: Checkpoint | None,
        tracking: Tracking,
    ) -> None:
        self.setup, self.feed, self.classifier, self.xla = setup, feed, classifier, xla
        self.tracking = tracking
        self.saved = saved  # until training has resumed
        new = Progress(thawed=None if setup.options.freeze_epochs else 0)
        self.progress = saved.progress if saved else new
        self.model: Any = None

    def run(self) -> Progress:
        """Train."""
        setup, progress = self.setup, self.progress
        if self.saved:
            setup.display.say(f"resumes after epoch {progress.epoch}, step {progress.step}")
            self.draw_history()
        phase: bool | None = None
        while not progress.stopped and progress.epoch < self.last_epoch:
            frozen = progress.thawed is None
            if phase != frozen:
                phase = frozen
                self.begin_phase(frozen)
            row = self.train_epoch()
            self.saved = None
            if setup.options.swa_epochs:
                # Before the last epochs, the averages are the weights.
                first = self.last_epoch - setup.options.swa_epochs
                self.model.average_epoch(max(1, progress.epoch + 1 - first))
            self.validate_epoch(row)
            checkpoint.save(setup.run.checkpoints, checkpoint.capture(self.model, progress))
            self.tracking.log(progress.history)
            self.draw_history()
        return progress

    @property
    def last_epoch(self) -> int:
        """The number of epochs; smaller if the head's phase stopped early."""
        options, thawed = self.setup.options, self.progress.thawed
        head_epochs = options.freeze_epochs if thawed is None else thawed
        return head_epochs + options.epochs - options.freeze_epochs

    def begin_phase(self, frozen: bool) -> None:
        """Make the model of a phase: of the head alone if `frozen`, or of the whole network."""
        self.model = compile_phase(self.setup, self.feed, self.classifier, frozen, self.xla)
        if self.saved and self.progress.begins_phase():
            # The optimizer is new.
            checkpoint.restore(self.model, self.saved, "weights")
            self.model.reset_averages()
        elif self.saved:
            checkpoint.restore(self.model, self.saved)

    def train_epoch(self) -> dict[str, Any]:
        """Train an epoch, or the rest of it, and return its row of the history."""
        setup, progress = self.setup, self.progress
        steps = StepCallback(setup, progress, self.saved)
        order = Order(setup.options.seed, progress.epoch, progress.step)
        batches = steps.clock.measure(self.feed.batches(order))
        left = setup.steps - progress.step
        batches = batches.apply(tf.data.experimental.assert_cardinality(left))
        title = f"epoch {progress.epoch + 1} of {self.last_epoch}"
        setup.display.begin(title, setup.steps, progress.step)
        callbacks = CallbackList([steps], add_history=True, model=self.model)
        fitted = self.model.fit(
            copied_ahead(batches),
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
            steps_per_epoch=left,
        )
        speed, wait = steps.speed_and_wait()
        return {
            "epoch": progress.epoch + 1,
            "loss": fitted.history["loss"][-1],
            "learning_rate": learning_rate(self.model.optimizer),
            "images_per_second": speed,
            "input_wait": wait,
        }

    def validate_epoch(self, row: dict[str, Any]) -> None:
        """Evaluate the validation fold, save the model if it is the best, and record the epoch."""
        setup, progress, display = self.setup, self.progress, self.setup.display
        with self.model.averaged_weights():
            display.begin(f"validating epoch {row['epoch']}", setup.validation.examples)
            labels, predicted = self.feed.predict_validation(self.classifier)
            figures = split_figures(labels, predicted, setup.shards.labels, setup.weights)
            row |= {
                "val_loss": figures["weighted_log_loss"],
                "val_mean_roc_auc": figures["mean_roc_auc"],
                "val_roc_auc": {name: one["roc_auc"] for name, one in figures["labels"].items()},
            }
            better = progress.end_epoch(row, setup.options.freeze_epochs, setup.options.patience)
            if better:
                write_whole(setup.run.model, self.classifier.model.save)
        auc = row["val_mean_roc_auc"]
        display.end()
        display.say(
            f"epoch {row['epoch']}: loss {row['loss']:.4f}, validation {row['val_loss']:.4f}"
            f"{f', mean AUC {auc:.4f}' if auc is not None else ''},"
            f" {row['images_per_second']:.1f} images/s, {row['input_wait']:.0%} waiting for input"
            f"{' (best so far)' if better else ''}"
        )
        write_json(setup.run.history, progress.history)
        plots.log_epoch(setup.run.path / "tensorboard", row)

    def draw_history(self) -> None:
        """Draw the history so far; called after the checkpoint, so a failure costs no epoch."""
        if self.progress.history:
            figure = plots.plot_history(self.progress.history, self.setup.shards.labels)
            plots.save_figure(figure, self.setup.run.path / "history.png")


def copied_ahead(batches: Any) -> Any:
    """Return the batches of a dataset, two of them copied to the device ahead of the step.

    Keras would copy each in its step with TensorFlow, and with JAX on several devices only the
    next one ahead.
    """
    if keras.backend.backend() == "jax":
        # The next one; and the one after it, because `fit` does not wait for the current step.
        numbered = enumerate(batches.as_numpy_iterator())
        return (copy for _, copy in in_flight(numbered, hardware.begin_copy))
    gpu = hardware.tensorflow_gpu()
    if gpu is None:
        return batches
    return batches.apply(tf.data.experimental.prefetch_to_device(gpu, 2))


class CallbackList(keras.callbacks.CallbackList):  # type: ignore[misc,unused-ignore]
    """Passes on uncomputed losses; Keras's list would wait for the device after every step."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Call every callback."""
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class StepCallback(keras.callbacks.Callback):  # type: ignore[misc,unused-ignore]
    """Counts steps, checks the loss, saves checkpoints and shows progress."""

    def __init__(
        self, setup: TrainingSetup, progress: Progress, saved: Checkpoint | None = None
    ) -> None:
        super().__init__()
        self.setup, self.progress, self.saved, self.clock = setup, progress, saved, InputClock()
        self.first = self.last_saved_step = self.loss_step = progress.step
        self.started = self.last_saved = time.monotonic()
        self.loss = 0.0
        self.waiter = ThreadPoolExecutor(1)
        self.in_flight: Future[None] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Restore the running mean of the loss, which Keras resets, in a resumed epoch."""
        if self.saved is not None and self.first:
            checkpoint.restore(self.model, self.saved, "metrics")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Handle one step, or `steps_per_execution` steps, after they are dispatched.

        The previous steps are computed on return.
        """
        steps = batch + 1
        self.clock.dispatched, self.progress.step = steps, self.first + steps
        before, self.in_flight = self.in_flight, self.waiter.submit(self.wait, steps, logs["loss"])
        if before is not None:
            before.result()
        self.check_loss_and_show_progress()
        options, now = self.setup.options, time.monotonic()
        by_steps = 0 < options.checkpoint_steps <= self.progress.step - self.last_saved_step
        by_time = 0 < options.checkpoint_seconds <= now - self.last_saved
        if (by_steps or by_time) and self.progress.step < self.setup.steps:
            self.in_flight.result()
            self.check_loss_and_show_progress()
            self.last_saved, self.last_saved_step = time.monotonic(), self.progress.step
            state = checkpoint.capture(self.model, self.progress)
            checkpoint.save(self.setup.run.checkpoints, state)

    def wait(self, steps: int, loss: Any) -> None:
        """In a thread, wait until the device has computed the first `steps` steps."""
        value = float(loss)
        self.clock.mark_computed(steps)
        if math.isfinite(self.loss):
            self.loss, self.loss_step = value, self.first + steps

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Wait for the last step."""
        if self.in_flight is not None:
            self.in_flight.result()
        self.waiter.shutdown()
        self.check_loss_and_show_progress()

    def check_loss_and_show_progress(self) -> None:
        """Check the latest computed loss, and update the progress line.

        Raises:
            Diverged: the running mean of the loss is not finite, and cannot recover.
        """
        if not math.isfinite(self.loss):
            raise Diverged(
                f"the loss is {self.loss} at epoch {self.progress.epoch + 1}, step"
                f" {self.loss_step}; try a lower --learning_rate, --clip_norm 1"
                " or --precision float32 in a new run directory"
            )
        self.setup.display.update(self.progress.step, self.detail)

    def detail(self) -> str:
        """Describe loss, speed and the share of time spent waiting for input."""
        speed, wait = self.speed_and_wait()
        return f"loss {self.loss:.4f}, {speed:.0f} images/s, {wait:.0%} waiting for input"

    def speed_and_wait(self) -> tuple[float, float]:
        """Return images per second since the start, and the share of time spent waiting."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        images = (self.progress.step - self.first) * self.setup.options.batch_size
        return images / seconds, min(self.clock.waited / seconds, 1.0)


@dataclass
class InputClock:
    """Measures how long a device is idle because its input is not ready.

    The callback reports each dispatched step; otherwise the device counts as idle whenever a batch
    is requested. Several steps per call are reported together, so the sum is an upper bound.

    Attributes:
        waited: seconds.
        dispatched: number of steps sent to the device.
        computed: number of steps that the device has finished.
    """

    waited: float = 0.0
    dispatched: int = 0
    computed: int = 0
    idle_since: float = 0.0
    requested: float = 0.0

    def mark_computed(self, steps: int) -> None:
        """Record that the device has finished the first `steps` steps."""
        self.computed, self.idle_since = steps, time.perf_counter()

    def request(self, index: Any) -> Any:
        """Record that a batch is requested."""
        self.requested = time.perf_counter()
        return index

    def receive(self, index: Any) -> Any:
        """Record that the batch is ready."""
        if self.computed >= self.dispatched:
            self.waited += time.perf_counter() - max(self.requested, self.idle_since)
        return index

    def measure(self, batches: Any) -> Any:
        """Return the same batches, and time the requests for them.

        A zip reads its datasets in order, so the clock is called before and after each batch.
        """
        before, after = _counter_calling(self.request), _counter_calling(self.receive)
        timed = tf.data.Dataset.zip((before, batches, after))
        return with_options(timed.map(as_written(lambda _, batch, __: batch)))


def _counter_calling(function: Callable[[Any], Any]) -> Any:
    """Return a dataset of 0, 1, 2, … that calls `function` on every request."""

    def call(number: Any) -> Any:
        # Declared stateless: a stateful function would serialize the pipeline (--deterministic).
        return tf.numpy_function(function, [number], tf.int64, stateful=False)

    return tf.data.Dataset.counter().map(as_written(call))
