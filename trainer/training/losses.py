"""The training loss: the competition's metric, from logits."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("headct")
class WeightedBinaryCrossentropy(keras.losses.Loss):  # type: ignore[misc,unused-ignore]
    """Weighted mean over labels of the binary cross-entropy, in nats.

    RSNA 2019 counts `any` twice: weights (1, 1, 1, 1, 1, 2), whose sum is 7. Computed from
    float32 logits, because a sigmoid's rounding is lost to the logarithm.

    Balanced sampling draws an example more often than it occurs, by a rate that its labels decide.
    Its loss is divided by that rate, so that the expected loss, and with it the best network, is
    that of natural sampling, whatever labels occur together.

    Args:
        weights: of the labels.
        label_smoothing: 0 for none.
        rates: of the labels and of examples without any (`sampling.balanced_rates`); empty where
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
        each = ops.relu(logits) - logits * labels + ops.log1p(ops.exp(-ops.abs(logits)))
        weights = ops.convert_to_tensor(self.weights, "float32")
        loss = ops.sum(each * weights, axis=-1) / sum(self.weights)
        return loss / self._drawn(true) if self.rates else loss

    def _drawn(self, labels: Any) -> Any:
        """How many times as often as it occurs each example is drawn; labels [B, L] → [B]."""
        *positive, negative = self.rates
        of_labels = ops.sum(labels * ops.convert_to_tensor(positive, "float32"), axis=-1)
        return of_labels + negative * (1 - ops.max(labels, axis=-1))

    def get_config(self) -> dict[str, Any]:
        """What a saved model needs to make this loss again."""
        config = super().get_config()
        return {
            **config,
            "weights": self.weights,
            "label_smoothing": self.label_smoothing,
            "rates": self.rates,
        }
