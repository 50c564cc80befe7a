"""Whether a probability means what it says, and one number a label that makes it so."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from trainer.evaluation.metrics import Floats, Ints, label_log_losses, probabilities

_BINS = 15


def reliability_curve(labels: Ints, predicted: Floats, bins: int = _BINS) -> list[dict[str, Any]]:
    """Mean probability and share of positives in bins of equal width; empty bins left out.

    Labels and probabilities are [N].
    """
    which = np.minimum((predicted * bins).astype(int), bins - 1)
    curve = []
    for each in np.unique(which):
        inside = which == each
        curve.append(
            {
                "examples": int(inside.sum()),
                "predicted": float(predicted[inside].mean()),
                "observed": float(labels[inside].mean()),
            }
        )
    return curve


def expected_calibration_error(labels: Ints, predicted: Floats, bins: int = _BINS) -> float:
    """Mean distance of probability and share of positives (Guo et al., arXiv:1706.04599)."""
    curve = reliability_curve(labels, predicted, bins)
    gaps = [each["examples"] * abs(each["predicted"] - each["observed"]) for each in curve]
    return float(sum(gaps) / len(labels))


def fit_temperatures(logits: Floats, labels: Ints) -> tuple[float, ...]:
    """The temperature of each label that makes its log loss least (arXiv:1706.04599, 4.2).

    Logits are divided by it; a label without positives, or without negatives, keeps 1.
    """
    return tuple(fit_temperature(logits[:, i], labels[:, i]) for i in range(labels.shape[1]))


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """The temperature of one label, from logits and labels [N], between 1/20 and 20."""
    if labels.min() == labels.max():
        return 1.0

    def loss(log_temperature: float) -> float:
        predicted = probabilities(logits / np.exp(log_temperature))
        return float(label_log_losses(labels[:, None], predicted[:, None])[0])

    reach = np.log(20.0)
    found = minimize_scalar(loss, bounds=(-reach, reach), method="bounded")
    return float(np.exp(found.x))
