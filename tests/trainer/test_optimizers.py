from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from trainer.options import TrainOptions
from trainer.training.training_model import build_optimizer, build_schedule, learning_rate


def make_options(**changes: Any) -> TrainOptions:
    return TrainOptions(shards=Path("s"), run=Path("r"), **changes)


def rates(options: TrainOptions, at: list[int], steps: int = 10, per_epoch: int = 4) -> list[float]:
    schedule = build_schedule(options, steps, per_epoch)
    return [float(np.asarray(schedule(each))) for each in at]


def test_warm_up_and_cosine_by_hand() -> None:
    options = make_options(learning_rate=1.0, warmup_epochs=0.5)
    # Two steps up, then eight down: halfway there it is half.
    assert rates(options, [0, 1, 2, 6, 10]) == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-6)


def test_constant_after_a_warm_up_and_without() -> None:
    options = make_options(learning_rate=2.0, schedule="constant", warmup_epochs=0.5)
    assert rates(options, [0, 1, 2, 9]) == pytest.approx([0, 1, 2, 2])
    options = make_options(learning_rate=2.0, schedule="constant", warmup_epochs=0)
    assert rates(options, [0, 9]) == pytest.approx([2, 2])


def make_model(optimizer_options: TrainOptions) -> Any:
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.set_weights([np.ones((2, 1)), np.ones(1)])
    optimizer = build_optimizer(optimizer_options, model.trainable_variables, 10, 5, "float32")
    model.compile(optimizer=optimizer, loss="mse")
    return model


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_decay_spares_biases(name: str) -> None:
    options = make_options(
        optimizer=name, weight_decay=0.5, learning_rate=0.1, warmup_epochs=0, schedule="constant"
    )
    model = make_model(options)
    nothing = [np.zeros((2, 1), np.float32), np.zeros(1, np.float32)]
    model.optimizer.apply(
        [keras.ops.convert_to_tensor(each) for each in nothing], model.trainable_variables
    )
    kernel, bias = model.get_weights()
    assert kernel.ravel().tolist() == pytest.approx([0.95, 0.95])
    assert bias.tolist() == [1.0]


def step(model: Any, gradient: list[float]) -> list[float]:
    """What a step adds to the two weights of the kernel."""
    before = model.get_weights()[0].ravel()
    arrays = [np.float32(gradient).reshape(2, 1), np.zeros(1, np.float32)]
    model.optimizer.apply(
        [keras.ops.convert_to_tensor(each) for each in arrays], model.trainable_variables
    )
    moved: list[float] = (model.get_weights()[0].ravel() - before).tolist()
    return moved


STILL = {
    "learning_rate": 0.1,
    "warmup_epochs": 0,
    "schedule": "constant",
    "weight_decay": 0.0,
    "clip_norm": 0.0,
}


def test_sgd_by_hand() -> None:
    model = make_model(make_options(optimizer="sgd", **STILL))
    # Nesterov: the momentum, 0.9 of what it was and the step, is looked ahead by once more.
    assert step(model, [1, 2]) == pytest.approx([-0.19, -0.38], rel=1e-5)
    assert step(model, [1, 2]) == pytest.approx([-0.271, -0.542], rel=1e-5)


def test_adamw_goes_the_learning_rate_at_first() -> None:
    model = make_model(make_options(optimizer="adamw", **STILL))
    assert step(model, [1, -200]) == pytest.approx([-0.1, 0.1], rel=1e-4)


@pytest.mark.parametrize(("clip_norm", "length"), [(0.0, 5), (1.0, 1), (4.9, 4.9), (5.1, 5)])
def test_gradients_are_clipped_together(clip_norm: float, length: float) -> None:
    model = make_model(make_options(optimizer="sgd", **(STILL | {"clip_norm": clip_norm})))
    expected = [-0.19 * length * 3 / 5, -0.19 * length * 4 / 5]
    assert step(model, [3, 4]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_gradients_are_averaged_before_an_update(accumulate: int) -> None:
    model = make_model(make_options(optimizer="sgd", accumulate=accumulate, **STILL))
    for number in range(accumulate - 1):
        assert step(model, [number, 0]) == [0, 0]
    mean = sum(range(accumulate)) / accumulate
    moved = step(model, [accumulate - 1, 0])
    assert moved == pytest.approx([-0.19 * mean, 0], abs=1e-6)


def test_a_warm_up_ends_before_training_does() -> None:
    options = make_options(learning_rate=1.0, warmup_epochs=100)
    assert rates(options, [0, 3, 9, 10]) == pytest.approx([0, 1 / 3, 1, 0], abs=1e-6)
    # Of one step nothing is left for it.
    assert rates(options, [0, 1], steps=1) == pytest.approx([1, 0])


def test_a_warm_up_of_less_than_half_a_step_is_none() -> None:
    options = make_options(learning_rate=1.0, warmup_epochs=0.1)
    assert rates(options, [0, 5, 10]) == pytest.approx([1, 0.5, 0], abs=1e-6)


def test_float16_scales_its_loss() -> None:
    variables = [keras.Variable(np.ones(2))]
    for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
        optimizer = build_optimizer(make_options(), variables, 10, 5, policy)
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        assert scaled == (policy == "mixed_float16")
        assert optimizer.built


def test_the_learning_rate_is_the_next_steps() -> None:
    options = make_options(learning_rate=1.0, warmup_epochs=1)
    model = make_model(options)
    assert learning_rate(model.optimizer) == 0
    model.train_on_batch(np.ones((4, 2)), np.zeros((4, 1)))
    assert learning_rate(model.optimizer) == pytest.approx(0.2)
