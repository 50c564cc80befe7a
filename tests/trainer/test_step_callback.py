import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.errors import Diverged
from trainer.options import TrainOptions
from trainer.runs.checkpoint import Progress
from trainer.runs.training_setup import prepare_training
from trainer.training import train
from trainer.training.train import CallbackList, InputClock, StepCallback


@pytest.fixture
def callback(shards: Path, tiny: dict[str, Any], tmp_path: Path) -> StepCallback:
    """A callback over an epoch whose first three steps were taken by an earlier start."""
    setup = prepare_training(TrainOptions(shards=shards, run=tmp_path / "run", **tiny))
    return StepCallback(setup, Progress(step=3))


class Loss:
    """Stands for a number that a device is still computing."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.computed = threading.Event()

    def __float__(self) -> float:
        assert self.computed.wait(10)
        return self.value


def hand_over(callback: StepCallback, *losses: float) -> None:
    for batch, loss in enumerate(losses):
        callback.on_train_batch_end(batch, {"loss": loss})


def test_one_step_may_be_uncomputed_and_no_second(callback: StepCallback) -> None:
    first, second = Loss(1.0), Loss(0.5)
    callback.on_train_batch_end(0, {"loss": first})
    assert (callback.progress.step, callback.clock.dispatched, callback.clock.computed) == (4, 1, 0)
    threading.Timer(0.1, first.computed.set).start()
    callback.on_train_batch_end(1, {"loss": second})
    assert first.computed.is_set()
    assert (callback.progress.step, callback.clock.dispatched, callback.clock.computed) == (5, 2, 1)
    assert callback.loss == 1.0
    second.computed.set()
    callback.on_epoch_end(0)
    assert (callback.loss, callback.clock.computed) == (0.5, 2)


def test_a_step_that_fails_ends_the_run(callback: StepCallback) -> None:
    callback.on_train_batch_end(0, {"loss": "no number"})
    with pytest.raises(ValueError, match="no number"):
        callback.on_train_batch_end(1, {"loss": 1.0})


def test_an_infinite_loss_is_of_the_step_that_had_it(callback: StepCallback) -> None:
    with pytest.raises(Diverged, match="the loss is inf at epoch 1, step 4;"):
        hand_over(callback, float("inf"), float("nan"))


def test_the_last_loss_of_an_epoch_is_looked_at(callback: StepCallback) -> None:
    callback.in_flight = callback.waiter.submit(callback.wait, 5, float("nan"))
    with pytest.raises(Diverged, match="step 8;"):
        callback.on_epoch_end(0)


def test_nothing_is_saved_while_a_step_may_have_diverged(callback: StepCallback) -> None:
    callback.last_saved_step = -10
    options = TrainOptions(**dict(callback.setup.options) | {"checkpoint_steps": 1})
    setup = replace(callback.setup, options=options)
    callback.setup = setup
    with pytest.raises(Diverged):
        callback.on_train_batch_end(0, {"loss": float("nan")})
    assert not callback.setup.run.checkpoints.exists()


def test_keras_passes_losses_on_uncomputed(callback: StepCallback) -> None:
    passed = []

    class Probe(StepCallback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            passed.append(logs["loss"])
            super().on_train_batch_end(batch, logs)

    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    probe = Probe(callback.setup, callback.progress)
    callbacks = CallbackList([probe], add_history=True, model=model)
    fitted = model.fit(np.ones((6, 2)), np.ones((6, 1)), 2, verbose=0, callbacks=callbacks)
    assert len(passed) == 3
    assert not any(isinstance(each, float) for each in passed)
    assert fitted.history["loss"] == [pytest.approx(float(passed[-1]))]
    assert probe.progress.step == 6


class Time:
    """A clock that stands still between the steps of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(train.time, "perf_counter", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_clock_sees_a_slow_source_and_not_a_slow_consumer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = Time(monkeypatch)

    def slowly(i: int) -> int:
        now.sleep(0.5)
        return i

    source = tf.data.Dataset.range(4).map(lambda i: tf.numpy_function(slowly, [i], tf.int64))
    clock = InputClock()
    assert [int(i) for i in clock.measure(source)] == [0, 1, 2, 3]
    assert clock.waited == 2
    patient = InputClock()
    for _ in patient.measure(tf.data.Dataset.range(4)):
        now.sleep(0.5)
    assert patient.waited == 0


def test_the_clock_counts_no_time_in_which_the_device_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = Time(monkeypatch)
    clock = InputClock(dispatched=2, computed=1)
    clock.request(0)
    now.sleep(0.5)
    clock.receive(0)
    assert clock.waited == 0
    clock.request(1)
    now.sleep(0.5)
    clock.mark_computed(2)
    now.sleep(0.25)
    clock.receive(1)
    assert clock.waited == 0.25


def test_no_tuner_holds_up_the_end_of_what_is_measured() -> None:
    batches = InputClock().measure(tf.data.Dataset.range(4))
    assert batches.options().autotune.enabled is False
    assert batches.options().deterministic is True
