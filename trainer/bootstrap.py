"""95 % intervals, by resampling patients: slices of one patient are no independent facts.

The figures are weighted forms of log loss and ROC AUC, so that a resample is a weight a
patient, and scores are sorted only once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics import CLIP, Floats, Ints

SAMPLES = 1000
LOW, HIGH = 2.5, 97.5

Array = npt.NDArray[np.float64]


class SortedScores:
    """One label's examples in the order of their scores."""

    def __init__(self, labels: Ints, scores: Floats) -> None:
        self.order = np.argsort(scores, kind="stable")
        ordered = scores[self.order]
        self.starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        self.positive = labels[self.order] == 1

    def roc_auc(self, weights: Array) -> float:
        """Weighted ROC AUC; NaN without positives or negatives.

        The chance that a positive scores above a negative, ties counting half (Hanley and
        McNeil, Radiology 1982).
        """
        weights = weights[self.order]
        positives = np.add.reduceat(np.where(self.positive, weights, 0.0), self.starts)
        negatives = np.add.reduceat(np.where(self.positive, 0.0, weights), self.starts)
        below = np.cumsum(negatives) - negatives
        pairs = positives.sum() * negatives.sum()
        won = float(positives @ (below + negatives / 2))
        return won / pairs if pairs > 0 else float("nan")


def example_losses(labels: Ints, predicted: Floats) -> Array:
    """Log loss of each example and label, [N, L], in nats."""
    right = np.where(labels == 1, predicted, 1 - predicted.astype(np.float64))
    return np.asarray(-np.log(np.clip(right, CLIP, 1 - CLIP)))


def intervals(
    labels: Ints,
    predicted: Floats,
    patients: npt.NDArray[Any],
    names: tuple[str, ...],
    weights: tuple[float, ...],
    seed: int = 0,
    samples: int = SAMPLES,
) -> dict[str, Any]:
    """Percentile intervals of the weighted log loss, and of each label's log loss and ROC AUC.

    Labels and probabilities are [N, L], `patients` [N]. None where a figure is not defined
    in any resample, or where there is one patient alone.
    """
    found, patient = np.unique(patients, return_inverse=True)
    losses = example_losses(labels, predicted)
    ranked = [SortedScores(labels[:, i], predicted[:, i]) for i in range(len(names))]
    random = np.random.default_rng(seed)
    drawn_losses, drawn_aucs = [], []
    for _ in range(samples if len(found) > 1 else 0):
        draw = np.bincount(random.integers(0, len(found), len(found)), minlength=len(found))
        weight = draw[patient].astype(np.float64)
        drawn_losses.append(weight @ losses / weight.sum())
        drawn_aucs.append([each.roc_auc(weight) for each in ranked])
    loss = np.reshape(drawn_losses, (-1, len(names)))
    auc = np.reshape(drawn_aucs, (-1, len(names)))
    return {
        "patients": len(found),
        "samples": len(loss),
        "weighted_log_loss": interval(loss @ np.array(weights) / sum(weights)),
        "mean_roc_auc": interval(
            np.array([row[~np.isnan(row)].mean() for row in auc if not np.isnan(row).all()])
        ),
        "labels": {
            name: {"log_loss": interval(loss[:, i]), "roc_auc": interval(auc[:, i])}
            for i, name in enumerate(names)
        },
    }


def interval(values: Array) -> list[float] | None:
    """The middle 95 % of what is defined."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    return [float(each) for each in np.percentile(defined, (LOW, HIGH))]
