"""The model that `fit` trains: its step, loss, optimizer and averages of weights.

`TrainingModel.train_step` is the whole step. What changes a batch on the device, such as mixup,
belongs there, before Keras's own step; what follows an update belongs after it.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    """A model that can average its weights while it trains, once per update of the optimizer.

    The averages cover all that a prediction depends on: trained weights, frozen weights, and the
    running statistics of batch normalization, which fit only the weights that they were computed
    with.

    After `n` updates the momentum is min(momentum, (1 + n) / (10 + n)), as in
    tf.train.ExponentialMovingAverage, so that the random first weights are soon forgotten.

    Args:
        inputs: as for keras.Model.
        outputs: as for keras.Model.
        core: the model whose weights are averaged.
        momentum: the largest share of an average that an update keeps; 0: no averages.
        accumulate: steps whose gradients make one update.
    """

    def __init__(
        self, inputs: Any, outputs: Any, core: Any, momentum: float, accumulate: int
    ) -> None:
        super().__init__(inputs, outputs, name="training")
        self.momentum, self.accumulate = momentum, accumulate
        self.averaged: list[Any] = []
        self.averages: list[Any] = []
        if momentum:
            self.averaged = [v for v in core.variables if keras.backend.is_float_dtype(v.dtype)]
            self.averages = [
                # Checkpoints go by these names.
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
        """Take one step: Keras's own, then the averages.

        Args:
            arguments: the batch; with JAX, the state of all variables comes first.
        """
        result = super().train_step(*arguments)
        if not self.averaged:
            return result
        if keras.backend.backend() != "jax":
            self.average()
            return result
        # JAX's step returns the new values of variables rather than assigning them.
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
        """Count a step; after an optimizer update, move each average toward its weight."""
        self.steps_done.assign(self.steps_done + 1)
        updates = ops.cast(self.steps_done // self.accumulate, "float32")
        momentum = ops.minimum(self.momentum, (1 + updates) / (10 + updates))
        momentum = ops.where(self.steps_done % self.accumulate == 0, momentum, 1.0)
        for average, weight in zip(self.averages, self.averaged, strict=True):
            average.assign(average * momentum + weight * (1 - momentum))

    def reset_averages(self) -> None:
        """Restart the averages from the current weights."""
        if self.averaged:
            self.steps_done.assign(0)
            _assign(self.averages, copy_values(self.averaged))

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Replace the weights by their averages, if there are any, and restore them afterwards."""
        trained = copy_values(self.averaged)
        _assign(self.averaged, copy_values(self.averages))
        try:
            yield
        finally:
            _assign(self.averaged, trained)


def copy_values(variables: list[Any]) -> list[npt.NDArray[Any]]:
    """Copy the values of variables: JAX would share their memory, and later donate it."""
    return [np.array(ops.convert_to_numpy(variable.value)) for variable in variables]


def _assign(variables: list[Any], arrays: list[npt.NDArray[Any]]) -> None:
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def compile_phase(
    setup: TrainingSetup, feed: Feed, classifier: Classifier, frozen: bool, xla: bool
) -> TrainingModel:
    """Make and compile the model of a phase: the head alone if `frozen`, or the whole network.

    Each phase has its own optimizer, because the head's moments say nothing about the backbone. A
    frozen backbone's batch normalization uses its stored statistics.

    Args:
        setup: the run.
        feed: its input.
        classifier: the network.
        frozen: whether to freeze the backbone.
        xla: whether to compile with XLA.
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
        # JAX's function is bound to the variables that were trainable when it was made.
        predictor.make_predict_function(force=True)
    model = TrainingModel(
        *feed.connect(classifier), classifier.core, options.ema, options.accumulate
    )
    epochs = options.freeze_epochs if frozen else options.epochs - options.freeze_epochs
    policy = classifier.core.dtype_policy.name
    model.compile(
        optimizer=build_optimizer(
            options, model.trainable_variables, epochs * setup.steps, setup.steps, policy
        ),
        loss=WeightedBinaryCrossentropy(setup.weights, options.label_smoothing, setup.rates),
        jit_compile=xla,
        steps_per_execution=options.steps_per_execution,
    )
    return model


def settle_statistics(norms: list[Any], steps: int) -> None:
    """Lower the momentum of batch normalization so that its statistics settle in a short run.

    At the usual momentum of 0.99, the statistics after 60 steps would still be half their initial
    values. A run of 1,000 steps or more keeps the network's momentum.
    """
    for norm in norms:
        norm.momentum = min(norm.momentum, max(1 - 10 / steps, 0.8))


def batch_norms(network: Any) -> Iterator[Any]:
    """Yield the batch normalizations of a network and of its inner networks."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            yield layer
        elif isinstance(layer, keras.Model):
            yield from batch_norms(layer)


