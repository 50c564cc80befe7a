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
    """

    def __init__(
        self, weights: tuple[float, ...], label_smoothing: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**{"name": "weighted_log_loss", **kwargs})
        self.weights = list(weights)
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Labels and logits [B, L] → loss [B]."""
        logits = ops.cast(y_pred, "float32")
        labels = ops.cast(y_true, "float32")
        labels = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
        # max(x, 0) - x z + log(1 + exp(-|x|)) overflows for no logit.
        each = ops.relu(logits) - logits * labels + ops.log1p(ops.exp(-ops.abs(logits)))
        weights = ops.convert_to_tensor(self.weights, "float32")
        return ops.sum(each * weights, axis=-1) / sum(self.weights)

    def get_config(self) -> dict[str, Any]:
        """What a saved model needs to make this loss again."""
        config = super().get_config()
        return {**config, "weights": self.weights, "label_smoothing": self.label_smoothing}
