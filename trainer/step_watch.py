"""What happens between two training steps."""

from __future__ import annotations

import math
import time
from typing import Any

import keras

from trainer import checkpoint
from trainer.checkpoint import Checkpoint, Progress
from trainer.errors import Diverged
from trainer.input_pipeline import InputClock
from trainer.job import Job


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

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keras has just reset the running mean of the loss; half an epoch may be in it."""
        if self.saved is not None and self.first:
            checkpoint.restore_metrics(self.model, self.saved)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """A step, or `steps_per_execution` of them, is done."""
        loss = float(logs["loss"])
        self.progress.step = self.first + batch + 1
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss is {loss} at epoch {self.progress.epoch + 1}, step"
                f" {self.progress.step}; try a lower --learning_rate, --clip_norm 1"
                " or --precision float32 in a new run directory"
            )
        self.job.display.update(self.progress.step, lambda: self.detail(loss))
        if self.is_due() and self.progress.step < self.job.steps:
            self.last_saved, self.last_saved_step = time.monotonic(), self.progress.step
            checkpoint.save(self.job.run.checkpoints, checkpoint.capture(self.model, self.progress))

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        options = self.job.options
        steps, seconds = options.checkpoint_steps, options.checkpoint_seconds
        by_steps = steps and self.progress.step - self.last_saved_step >= steps
        by_time = seconds and time.monotonic() - self.last_saved >= seconds
        return bool(by_steps or by_time)

    def detail(self, loss: float) -> str:
        """Loss, speed and how much of the time went by waiting for data."""
        speed, wait = self.speed_and_wait()
        return f"loss {loss:.4f}, {speed:.0f} images/s, {wait:.0%} waiting for input"

    def speed_and_wait(self) -> tuple[float, float]:
        """Images a second since the start, and the share of that time spent waiting."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        images = (self.progress.step - self.first) * self.job.options.batch_size
        return images / seconds, min(self.clock.waited / seconds, 1.0)
