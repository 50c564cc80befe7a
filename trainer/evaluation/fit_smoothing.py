"""Fit of the smoothing along z on predictions with labels, and its comparison without smoothing."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import Array, example_losses, probabilities
from trainer.evaluation.predict_models import Predictions
from trainer.runs.smoothing import NO_SMOOTHING, Smoothing, local_means, mix

# Two parameters from a grid: the loss is flat around its minimum, and the loss of every patient is
# then computed once, whichever patients a fit leaves out.
WIDTHS_MM = tuple(2.0 ** (step / 2) for step in range(10))  # 1 to 23 mm
AMOUNTS = tuple(step / 10 for step in range(1, 11))
CANDIDATES = (
    NO_SMOOTHING,
    *(Smoothing(width, amount) for width in WIDTHS_MM for amount in AMOUNTS),
)


class SmoothingFit:
    """The loss of every patient with every candidate.

    Args:
        predictions: of N slices, with labels.
        weights: of the labels in the loss, [L].
    """

    def __init__(self, predictions: Predictions, weights: tuple[float, ...]) -> None:
        self.logits, labels = predictions.logits.astype(np.float64), predictions.labels
        self.scans = predictions.scans
        self.means = cache(lambda width: local_means(self.logits, self.scans, width))
        _, self.patient = np.unique(predictions.rows["patient_id"], return_inverse=True)
        self.losses = np.stack(
            [
                np.bincount(self.patient, np.average(example_losses(labels, each), 1, weights))
                for each in map(probabilities, map(self.smooth, CANDIDATES))
            ],
            axis=1,
        )

    def smooth(self, smoothing: Smoothing) -> Array:
        """Return all logits, smoothed, [N, L]."""
        if not smoothing.changes:
            return self.logits
        return mix(self.logits, self.means(smoothing.width_mm), smoothing.amount)

    def fit(self, rows: npt.NDArray[np.integer[Any]]) -> Smoothing:
        """Return the candidate with the lowest loss for the patients of some slices."""
        return CANDIDATES[int(self.losses[np.unique(self.patient[rows])].sum(axis=0).argmin())]

    def smooth_by(self, rows: npt.NDArray[np.integer[Any]]) -> Array:
        """Return all logits, [N, L], smoothed as fits the patients of some slices."""
        return self.smooth(self.fit(rows))


def compare_smoothing(
    before: Predictions, after: Predictions, weights: tuple[float, ...]
) -> dict[str, Any]:
    """Return the figures with and without smoothing, and their paired differences over patients.

    Both are without calibration. `helps` tells whether the whole 95 % interval of the difference
    of the log loss is below 0.
    """
    without, smoothed = (Measured(each.frame(), each.names, weights) for each in (before, after))
    figures = ("weighted_log_loss", "mean_roc_auc")
    differences = {
        total: smoothed.difference(without, metric)
        for total, metric in zip(figures, ("log_loss", "roc_auc"), strict=True)
    }
    loss = differences["weighted_log_loss"]
    return {
        "without": {name: without.figures[name] for name in figures},
        "with": {name: smoothed.figures[name] for name in figures},
        "difference": {name: found.value for name, found in differences.items()},
        "difference_intervals_95": {name: found.ends for name, found in differences.items()},
        "patients": without.intervals["patients"],
        "helps": loss.is_below_0,
    }


def describe_smoothing(smoothing: Smoothing) -> dict[str, float | None]:
    """Return the entry for files; None where nothing is smoothed."""
    changes = smoothing.changes
    return {
        "smooth_z_width_mm": smoothing.width_mm if changes else None,
        "smooth_z_amount": smoothing.amount if changes else None,
    }
