"""Metrics of whole splits, most of them from scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]

# Metrics of a label with intervals, and the keys of their (weighted) means over the labels.
TOTALS = {
    "log_loss": "weighted_log_loss",
    "roc_auc": "mean_roc_auc",
    "average_precision": "mean_average_precision",
}
# Kaggle replaces a probability p by max(min(p, 1 - 1e-15), 1e-15).
CLIP = 1e-15
_SPECIFICITIES = (0.9, 0.95)
_BINS = 15


def probabilities(logits: Floats) -> Array:
    """Return the sigmoid in float64: in float32, 1 - 1e-9 is 1."""
    return np.asarray(expit(logits.astype(np.float64)))


def example_losses(labels: Ints, predicted: Floats) -> Array:
    """Return the log loss per example and label, nats, [N, L].

    Args:
        labels: [N, L].
        predicted: probabilities, [N, L], or [L] for the same in all examples.
    """
    likelihood = np.where(labels == 1, predicted, 1 - predicted.astype(np.float64))
    return np.asarray(-np.log(np.clip(likelihood, CLIP, 1 - CLIP)))


def weighted_log_loss(labels: Ints, predicted: Floats, weights: tuple[float, ...]) -> float:
    """Return the competition's metric: the weighted mean of the log losses per label."""
    return float(np.average(example_losses(labels, predicted).mean(axis=0), weights=weights))


def label_figures(labels: Ints, predicted: Floats) -> dict[str, Any]:
    """Return the metrics of one label, from labels and probabilities [N].

    A metric is None if it needs positives and negatives and one kind is missing. The calibration
    error is the expected one (Guo et al., arXiv:1706.04599).
    """
    positives = int(labels.sum())
    figures: dict[str, Any] = {
        "positives": positives,
        "log_loss": float(example_losses(labels, predicted).mean()),
        "roc_auc": None,
        "average_precision": None,
        **{f"sensitivity_at_specificity_{wanted:.2f}": None for wanted in _SPECIFICITIES},
    }
    if 0 < positives < len(labels):
        figures["roc_auc"] = float(roc_auc_score(labels, predicted))
        figures["average_precision"] = float(average_precision_score(labels, predicted))
        false, true, _ = roc_curve(labels, predicted, drop_intermediate=False)
        for wanted in _SPECIFICITIES:
            highest = true[1 - false >= wanted].max()
            figures[f"sensitivity_at_specificity_{wanted:.2f}"] = float(highest)
    curve = reliability_curve(labels, predicted)
    gaps = [point["examples"] * abs(point["predicted"] - point["observed"]) for point in curve]
    return figures | {"calibration_error": sum(gaps) / len(labels), "reliability": curve}


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


def split_figures(
    labels: Ints, predicted: Floats, names: tuple[str, ...], weights: tuple[float, ...]
) -> dict[str, Any]:
    """Return the metrics of a split, from labels and probabilities [N, L].

    Means leave out labels without the metric; they are None if no label has it.
    """
    by_label = {name: label_figures(labels[:, i], predicted[:, i]) for i, name in enumerate(names)}
    means: dict[str, float | None] = {}
    for metric in ("roc_auc", "average_precision"):
        defined = [label[metric] for label in by_label.values() if label[metric] is not None]
        means[TOTALS[metric]] = float(np.mean(defined)) if defined else None
    return {
        "examples": len(labels),
        "weighted_log_loss": weighted_log_loss(labels, predicted, weights),
        "label_weights": dict(zip(names, weights, strict=True)),
        **means,
        "labels": by_label,
    }
