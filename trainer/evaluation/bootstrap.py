"""95 % intervals, by resampling patients: slices of one patient are no independent facts.

A resample is how often it has each patient: losses are summed by patient, and scores sorted, only
once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation.metrics import CLIP, Floats, Ints

SAMPLES = 1000
LOW, HIGH = 2.5, 97.5

Array = npt.NDArray[np.float64]


class RankedScores:
    """One label's examples in the order of their scores, for figures of many resamples.

    A weight a patient is all that differs between two resamples: what lies below each positive is
    looked up once, and summed each time.
    """

    def __init__(self, labels: Ints, scores: Floats, patient: Ints) -> None:
        """Of labels, scores and numbers of patients, [N]."""
        positive = labels == 1
        negatives, positives = scores[~positive], scores[positive]
        order = np.argsort(negatives, kind="stable")
        rising = np.argsort(positives, kind="stable")
        negatives, positives = negatives[order], positives[rising]
        self.negative_patients = patient[~positive][order]
        self.positive_patients = patient[positive][rising]
        # How many negatives have a lower score, and a lower or the same.
        self.below = np.searchsorted(negatives, positives, "left")
        self.up_to = np.searchsorted(negatives, positives, "right")
        # How many positives have a lower score.
        self.positives_below = np.searchsorted(positives, positives, "left")
        # Whole numbers of 32 bits are gathered and summed five times as fast as floats.
        self.drawn = np.empty(len(negatives), np.int32)
        self.sums = np.zeros(len(negatives) + 1, np.int32)

    def figures(self, weights: npt.NDArray[np.int32]) -> tuple[float, float]:
        """ROC AUC and average precision with each patient as often as `weights`, [P].

        The AUC is the chance that a positive scores above a negative, ties counting half (Hanley
        and McNeil, Radiology 1982); the average precision is the mean over all positives of the
        precision at their scores. Both NaN without both kinds of labels.
        """
        np.take(weights, self.negative_patients, out=self.drawn, mode="clip")
        np.cumsum(self.drawn, out=self.sums[1:])
        positives = weights[self.positive_patients].astype(np.float64)
        total, negatives = float(positives.sum()), float(self.sums[-1])
        if not total * negatives > 0:
            return float("nan"), float("nan")
        below = self.sums[self.below].astype(np.float64)
        won = float(positives @ (below + self.sums[self.up_to])) / 2
        found = total - np.concatenate(([0.0], np.cumsum(positives)))[self.positives_below]
        # A positive that was not drawn may have nothing at or above its score.
        answered = np.maximum(found + negatives - below, 1)
        return won / (total * negatives), float(positives @ (found / answered)) / total


def resamples(patients: int, samples: int, seed: int) -> Iterator[npt.NDArray[np.int32]]:
    """How often each of `patients` is drawn, [P], `samples` times; the same for the same seed.

    None of one patient alone, who has no spread.
    """
    random = np.random.default_rng(seed)
    for _ in range(samples if patients > 1 else 0):
        drawn = random.integers(0, patients, patients)
        yield np.bincount(drawn, minlength=patients).astype(np.int32)


def example_losses(labels: Ints, predicted: Floats) -> Array:
    """Log loss of each example and label, [N, L], in nats."""
    right = np.where(labels == 1, predicted, 1 - predicted.astype(np.float64))
    return np.asarray(-np.log(np.clip(right, CLIP, 1 - CLIP)))


@dataclass(frozen=True)
class ResampledFigures:
    """Figures of each label in each resample, [S, L]; NaN where one is not defined.

    Those of two models belong together, row by row, if labels, patients and seed are the same.

    Attributes:
        patients: how many there are.
        log_loss: nats.
    """

    patients: int
    log_loss: Array
    roc_auc: Array
    average_precision: Array

    def weighted_log_loss(self, weights: tuple[float, ...]) -> Array:
        """[S]."""
        return np.asarray(self.log_loss @ np.array(weights) / sum(weights))


def resample_figures(
    labels: Ints,
    predicted: Floats,
    patients: npt.NDArray[Any],
    seed: int = 0,
    samples: int = SAMPLES,
) -> ResampledFigures:
    """Labels and probabilities are [N, L], `patients` [N]; no resample of one patient alone."""
    found, patient = np.unique(patients, return_inverse=True)
    count = labels.shape[1]
    losses = example_losses(labels, predicted)
    # Sums by patient, [P, L], and the number of each one's examples, [P].
    summed = np.stack(
        [np.bincount(patient, losses[:, i], len(found)) for i in range(count)], axis=1
    )
    sizes = np.bincount(patient, minlength=len(found))
    ranked = [RankedScores(labels[:, i], predicted[:, i], patient) for i in range(count)]
    drawn_losses, drawn_figures = [], []
    for weight in resamples(len(found), samples, seed):
        drawn_losses.append(weight @ summed / (weight @ sizes))
        drawn_figures.append([each.figures(weight) for each in ranked])
    auc, precision = np.moveaxis(np.reshape(drawn_figures, (-1, count, 2)), 2, 0)
    return ResampledFigures(len(found), np.reshape(drawn_losses, (-1, count)), auc, precision)


def intervals(
    labels: Ints,
    predicted: Floats,
    patients: npt.NDArray[Any],
    names: tuple[str, ...],
    weights: tuple[float, ...],
    seed: int = 0,
    samples: int = SAMPLES,
) -> dict[str, Any]:
    """Percentile intervals of the weighted log loss, and of each label's figures.

    Labels and probabilities are [N, L], `patients` [N]. None where a figure is not defined
    in any resample, or where there is one patient alone.
    """
    drawn = resample_figures(labels, predicted, patients, seed, samples)
    return {
        "patients": drawn.patients,
        "samples": len(drawn.log_loss),
        "weighted_log_loss": interval(drawn.weighted_log_loss(weights)),
        "mean_roc_auc": interval(mean_of_defined(drawn.roc_auc)),
        "mean_average_precision": interval(mean_of_defined(drawn.average_precision)),
        "labels": {
            name: {
                "log_loss": interval(drawn.log_loss[:, i]),
                "roc_auc": interval(drawn.roc_auc[:, i]),
                "average_precision": interval(drawn.average_precision[:, i]),
            }
            for i, name in enumerate(names)
        },
    }


def mean_of_defined(values: Array) -> Array:
    """The mean of each row of [S, L] over what is no NaN; no entry for rows that have nothing."""
    return np.array([row[~np.isnan(row)].mean() for row in values if not np.isnan(row).all()])


def interval(values: Array) -> list[float] | None:
    """The middle 95 % of what is defined."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    return [float(each) for each in np.percentile(defined, (LOW, HIGH))]
