"""Exponential moving averages of the weights, kept by the training step itself.

What is averaged is all that a prediction depends on: weights that are trained, weights that are
frozen, and the running statistics of batch normalization, which belong to the weights beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops


class AveragedModel(keras.Model):  # type: ignore[misc,unused-ignore]
    """A model that averages weights while it trains, once for each update of the optimizer.

    After `n` updates the momentum is min(momentum, (1 + n) / (10 + n)), as in
    tf.train.ExponentialMovingAverage: the first weights, which are random, are soon forgotten.

    Args:
        inputs: as of keras.Model.
        outputs: as of keras.Model.
        averaged: the variables to average.
        momentum: the share of an average that an update keeps, at most.
        accumulate: steps whose gradients make one update.
        name: as of keras.Model.
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        averaged: list[Any],
        momentum: float,
        accumulate: int,
        name: str,
    ) -> None:
        super().__init__(inputs, outputs, name=name)
        self.momentum, self.accumulate = momentum, accumulate
        self.averaged = averaged
        self.averages = [
            keras.Variable(value, dtype=value.dtype, trainable=False, name=_average_of(each))
            for each, value in zip(averaged, copies(averaged), strict=True)
        ]
        self.steps_done = keras.Variable(0, dtype="int", trainable=False, name="steps_done")

    def train_step(self, *arguments: Any) -> Any:
        """A step as of keras.Model, then the averages."""
        if keras.backend.backend() != "jax":
            logs = super().train_step(*arguments)
            self.average()
            return logs
        logs, (trained, others, *rest) = super().train_step(*arguments)
        values = [
            *zip(self.trainable_variables, trained, strict=True),
            *zip(self.non_trainable_variables, others, strict=True),
        ]
        with keras.StatelessScope(state_mapping=values) as scope:
            self.average()
        others = [scope.get_current_value(each) for each in self.non_trainable_variables]
        return logs, (trained, others, *rest)

    def average(self) -> None:
        """Takes note of a step; where it made an update, each average moves to its weight."""
        self.steps_done.assign(self.steps_done + 1)
        updates = ops.cast(self.steps_done // self.accumulate, "float32")
        momentum = ops.minimum(self.momentum, (1 + updates) / (10 + updates))
        momentum = ops.where(self.steps_done % self.accumulate == 0, momentum, 1.0)
        for average, weight in zip(self.averages, self.averaged, strict=True):
            average.assign(average * momentum + weight * (1 - momentum))

    def reset(self) -> None:
        """Starts over from the weights as they are."""
        self.steps_done.assign(0)
        assign(self.averages, copies(self.averaged))


def _average_of(variable: Any) -> str:
    """The name of a variable's average: checkpoints go by names."""
    return f"average_of_{variable.path.replace('/', '_')}"


def make_training_model(
    inputs: Any, outputs: Any, core: Any, momentum: float, accumulate: int
) -> Any:
    """The model that `fit` trains; it averages the weights of `core` if there is a momentum."""
    if not momentum:
        return keras.Model(inputs, outputs, name="training")
    averaged = [each for each in core.variables if keras.backend.is_float_dtype(each.dtype)]
    return AveragedModel(inputs, outputs, averaged, momentum, accumulate, name="training")


def reset_averages(model: Any) -> None:
    """Lets a model that averages weights start over from those that it has."""
    if isinstance(model, AveragedModel):
        model.reset()


@contextmanager
def averaged_weights(model: Any) -> Iterator[None]:
    """Puts the averages into a model that has them, and the trained weights back afterwards."""
    if not isinstance(model, AveragedModel):
        yield
        return
    trained = copies(model.averaged)
    assign(model.averaged, copies(model.averages))
    try:
        yield
    finally:
        assign(model.averaged, trained)


def copies(variables: list[Any]) -> list[npt.NDArray[Any]]:
    """The values of variables, in memory of their own: JAX would share, and then donate, it."""
    return [np.array(keras.ops.convert_to_numpy(each.value)) for each in variables]


def assign(variables: list[Any], arrays: list[npt.NDArray[Any]]) -> None:
    """Gives variables their values."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
