"""The model that `fit` trains: step, loss, optimizer and averages of weights.

`TrainingModel.train_step` is the whole step. Put code that changes a batch on the device before
Keras's own step, and code that follows an update after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from trainer.networks.model import Classifier
from trainer.options import TrainOptions
from trainer.runs.training_setup import TrainingSetup
from trainer.training.feeds import Feed


class TrainingModel(keras.Model):  # type: ignore[misc,unused-ignore]
    """A model that can average its weights: after every optimizer update, or after epochs.

    The averages cover trained weights, frozen weights, and the running statistics of batch
    normalization, which fit only the weights that they were computed with.

    After `n` updates the momentum is min(momentum, (1 + n) / (10 + n)), as in
    tf.train.ExponentialMovingAverage, so that the initial weights soon lose influence.

    Args:
        inputs: as for keras.Model.
        outputs: as for keras.Model.
        core: inner model to average.
        momentum: upper limit of the averages' momentum; 0: no averages after updates.
        accumulate: steps per optimizer update.
        by_epoch: whether `average_epoch` averages the weights of epochs instead.
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        core: Any,
        momentum: float,
        accumulate: int,
        by_epoch: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, name="training")
        self.momentum, self.accumulate = momentum, accumulate
        self.averaged: list[Any] = []
        self.averages: list[Any] = []
        if momentum or by_epoch:
            self.averaged = [v for v in core.variables if keras.backend.is_float_dtype(v.dtype)]
            self.averages = [
                # Checkpoints identify variables by name.
                keras.Variable(
                    value,
                    dtype=value.dtype,
                    trainable=False,
                    name=f"average_of_{variable.path.replace('/', '_')}",
                )
                for variable, value in zip(self.averaged, copy_values(self.averaged), strict=True)
            ]
            self.steps_done = keras.Variable(0, dtype="int", trainable=False, name="steps_done")

    def train_step(self, *arguments: Any) -> Any:
        """Run Keras's training step, then update the averages.

        Args:
            arguments: the batch; with JAX, preceded by the state of all variables.
        """
        result = super().train_step(*arguments)
        if not self.momentum:
            return result
        if keras.backend.backend() != "jax":
            self.average()
            return result
        # JAX's step returns new values instead of assigning them.
        logs, (trainable, others, *rest) = result
        values = [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, others, strict=True),
        ]
        with keras.StatelessScope(state_mapping=values) as scope:
            self.average()
        others = [scope.get_current_value(v) for v in self.non_trainable_variables]
        return logs, (trainable, others, *rest)

    def average(self) -> None:
        """Count a step; after an optimizer update, move the averages toward the weights."""
        self.steps_done.assign(self.steps_done + 1)
        updates = ops.cast(self.steps_done // self.accumulate, "float32")
        momentum = ops.minimum(self.momentum, (1 + updates) / (10 + updates))
        self._move(ops.where(self.steps_done % self.accumulate == 0, momentum, 1.0))

    def average_epoch(self, number: int) -> None:
        """Make the averages the mean of `number` epochs: the averages' before, and the weights'.

        Stochastic weight averaging (Izmailov et al., arXiv:1803.05407), with averaged statistics of
        batch normalization in place of a pass over the training data.
        """
        self._move(1 - 1 / number)

    def _move(self, momentum: Any) -> None:
        """Move the averages toward the weights."""
        for average, weight in zip(self.averages, self.averaged, strict=True):
            average.assign(average * momentum + weight * (1 - momentum))

    def reset_averages(self) -> None:
        """Restart the averages from the current weights."""
        if self.averaged:
            self.steps_done.assign(0)
            _assign(self.averages, copy_values(self.averaged))

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Replace the weights by their averages, if any; restore the weights afterwards."""
        trained = copy_values(self.averaged)
        _assign(self.averaged, copy_values(self.averages))
        try:
            yield
        finally:
            _assign(self.averaged, trained)


def copy_values(variables: list[Any]) -> list[npt.NDArray[Any]]:
    """Copy the values of variables: JAX would share the memory, and later donate it."""
    return [np.array(ops.convert_to_numpy(variable.value)) for variable in variables]


def _assign(variables: list[Any], arrays: list[npt.NDArray[Any]]) -> None:
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def compile_phase(
    setup: TrainingSetup, feed: Feed, classifier: Classifier, frozen: bool, xla: bool
) -> TrainingModel:
    """Make and compile the model of a phase: the head alone if `frozen`, or the whole network.

    Every phase has a new optimizer, because the head's moments do not apply to the backbone. A
    frozen backbone's batch normalization uses its stored statistics.
    """
    options = setup.options
    classifier.backbone.trainable = not frozen
    norms = list(batch_norms(classifier.backbone))
    if not frozen and options.batch_norm == "frozen":
        for norm in norms:
            norm.trainable = False
    settle_statistics(norms, options.epochs * setup.steps)
    for predictor in (classifier.model, classifier.core):
        predictor.jit_compile = xla
    model = TrainingModel(
        *feed.connect(classifier),
        classifier.core,
        options.ema,
        options.accumulate,
        by_epoch=bool(options.swa_epochs) and not frozen,
    )
    epochs = options.freeze_epochs if frozen else options.epochs - options.freeze_epochs
    policy = classifier.core.dtype_policy.name
    model.compile(
        optimizer=build_optimizer(
            options, model.trainable_variables, epochs * setup.steps, setup.steps, policy
        ),
        loss=WeightedBinaryCrossentropy(
            setup.weights,
            options.label_smoothing,
            setup.rates,
            classifier.core.get_layer("mixup").mix if options.mixup else None,
        ),
        jit_compile=xla,
        steps_per_execution=options.steps_per_execution,
    )
    return model


def settle_statistics(norms: list[Any], steps: int) -> None:
    """Lower the momentum of batch normalization so that its statistics settle in a short run.

    At the usual momentum of 0.99, the initial values still have half the weight after 60
    steps. A run of 1,000 steps or more keeps the network's momentum.
    """
    for norm in norms:
        norm.momentum = min(norm.momentum, max(1 - 10 / steps, 0.8))


def batch_norms(network: Any) -> Iterator[Any]:
    """Yield the batch normalization layers of a network and its inner networks."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            yield layer
        elif isinstance(layer, keras.Model):
            yield from batch_norms(layer)


def build_optimizer(
    options: TrainOptions, trainable: list[Any], steps: int, per_epoch: int, policy: str
) -> Any:
    """Build the optimizer of a phase with `steps` steps, `per_epoch` of them per epoch.

    The dtype policy `mixed_float16` requires loss scaling: most gradients are too small for float16
    (Micikevicius et al., arXiv:1710.03740, 3.2).
    """
    # Explicit names: checkpoints depend on them, and Keras would number its own.
    common = {
        "name": "optimizer",
        "learning_rate": build_schedule(options, steps, per_epoch),
        "weight_decay": options.weight_decay,
        "global_clipnorm": options.clip_norm or None,
        "gradient_accumulation_steps": options.accumulate if options.accumulate > 1 else None,
    }
    if options.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(**common)
    else:
        optimizer = keras.optimizers.SGD(momentum=0.9, nesterov=True, **common)
    # No decay of biases and norms: decay would only limit what the network can express.
    optimizer.exclude_from_weight_decay(var_list=[v for v in trainable if len(v.shape) < 2])
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    optimizer.build(trainable)
    return optimizer


class TwoRates(keras.optimizers.AdamW):  # type: ignore[misc,unused-ignore]
    """AdamW, whose learning rate is multiplied by a factor for some of the variables."""

    slower: frozenset[int] = frozenset()
    factor = 1.0

    def slow_down(self, variables: list[Any], factor: float) -> None:
        """Multiply the learning rate of variables; they have no weight decay."""
        self.slower, self.factor = frozenset(map(self._get_variable_index, variables)), factor

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update a variable."""
        slow = self._get_variable_index(variable) in self.slower
        super().update_step(gradient, variable, learning_rate * (self.factor if slow else 1.0))


def build_schedule(options: TrainOptions, steps: int, per_epoch: int) -> Any:
    """Return the learning rate by step: linear warm-up, then a cosine to 0, or constant.

    Steps that only accumulate gradients count, too.
    """
    warmup = min(round(options.warmup_epochs * per_epoch), steps - 1)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else options.learning_rate,
        decay_steps=steps - warmup,
        # A cosine from the learning rate down to itself is constant.
        alpha=1.0 if options.schedule == "constant" else 0.0,
        warmup_target=options.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def learning_rate(optimizer: Any) -> float:
    """Return the learning rate of the next step."""
    return float(ops.convert_to_numpy(optimizer.learning_rate))


@keras.saving.register_keras_serializable("headct")
class WeightedBinaryCrossentropy(keras.losses.Loss):  # type: ignore[misc,unused-ignore]
    """Weighted mean over labels of the binary cross-entropy, in nats: the competition's metric.

    RSNA 2019 counts `any` twice: weights (1, 1, 1, 1, 1, 2), sum 7. Computed from float32 logits,
    because a rounded sigmoid is too coarse for the logarithm.

    Balanced sampling draws examples at a rate that depends on their labels. The loss is divided by
    this rate, so that the expected loss, and the best network, are the same as with natural
    sampling, for any combination of labels.

    Args:
        weights: weight per label.
        label_smoothing: 0 for none.
        rates: sampling rate per label, then of examples without a label
            (`sampling.balanced_rates`); empty for natural sampling.
        mix: mixes the labels [B, L] of a batch as `image_layers.Mixup` mixed its images, and is not
            saved; None: images are not mixed. A pair is sampled at the product of two rates.
    """

    def __init__(
        self,
        weights: tuple[float, ...],
        label_smoothing: float = 0.0,
        rates: tuple[float, ...] = (),
        mix: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": "weighted_log_loss", **kwargs})
        self.mix = mix
        self.weights = list(weights)
        self.label_smoothing = label_smoothing
        self.rates = list(rates)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Labels and logits [B, L] → loss [B]."""
        logits = ops.cast(y_pred, "float32")
        true = ops.cast(y_true, "float32")
        mixed = true if self.mix is None else self.mix(true)
        labels = mixed * (1 - self.label_smoothing) + self.label_smoothing / 2
        # max(x, 0) - x z + log(1 + exp(-|x|)) cannot overflow.
        entropy = ops.relu(logits) - logits * labels + ops.log1p(ops.exp(-ops.abs(logits)))
        weights = ops.convert_to_tensor(self.weights, "float32")
        loss = ops.sum(entropy * weights, axis=-1) / sum(self.weights)
        if not self.rates:
            return loss
        *positive, negative = self.rates
        rate = ops.sum(true * ops.convert_to_tensor(positive, "float32"), axis=-1)
        rate = rate + negative * (1 - ops.max(true, axis=-1))
        return loss / (rate if self.mix is None else rate * ops.flip(rate, axis=0))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, for a saved model."""
        names = ("weights", "label_smoothing", "rates")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
