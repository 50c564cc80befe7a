"""95 % intervals, by resampling patients: slices of one patient are no independent facts.

A resample is how often it has each patient: losses are summed by patient, and scores sorted, only
once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation.metrics import CLIP, Floats, Ints

_SAMPLES = 1000
LOW, HIGH = 2.5, 97.5

Array = npt.NDArray[np.float64]


class RankedScores:
    """One label's examples in the order of their scores, for ROC AUCs of many resamples.

    A weight a patient is all that differs between two resamples: what lies below each positive is
    looked up once, and summed each time.
    """

    def __init__(self, labels: Ints, scores: Floats, patient: Ints) -> None:
        """Of labels, scores and numbers of patients, [N]."""
        positive = labels == 1
        negatives = scores[~positive]
        order = np.argsort(negatives, kind="stable")
        self.negative_patients = patient[~positive][order]
        self.positive_patients = patient[positive]
        # How many negatives have a lower score, and a lower or the same.
        self.below = np.searchsorted(negatives[order], scores[positive], "left")
        self.up_to = np.searchsorted(negatives[order], scores[positive], "right")
        # Whole numbers of 32 bits are gathered and summed five times as fast as floats.
        self.drawn = np.empty(len(negatives), np.int32)
        self.sums = np.zeros(len(negatives) + 1, np.int32)

    def roc_auc(self, weights: npt.NDArray[np.int32]) -> float:
        """ROC AUC with each patient as often as `weights`, [P]; NaN without both kinds of labels.

        The chance that a positive scores above a negative, ties counting half (Hanley and
        McNeil, Radiology 1982).
        """
        np.take(weights, self.negative_patients, out=self.drawn, mode="clip")
        np.cumsum(self.drawn, out=self.sums[1:])
        positives = weights[self.positive_patients].astype(np.float64)
        pairs = positives.sum() * float(self.sums[-1])
        won = (
            float(positives @ (self.sums[self.below].astype(np.float64) + self.sums[self.up_to]))
            / 2
        )
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
    samples: int = _SAMPLES,
) -> dict[str, Any]:
    """Percentile intervals of the weighted log loss, and of each label's log loss and ROC AUC.

    Labels and probabilities are [N, L], `patients` [N]. None where a figure is not defined
    in any resample, or where there is one patient alone.
    """
    found, patient = np.unique(patients, return_inverse=True)
    losses = example_losses(labels, predicted)
    # Sums by patient, [P, L], and the number of each one's examples, [P].
    summed = np.stack(
        [np.bincount(patient, losses[:, i], len(found)) for i in range(len(names))], axis=1
    )
    sizes = np.bincount(patient, minlength=len(found))
    ranked = [RankedScores(labels[:, i], predicted[:, i], patient) for i in range(len(names))]
    random = np.random.default_rng(seed)
    drawn_losses, drawn_aucs = [], []
    for _ in range(samples if len(found) > 1 else 0):
        drawn = random.integers(0, len(found), len(found))
        weight = np.bincount(drawn, minlength=len(found)).astype(np.int32)
        drawn_losses.append(weight @ summed / (weight @ sizes))
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
