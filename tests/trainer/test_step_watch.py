import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from trainer.errors import Diverged
from trainer.options import TrainOptions
from trainer.runs.checkpoint import Progress
from trainer.runs.training_setup import prepare_training
from trainer.training.loop import CallbackList, InputClock, StepCallback


@pytest.fixture
def watch(shards: Path, tiny: dict[str, Any], tmp_path: Path) -> StepCallback:
    """A watch over an epoch whose first three steps were taken by an earlier start."""
    setup = prepare_training(TrainOptions(shards=shards, run=tmp_path / "run", **tiny))
    return StepCallback(setup, Progress(step=3), InputClock(), None)


class Loss:
    """Stands for a number that a device is still computing."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.computed = threading.Event()

    def __float__(self) -> float:
        assert self.computed.wait(10)
        return self.value


def hand_over(watch: StepCallback, *losses: float) -> None:
    for batch, loss in enumerate(losses):
        watch.on_train_batch_end(batch, {"loss": loss})


def test_one_step_may_be_uncomputed_and_no_second(watch: StepCallback) -> None:
    first, second = Loss(1.0), Loss(0.5)
    watch.on_train_batch_end(0, {"loss": first})
    assert (watch.progress.step, watch.clock.dispatched, watch.clock.computed) == (4, 1, 0)
    threading.Timer(0.1, first.computed.set).start()
    started = time.monotonic()
    watch.on_train_batch_end(1, {"loss": second})
    assert time.monotonic() - started >= 0.1
    assert (watch.progress.step, watch.clock.dispatched, watch.clock.computed) == (5, 2, 1)
    assert watch.loss == 1.0
    second.computed.set()
    watch.on_epoch_end(0)
    assert (watch.loss, watch.clock.computed) == (0.5, 2)


def test_a_step_that_fails_ends_the_run(watch: StepCallback) -> None:
    watch.on_train_batch_end(0, {"loss": "no number"})
    with pytest.raises(ValueError, match="no number"):
        watch.on_train_batch_end(1, {"loss": 1.0})


def test_an_infinite_loss_is_of_the_step_that_had_it(watch: StepCallback) -> None:
    with pytest.raises(Diverged, match="the loss is inf at epoch 1, step 4;"):
        hand_over(watch, float("inf"), float("nan"))


def test_the_last_loss_of_an_epoch_is_looked_at(watch: StepCallback) -> None:
    watch.in_flight = watch.waiter.submit(watch.wait, 5, float("nan"))
    with pytest.raises(Diverged, match="step 8;"):
        watch.on_epoch_end(0)


def test_nothing_is_saved_while_a_step_may_have_diverged(watch: StepCallback) -> None:
    watch.last_saved_step = -10
    options = TrainOptions(**dict(watch.setup.options) | {"checkpoint_steps": 1})
    setup = replace(watch.setup, options=options)
    watch.setup = setup
    with pytest.raises(Diverged):
        watch.on_train_batch_end(0, {"loss": float("nan")})
    assert not watch.setup.run.checkpoints.exists()


def test_keras_passes_losses_on_uncomputed(watch: StepCallback) -> None:
    passed = []

    class Probe(StepCallback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            passed.append(logs["loss"])
            super().on_train_batch_end(batch, logs)

    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    probe = Probe(watch.setup, watch.progress, watch.clock, None)
    callbacks = CallbackList([probe], add_history=True, model=model)
    fitted = model.fit(np.ones((6, 2)), np.ones((6, 1)), 2, verbose=0, callbacks=callbacks)
    assert len(passed) == 3
    assert not any(isinstance(each, float) for each in passed)
    assert fitted.history["loss"] == [pytest.approx(float(passed[-1]))]
    assert probe.progress.step == 6
