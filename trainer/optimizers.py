"""Optimisers and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from trainer.options import TrainOptions


class KeepWeights:
    """Stops `fit`, called once an epoch, from putting the averaged weights in each time.

    `averaged_weights` does it where it is wanted: for validation and for the saved model.
    """

    def finalize_variable_values(self, var_list: Any) -> None:
        """Leaves the weights as they are."""

    def put_averages(self, var_list: Any) -> None:
        """Overwrites the weights with their averages."""
        super().finalize_variable_values(var_list)  # type: ignore[misc]


class AdamW(KeepWeights, keras.optimizers.AdamW):  # type: ignore[misc,unused-ignore]
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""


class SGD(KeepWeights, keras.optimizers.SGD):  # type: ignore[misc,unused-ignore]
    """Stochastic gradient descent with Nesterov momentum."""


def build_optimizer(options: TrainOptions, trainable: list[Any], steps: int, per_epoch: int) -> Any:
    """Makes and builds the optimiser of `steps` steps, `per_epoch` of them an epoch."""
    common = {
        "learning_rate": build_schedule(options, steps, per_epoch),
        "weight_decay": options.weight_decay,
        "global_clipnorm": options.clip_norm or None,
        "use_ema": options.ema > 0,
        "ema_momentum": options.ema or 0.99,
        "gradient_accumulation_steps": options.accumulate if options.accumulate > 1 else None,
    }
    if options.optimizer == "adamw":
        optimizer = AdamW(**common)
    else:
        optimizer = SGD(momentum=0.9, nesterov=True, **common)
    # Decaying a norm's scale or a bias only shrinks what the network can express.
    spared = [each for each in trainable if len(each.shape) < 2]
    optimizer.exclude_from_weight_decay(var_list=spared)
    optimizer.build(trainable)
    return optimizer


def build_schedule(options: TrainOptions, steps: int, per_epoch: int) -> Any:
    """The learning rate by step: linear warm-up, then a cosine to 0, or constant.

    Keras counts every step here, those that only accumulate gradients too.
    """
    warmup = min(round(options.warmup_epochs * per_epoch), steps - 1)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else options.learning_rate,
        decay_steps=steps - warmup,
        # A cosine from the learning rate down to itself is a constant.
        alpha=1.0 if options.schedule == "constant" else 0.0,
        warmup_target=options.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def learning_rate(optimizer: Any) -> float:
    """The learning rate of the next step."""
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


@contextmanager
def averaged_weights(model: Any) -> Iterator[None]:
    """Puts the averaged weights into the model, and the trained ones back afterwards."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    trained = copies(model.trainable_variables)
    optimizer.put_averages(model.trainable_variables)
    # JAX would share the averages' buffers with the model, whose step then donates them.
    assign(model.trainable_variables, copies(model.trainable_variables))
    try:
        yield
    finally:
        assign(model.trainable_variables, trained)


def copies(variables: list[Any]) -> list[npt.NDArray[Any]]:
    """The values of variables, in memory of their own."""
    return [np.array(keras.ops.convert_to_numpy(each)) for each in variables]


def assign(variables: list[Any], arrays: list[npt.NDArray[Any]]) -> None:
    """Gives variables their values."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
