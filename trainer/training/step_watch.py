"""What happens between two training steps.

The device has its next step before it ends this one: a thread waits for the loss of each,
and no more than one call of the training function is left uncomputed.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras

from trainer.errors import Diverged
from trainer.runs import checkpoint
from trainer.runs.checkpoint import Checkpoint, Progress
from trainer.runs.job import Job
from trainer.training.input_clock import InputClock


class Callbacks(keras.callbacks.CallbackList):  # type: ignore[misc,unused-ignore]
    """Keras's list of callbacks, which would wait for the device after every step."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Passes the loss on as it is, computed or not."""
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class StepWatch(keras.callbacks.Callback):  # type: ignore[misc,unused-ignore]
    """Counts steps, checks the loss, saves checkpoints and shows progress."""

    def __init__(
        self, job: Job, progress: Progress, clock: InputClock, saved: Checkpoint | None
    ) -> None:
        super().__init__()
        self.job, self.progress, self.clock, self.saved = job, progress, clock, saved
        self.first = progress.step
        self.started = self.last_saved = time.monotonic()
        self.last_saved_step = progress.step
        self.loss, self.loss_step = 0.0, progress.step
        self.waiter = ThreadPoolExecutor(1)
        self.underway: Future[None] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keras has just reset the running mean of the loss; half an epoch may be in it."""
        if self.saved is not None and self.first:
            checkpoint.restore_metrics(self.model, self.saved)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """A step, or `steps_per_execution` of them, is handed over; those before are computed."""
        steps = batch + 1
        self.clock.handed, self.progress.step = steps, self.first + steps
        before, self.underway = self.underway, self.waiter.submit(self.wait, steps, logs["loss"])
        if before is not None:
            before.result()
        self.take_stock()
        if self.is_due() and self.progress.step < self.job.steps:
            self.underway.result()
            self.take_stock()
            self.last_saved, self.last_saved_step = time.monotonic(), self.progress.step
            checkpoint.save(self.job.run.checkpoints, checkpoint.capture(self.model, self.progress))

    def wait(self, steps: int, loss: Any) -> None:
        """Waits in a thread until the device is done with the first `steps` steps."""
        value = float(loss)
        self.clock.has_computed(steps)
        if math.isfinite(self.loss):
            self.loss, self.loss_step = value, self.first + steps

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """The last step is handed over."""
        if self.underway is not None:
            self.underway.result()
        self.waiter.shutdown()
        self.take_stock()

    def take_stock(self) -> None:
        """Looks at the last loss there is, and shows how far training has come.

        Raises:
            Diverged: the running mean of the loss is not finite, as it stays from then on.
        """
        if not math.isfinite(self.loss):
            raise Diverged(
                f"the loss is {self.loss} at epoch {self.progress.epoch + 1}, step"
                f" {self.loss_step}; try a lower --learning_rate, --clip_norm 1"
                " or --precision float32 in a new run directory"
            )
        self.job.display.update(self.progress.step, self.detail)

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        options = self.job.options
        steps, seconds = options.checkpoint_steps, options.checkpoint_seconds
        by_steps = steps and self.progress.step - self.last_saved_step >= steps
        by_time = seconds and time.monotonic() - self.last_saved >= seconds
        return bool(by_steps or by_time)

    def detail(self) -> str:
        """Loss, speed and how much of the time went by waiting for data."""
        speed, wait = self.speed_and_wait()
        return f"loss {self.loss:.4f}, {speed:.0f} images/s, {wait:.0%} waiting for input"

    def speed_and_wait(self) -> tuple[float, float]:
        """Images a second since the start, and the share of that time spent waiting."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        images = (self.progress.step - self.first) * self.job.options.batch_size
        return images / seconds, min(self.clock.waited / seconds, 1.0)
