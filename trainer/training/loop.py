"""The training loop: phases, epochs, and the work between steps.

`training_model` contains the step. The loop dispatches the next step before the device finishes the
current step: a thread waits for the losses, and at most one call of the training function is in
flight.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from trainer.data.input_pipeline import as_written, with_options
from trainer.data.sampling import Order
from trainer.errors import Diverged
from trainer.evaluation.metrics import split_figures
from trainer.files import write_json, write_whole
from trainer.networks.model import Classifier
from trainer.report import plots
from trainer.runs import checkpoint
from trainer.runs.checkpoint import Checkpoint, Progress
from trainer.runs.training_setup import TrainingSetup
from trainer.training.feeds import Feed
from trainer.training.training_model import TrainingModel, compile_phase, learning_rate


def run_epochs(
    setup: TrainingSetup, feed: Feed, classifier: Classifier, xla: bool, saved: Checkpoint | None
) -> Progress:
    """Train until the last epoch, or until the validation loss stops improving.

    Args:
        setup: the run.
        feed: input of the run.
        classifier: network of the run.
        xla: whether to compile with XLA.
        saved: the checkpoint to resume from; None for a new run.
    """
    progress = (
        saved.progress if saved else Progress(thawed=None if setup.options.freeze_epochs else 0)
    )
    if saved:
        setup.display.say(f"resumes after epoch {progress.epoch}, step {progress.step}")
        draw_history(setup, progress)
    model: Any = None
    phase: bool | None = None
    while not progress.stopped and progress.epoch < last_epoch(setup, progress):
        frozen = progress.thawed is None
        if phase != frozen:
            model, phase = compile_phase(setup, feed, classifier, frozen, xla), frozen
            if saved and progress.begins_phase():
                checkpoint.restore_weights(model, saved)
                model.reset_averages()
            elif saved:
                checkpoint.restore(model, saved)
        row = train_epoch(setup, feed, model, progress, saved)
        saved = None
        validate_epoch(setup, feed, classifier, model, progress, row)
        checkpoint.save(setup.run.checkpoints, checkpoint.capture(model, progress))
        draw_history(setup, progress)
    return progress


def last_epoch(setup: TrainingSetup, progress: Progress) -> int:
    """Return the number of epochs; smaller if the head's phase stopped early."""
    options = setup.options
    head_epochs = options.freeze_epochs if progress.thawed is None else progress.thawed
    return head_epochs + options.epochs - options.freeze_epochs


def train_epoch(
    setup: TrainingSetup, feed: Feed, model: Any, progress: Progress, saved: Checkpoint | None
) -> dict[str, Any]:
    """Train an epoch, or the rest of it, and return its row of the history."""
    options = setup.options
    clock = InputClock()
    order = Order(options.seed, progress.epoch, progress.step)
    batches = clock.measure(feed.batches(order))
    batches = batches.apply(tf.data.experimental.assert_cardinality(setup.steps - progress.step))
    steps = StepCallback(setup, progress, clock, saved)
    title = f"epoch {progress.epoch + 1} of {last_epoch(setup, progress)}"
    setup.display.begin(title, setup.steps, progress.step)
    callbacks = CallbackList([steps], add_history=True, model=model)
    fitted = model.fit(batches, shuffle=False, verbose=0, callbacks=callbacks)
    speed, wait = steps.speed_and_wait()
    return {
        "epoch": progress.epoch + 1,
        "loss": fitted.history["loss"][-1],
        "learning_rate": learning_rate(model.optimizer),
        "images_per_second": speed,
        "input_wait": wait,
    }


def validate_epoch(
    setup: TrainingSetup,
    feed: Feed,
    classifier: Classifier,
    model: TrainingModel,
    progress: Progress,
    row: dict[str, Any],
) -> None:
    """Evaluate the validation fold, save the model if it is the best, and record the epoch."""
    with model.averaged_weights():
        setup.display.begin(f"validating epoch {row['epoch']}", setup.validation.examples)
        labels, predicted = feed.predict_validation(classifier)
        figures = split_figures(labels, predicted, setup.shards.labels, setup.weights)
        row |= {
            "val_loss": figures["weighted_log_loss"],
            "val_mean_roc_auc": figures["mean_roc_auc"],
            "val_roc_auc": {name: label["roc_auc"] for name, label in figures["labels"].items()},
        }
        better = progress.end_epoch(row, setup.options.freeze_epochs, setup.options.patience)
        if better:
            write_whole(setup.run.model, classifier.model.save)
    auc = row["val_mean_roc_auc"]
    setup.display.end()
    setup.display.say(
        f"epoch {row['epoch']}: loss {row['loss']:.4f}, validation {row['val_loss']:.4f}"
        f"{f', mean AUC {auc:.4f}' if auc is not None else ''},"
        f" {row['images_per_second']:.1f} images/s, {row['input_wait']:.0%} waiting for input"
        f"{' (best so far)' if better else ''}"
    )
    write_json(setup.run.path / "history.json", progress.history)
    plots.log_epoch(setup.run.path / "tensorboard", row)


def draw_history(setup: TrainingSetup, progress: Progress) -> None:
    """Draw the history so far; called after the checkpoint, so that a failure costs no epoch."""
    if progress.history:
        figure = plots.plot_history(progress.history, setup.shards.labels)
        plots.save_figure(figure, setup.run.path / "history.png")


class CallbackList(keras.callbacks.CallbackList):  # type: ignore[misc,unused-ignore]
    """Passes on uncomputed losses; Keras's list would wait for the device after every step."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Call every callback."""
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class StepCallback(keras.callbacks.Callback):  # type: ignore[misc,unused-ignore]
    """Counts steps, checks the loss, saves checkpoints and shows progress."""

    def __init__(
        self, setup: TrainingSetup, progress: Progress, clock: InputClock, saved: Checkpoint | None
    ) -> None:
        super().__init__()
        self.setup, self.progress, self.clock, self.saved = setup, progress, clock, saved
        self.first = progress.step
        self.started = self.last_saved = time.monotonic()
        self.last_saved_step = progress.step
        self.loss, self.loss_step = 0.0, progress.step
        self.waiter = ThreadPoolExecutor(1)
        self.in_flight: Future[None] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Restore the running mean of the loss, which Keras resets, in a resumed epoch."""
        if self.saved is not None and self.first:
            checkpoint.restore_metrics(self.model, self.saved)

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
        if self.is_checkpoint_due() and self.progress.step < self.setup.steps:
            self.in_flight.result()
            self.check_loss_and_show_progress()
            self.last_saved, self.last_saved_step = time.monotonic(), self.progress.step
            checkpoint.save(
                self.setup.run.checkpoints, checkpoint.capture(self.model, self.progress)
            )

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

    def is_checkpoint_due(self) -> bool:
        """Return whether enough steps or seconds have passed since the last checkpoint."""
        options = self.setup.options
        steps, seconds = options.checkpoint_steps, options.checkpoint_seconds
        by_steps = steps and self.progress.step - self.last_saved_step >= steps
        by_time = seconds and time.monotonic() - self.last_saved >= seconds
        return bool(by_steps or by_time)

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
    idle_since: float = field(default=0.0, repr=False)
    requested: float = field(default=0.0, repr=False)

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
