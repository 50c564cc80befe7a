"""Figures of merit, by scikit-learn, over whole splits."""

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


def probabilities(logits: Floats) -> npt.NDArray[np.float64]:
    """Sigmoid in float64: float32 cannot tell 1 - 1e-9 from 1."""
    return np.asarray(expit(logits.astype(np.float64)))


def label_log_losses(labels: Ints, predicted: Floats) -> npt.NDArray[np.float64]:
    """Log loss of each label, in nats; labels and probabilities are [N, L]."""
    clipped = np.clip(predicted.astype(np.float64), CLIP, 1 - CLIP)
    return np.array(
        [log_loss(labels[:, i], clipped[:, i], labels=[0, 1]) for i in range(labels.shape[1])]
    )


def weighted_log_loss(labels: Ints, predicted: Floats, weights: tuple[float, ...]) -> float:
    """The competition's metric: label log losses, weighted by `weights` / their sum."""
    return float(np.average(label_log_losses(labels, predicted), weights=weights))


def sensitivity_at(labels: Ints, predicted: Floats, specificity: float) -> float:
    """The highest sensitivity of all thresholds whose specificity is at least this.

    Labels, of which some are positive and some not, and probabilities are [N].
    """
    false_positives, true_positives, _ = roc_curve(labels, predicted, drop_intermediate=False)
    return float(true_positives[false_positives <= 1 - specificity + 1e-12].max())


def prevalence_baseline(
    labels: Ints, prevalence: tuple[float, ...], weights: tuple[float, ...]
) -> float:
    """The weighted log loss of always predicting the training data's prevalence."""
    return weighted_log_loss(labels, np.tile(prevalence, (len(labels), 1)), weights)


def label_figures(labels: Ints, predicted: Floats) -> dict[str, float | int | None]:
    """What is known of one label, from labels and probabilities [N].

    What needs both positives and negatives is None where there are not both.
    """
    positives = int(labels.sum())
    both = 0 < positives < len(labels)
    return {
        "positives": positives,
        "log_loss": float(label_log_losses(labels[:, None], predicted[:, None])[0]),
        "roc_auc": float(roc_auc_score(labels, predicted)) if both else None,
        "average_precision": float(average_precision_score(labels, predicted)) if both else None,
        **{
            f"sensitivity_at_specificity_{each:.2f}": (
                sensitivity_at(labels, predicted, each) if both else None
            )
            for each in _SPECIFICITIES
        },
    }


def mean_defined(values: list[Any]) -> float | None:
    """The mean of those that are not None; None when all are."""
    defined = [each for each in values if each is not None]
    return float(np.mean(defined)) if defined else None


def split_figures(
    labels: Ints, predicted: Floats, names: tuple[str, ...], weights: tuple[float, ...]
) -> dict[str, Any]:
    """What is known of a split, from labels and probabilities [N, L]."""
    each = {name: label_figures(labels[:, i], predicted[:, i]) for i, name in enumerate(names)}
    return {
        "examples": len(labels),
        "weighted_log_loss": weighted_log_loss(labels, predicted, weights),
        "label_weights": dict(zip(names, weights, strict=True)),
        "mean_roc_auc": mean_defined([figures["roc_auc"] for figures in each.values()]),
        "mean_average_precision": mean_defined(
            [figures["average_precision"] for figures in each.values()]
        ),
        "labels": each,
    }
