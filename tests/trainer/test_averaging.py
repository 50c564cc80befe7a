"""Averages of weights; test_other_processes.py runs it with JAX as the backend, too."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
from keras import layers

from trainer.training.training_model import TrainingModel, copy_values

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(60, 4)).astype(np.float32)
TARGETS = RANDOM.normal(size=(60, 1)).astype(np.float32)


class Recorder(keras.callbacks.Callback):  # type: ignore[misc,unused-ignore]
    """Keeps the values of variables after each step."""

    def __init__(self, variables: list[Any]) -> None:
        super().__init__()
        self.variables, self.values = variables, []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.values.append(copy_values(self.variables))


def array(variable: Any) -> npt.NDArray[Any]:
    (value,) = copy_values([variable])
    return value


def make_model(momentum: float, accumulate: int = 1, by_epoch: bool = False) -> Any:
    keras.utils.set_random_seed(0)
    inputs = layers.Input((4,))
    hidden = layers.BatchNormalization(momentum=0.5)(layers.Dense(3)(inputs))
    hidden = layers.Dropout(0.1, seed=1)(hidden)
    core = keras.Model(inputs, layers.Dense(1)(hidden))
    model = TrainingModel(inputs, core(inputs), core, momentum, accumulate, by_epoch)
    optimizer = keras.optimizers.SGD(
        0.05, gradient_accumulation_steps=accumulate if accumulate > 1 else None
    )
    model.compile(optimizer=optimizer, loss="mse")
    return model


@pytest.mark.parametrize("accumulate", [1, 3])
def test_averages_by_hand(accumulate: int) -> None:
    momentum = 0.4  # below that of the warm-up from the third update on
    model = make_model(momentum, accumulate)
    recorder = Recorder(model.averaged)
    expected = copy_values(model.averaged)
    model.fit(IMAGES, TARGETS, batch_size=5, shuffle=False, verbose=0, callbacks=[recorder])
    assert len(recorder.values) == 12
    for update, values in enumerate(recorder.values[accumulate - 1 :: accumulate], 1):
        kept = min(momentum, (1 + update) / (10 + update))
        expected = [a * kept + v * (1 - kept) for a, v in zip(expected, values, strict=True)]
    for average, value in zip(model.averages, expected, strict=True):
        np.testing.assert_allclose(array(average), value, rtol=1e-5, atol=1e-6)


def test_statistics_are_averaged_too() -> None:
    model = make_model(0.9)
    names = {v.path.split("/")[-1] for v in model.averaged}
    assert {"kernel", "gamma", "moving_mean", "moving_variance"} <= names
    assert not any("seed" in name for name in names)
    model.fit(IMAGES, TARGETS, batch_size=5, verbose=0)
    (place,) = (i for i, v in enumerate(model.averaged) if v.path.endswith("moving_mean"))
    average, trained = (array(each[place]) for each in (model.averages, model.averaged))
    assert np.abs(average).max() > 1e-3
    assert not np.allclose(average, trained)


def test_the_first_weights_are_soon_forgotten() -> None:
    model = make_model(0.9999)
    model.averaged[0].assign(np.full((4, 3), 1000.0))
    model.reset_averages()
    model.averaged[0].assign(np.zeros((4, 3)))
    for _ in range(100):
        model.average()
    # The product of (1 + n) / (10 + n) for n = 1 to 100; without a warm-up it were 990.
    assert array(model.averages[0]).max() < 0.01


def test_averages_are_put_in_for_a_while() -> None:
    model = make_model(0.5)
    model.fit(IMAGES, TARGETS, batch_size=5, epochs=2, verbose=0)
    trained = copy_values(model.averaged)
    with model.averaged_weights():
        for weight, average in zip(model.averaged, model.averages, strict=True):
            np.testing.assert_array_equal(array(weight), array(average))
        assert not np.allclose(array(model.averaged[0]), trained[0])
    for weight, before in zip(model.averaged, trained, strict=True):
        np.testing.assert_array_equal(array(weight), before)
    model.fit(IMAGES, TARGETS, batch_size=5, verbose=0)


def test_a_new_phase_begins_with_the_weights_as_they_are() -> None:
    model = make_model(0.9)
    model.fit(IMAGES, TARGETS, batch_size=5, verbose=0)
    model.reset_averages()
    assert array(model.steps_done) == 0
    for weight, average in zip(model.averaged, model.averages, strict=True):
        np.testing.assert_array_equal(array(weight), array(average))


def test_epochs_have_equal_shares_of_an_average() -> None:
    model = make_model(0.0, by_epoch=True)
    expected = []
    for number in (1, 2, 3):
        model.fit(IMAGES, TARGETS, batch_size=5, verbose=0)
        model.average_epoch(number)
        expected.append(copy_values(model.averaged))
    for average, *values in zip(model.averages, *expected, strict=True):
        np.testing.assert_allclose(array(average), np.mean(values, axis=0), rtol=1e-4, atol=1e-6)
    assert not np.allclose(expected[0][0], expected[2][0])


def test_without_a_momentum_there_are_none() -> None:
    model = make_model(0.0)
    assert not model.averages
    assert not any("steps_done" in variable.path for variable in model.variables)
    before = copy_values(model.weights)
    with model.averaged_weights():
        for weight, value in zip(model.weights, before, strict=True):
            np.testing.assert_array_equal(array(weight), value)
    model.reset_averages()
    model.fit(IMAGES, TARGETS, batch_size=5, verbose=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
def test_a_saved_core_has_no_averages(tmp_path: Path) -> None:
    model = make_model(0.5)
    core = next(each for each in model.layers if isinstance(each, keras.Model))
    core.save(tmp_path / "core.keras")
    loaded = keras.models.load_model(tmp_path / "core.keras")
    assert len(loaded.variables) == len(core.variables)