def build_optimizer(
    options: TrainOptions, trainable: list[Any], steps: int, per_epoch: int, policy: str
) -> Any:
    """Build the optimizer of a phase.

    With the dtype policy `mixed_float16` the loss is scaled; otherwise most gradients are too small
    for float16 (Micikevicius et al., arXiv:1710.03740, 3.2).

    Args:
        options: of the run.
        trainable: the variables to train.
        steps: steps of the phase.
        per_epoch: steps per epoch.
        policy: Keras's dtype policy.
    """
    # Explicit names, because checkpoints go by names and Keras would number its own.
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
    # No decay of biases and norms: it would only limit what the network can express.
    optimizer.exclude_from_weight_decay(var_list=[v for v in trainable if len(v.shape) < 2])
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    optimizer.build(trainable)
    return optimizer


def build_schedule(options: TrainOptions, steps: int, per_epoch: int) -> Any:
    """Return the learning rate by step: linear warm-up, then a cosine to 0, or constant.

    Keras counts every step here, including those that only accumulate gradients.
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

    RSNA 2019 counts `any` twice: weights (1, 1, 1, 1, 1, 2), whose sum is 7. Computed from
    float32 logits, because a rounded sigmoid is too coarse for the logarithm.

    Balanced sampling draws an example more often than it occurs, at a rate that depends on its
    labels. The example's loss is divided by that rate, so that the expected loss, and with it the
    best network, is that of natural sampling, whatever labels occur together.

    Args:
        weights: per label.
        label_smoothing: 0 for none.
        rates: per label, then of examples without a label (`sampling.balanced_rates`); empty if
            examples are drawn as often as they occur.
    """

    def __init__(
        self,
        weights: tuple[float, ...],
        label_smoothing: float = 0.0,
        rates: tuple[float, ...] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": "weighted_log_loss", **kwargs})
        self.weights = list(weights)
        self.label_smoothing = label_smoothing
        self.rates = list(rates)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Labels and logits [B, L] → loss [B]."""
        logits = ops.cast(y_pred, "float32")
        true = ops.cast(y_true, "float32")
        labels = true * (1 - self.label_smoothing) + self.label_smoothing / 2
        # max(x, 0) - x z + log(1 + exp(-|x|)) overflows for no logit.
        entropy = ops.relu(logits) - logits * labels + ops.log1p(ops.exp(-ops.abs(logits)))
        weights = ops.convert_to_tensor(self.weights, "float32")
        loss = ops.sum(entropy * weights, axis=-1) / sum(self.weights)
        return loss / self._sampling_rate(true) if self.rates else loss

    def _sampling_rate(self, labels: Any) -> Any:
        """Return how many times as often as it occurs each example is drawn; [B, L] → [B]."""
        *positive, negative = self.rates
        of_labels = ops.sum(labels * ops.convert_to_tensor(positive, "float32"), axis=-1)
        return of_labels + negative * (1 - ops.max(labels, axis=-1))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, for a saved model."""
        names = ("weights", "label_smoothing", "rates")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
