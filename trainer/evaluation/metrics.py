"""Metrics of whole splits, most of them from scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score, roc_curve

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]

# Kaggle replaces a probability p by max(min(p, 1 - 1e-15), 1e-15).
CLIP = 1e-15
_SPECIFICITIES = (0.9, 0.95)
_BINS = 15


def probabilities(logits: Floats) -> npt.NDArray[np.float64]:
    """Return the sigmoid in float64: in float32, 1 - 1e-9 is 1."""
    return np.asarray(expit(logits.astype(np.float64)))


def label_log_losses(labels: Ints, predicted: Floats) -> npt.NDArray[np.float64]:
    """Return the log loss per label, nats, [L]; labels and probabilities are [N, L]."""
    clipped = np.clip(predicted.astype(np.float64), CLIP, 1 - CLIP)
    return np.array(
        [log_loss(labels[:, i], clipped[:, i], labels=[0, 1]) for i in range(labels.shape[1])]
    )


def weighted_log_loss(labels: Ints, predicted: Floats, weights: tuple[float, ...]) -> float:
    """Return the competition's metric: the weighted mean of the log losses per label."""
    return float(np.average(label_log_losses(labels, predicted), weights=weights))


def sensitivity_at(labels: Ints, predicted: Floats, specificity: float) -> float:
    """Return the highest sensitivity of all thresholds with at least this specificity.

    Labels and probabilities are [N], with positives and negatives.
    """
    false_positives, true_positives, _ = roc_curve(labels, predicted, drop_intermediate=False)
    return float(true_positives[false_positives <= 1 - specificity + 1e-12].max())


def prevalence_baseline(
    labels: Ints, prevalence: tuple[float, ...], weights: tuple[float, ...]
) -> float:
    """Return the weighted log loss of predicting the training prevalence."""
    return weighted_log_loss(labels, np.tile(prevalence, (len(labels), 1)), weights)


def label_figures(labels: Ints, predicted: Floats) -> dict[str, float | int | None]:
    """Return the metrics of one label, from labels and probabilities [N].

    A metric is None if it needs positives and negatives and one kind is missing.
    """
    positives = int(labels.sum())
    both = 0 < positives < len(labels)
    return {
        "positives": positives,
        "log_loss": float(label_log_losses(labels[:, None], predicted[:, None])[0]),
        "roc_auc": float(roc_auc_score(labels, predicted)) if both else None,
        "average_precision": float(average_precision_score(labels, predicted)) if both else None,
        **{
            f"sensitivity_at_specificity_{specificity:.2f}": (
                sensitivity_at(labels, predicted, specificity) if both else None
            )
            for specificity in _SPECIFICITIES
        },
    }


def mean_defined(values: list[Any]) -> float | None:
    """Return the mean of the values other than None; None if there are none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def split_figures(
    labels: Ints, predicted: Floats, names: tuple[str, ...], weights: tuple[float, ...]
) -> dict[str, Any]:
    """Return the metrics of a split, from labels and probabilities [N, L]."""
    by_label = {name: label_figures(labels[:, i], predicted[:, i]) for i, name in enumerate(names)}
    return {
        "examples": len(labels),
        "weighted_log_loss": weighted_log_loss(labels, predicted, weights),
        "label_weights": dict(zip(names, weights, strict=True)),
        "mean_roc_auc": mean_defined([figures["roc_auc"] for figures in by_label.values()]),
        "mean_average_precision": mean_defined(
            [figures["average_precision"] for figures in by_label.values()]
        ),
        "labels": by_label,
    }


def reliability_curve(labels: Ints, predicted: Floats, bins: int = _BINS) -> list[dict[str, Any]]:
    """Return mean probability and fraction of positives per bin of equal width, without empty bins.

    Labels and probabilities are [N].
    """
    bin_of = np.minimum((predicted * bins).astype(int), bins - 1)
    return [
        {
            "examples": int((bin_of == number).sum()),
            "predicted": float(predicted[bin_of == number].mean()),
            "observed": float(labels[bin_of == number].mean()),
        }
        for number in np.unique(bin_of)
    ]


def expected_calibration_error(labels: Ints, predicted: Floats, bins: int = _BINS) -> float:
    """Return the expected calibration error (Guo et al., arXiv:1706.04599)."""
    curve = reliability_curve(labels, predicted, bins)
    gaps = [point["examples"] * abs(point["predicted"] - point["observed"]) for point in curve]
    return float(sum(gaps) / len(labels))
