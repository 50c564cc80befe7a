"""95 % bootstrap intervals over patients, because slices of a patient are dependent.

A resample is a count per patient; losses are summed per patient, and scores sorted, only once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from trainer.evaluation.metrics import Array, Floats, Ints, example_losses

SAMPLES = 1000


class RankedScores:
    """One label's examples sorted by score, for ROC AUC and average precision of many resamples.

    Resamples differ only in the weight per patient: negatives below the positives are located
    once; their weights are summed per resample.
    """

    def __init__(self, labels: Ints, scores: Floats, patient: Ints) -> None:
        """Sort the examples; labels (0 or 1), scores and patient numbers are [N]."""
        positive = labels == 1
        negatives, positives = scores[~positive], scores[positive]
        order = np.argsort(negatives, kind="stable")
        rising = np.argsort(positives, kind="stable")
        negatives, positives = negatives[order], positives[rising]
        self.negative_patients = patient[~positive][order]
        self.positive_patients = patient[positive][rising]
        # Number of negatives with a lower score, and with a lower or equal one.
        self.below = np.searchsorted(negatives, positives, "left")
        self.up_to = np.searchsorted(negatives, positives, "right")
        # Number of positives with a lower score.
        self.positives_below = np.searchsorted(positives, positives, "left")
        # int32: five times as fast as float64 to gather and sum
        self.drawn = np.empty(len(negatives), np.int32)
        self.sums = np.zeros(len(negatives) + 1, np.int32)

    def figures(self, weights: npt.NDArray[np.int32]) -> tuple[float, float]:
        """Return ROC AUC and average precision with weight `weights` per patient, [P].

        The AUC is the chance that a positive scores above a negative, ties counting half (Hanley
        and McNeil, Radiology 1982); the average precision is the mean over all positives of the
        precision at their scores. Both are NaN without positives or without negatives.
        """
        np.take(weights, self.negative_patients, out=self.drawn, mode="clip")
        np.cumsum(self.drawn, out=self.sums[1:])
        positives = weights[self.positive_patients].astype(np.float64)
        total, negatives = float(positives.sum()), float(self.sums[-1])
        if not total * negatives > 0:
            return float("nan"), float("nan")
        below = self.sums[self.below].astype(np.float64)
        won = float(positives @ (below + self.sums[self.up_to])) / 2
        true_positives = total - np.concatenate(([0.0], np.cumsum(positives)))[self.positives_below]
        # at least 1: without drawn examples at or above a score, the count is 0
        predicted = np.maximum(true_positives + negatives - below, 1)
        precisions = true_positives / predicted
        return won / (total * negatives), float(positives @ precisions) / total


def resamples(patients: int) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the number of draws per patient, [P], `SAMPLES` times, the same in every call.

    Yields nothing for a single patient: a spread needs several.
    """
    random = np.random.default_rng(0)
    for _ in range(SAMPLES if patients > 1 else 0):
        drawn = random.integers(0, patients, patients)
        yield np.bincount(drawn, minlength=patients).astype(np.int32)


def resample_losses(
    labels: Ints, predicted: Floats, patients: Any, weights: tuple[float, ...]
) -> Array:
    """Return the log losses per resample of patients, [S, L + 1]: last, the weighted mean.

    Resamples of two models are paired if labels and patients are the same.

    Args:
        labels: [N, L].
        predicted: probabilities, [N, L].
        patients: [N].
        weights: of the labels, L.
    """
    unique, patient = np.unique(patients, return_inverse=True)
    losses = example_losses(labels, predicted)
    # Sums per patient, [P, L], and examples per patient, [P].
    summed = np.stack([np.bincount(patient, one, len(unique)) for one in losses.T], axis=1)
    sizes = np.bincount(patient, minlength=len(unique))
    drawn = [draws @ summed / (draws @ sizes) for draws in resamples(len(unique))]
    loss = np.reshape(drawn, (len(drawn), len(weights)))
    return np.column_stack((loss, loss @ np.array(weights) / sum(weights)))


def resample_ranks(labels: Ints, predicted: Floats, patients: Any) -> dict[str, Array]:
    """Return ROC AUC and average precision per resample, [S, L + 1]: last, the mean.

    Undefined ones are NaN; arguments as for `resample_losses`.
    """
    unique, patient = np.unique(patients, return_inverse=True)
    ranked = [RankedScores(*one, patient) for one in zip(labels.T, predicted.T, strict=True)]
    drawn = [[scores.figures(draws) for scores in ranked] for draws in resamples(len(unique))]
    auc, precision = np.moveaxis(np.reshape(drawn, (len(drawn), len(ranked), 2)), 2, 0)
    return {
        # The means of pandas leave out what is undefined.
        "roc_auc": np.column_stack((auc, pd.DataFrame(auc).mean(axis=1))),
        "average_precision": np.column_stack((precision, pd.DataFrame(precision).mean(axis=1))),
    }


def interval(values: Array) -> list[float] | None:
    """Return the central 95 % of the defined values; None without defined values."""
    defined = values[~np.isnan(values)]
    return np.percentile(defined, (2.5, 97.5)).tolist() if len(defined) else None
