"""Labels and probabilities of slices or studies, with metrics and operating points."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from headct.errors import UsageError
from trainer.evaluation.bootstrap import intervals
from trainer.evaluation.metrics import split_figures
from trainer.evaluation.thresholds import OperatingPoint, operating_points


@dataclass(frozen=True)
class Measured:
    """Labels and probabilities of slices or studies; metrics are computed on first use.

    Attributes:
        names: names of the labels, L.
        weights: weights of the labels in the log loss, L.
        labels: 0 or 1, int64 [N, L].
        predicted: probabilities, float64 [N, L].
        patients: patient per slice or study, [N].
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.float64]
    patients: npt.NDArray[Any]

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The metrics of `metrics.split_figures`."""
        return split_figures(self.labels, self.predicted, self.names, self.weights)

    @cached_property
    def intervals(self) -> dict[str, Any]:
        """The intervals of `bootstrap.intervals`."""
        return intervals(self.labels, self.predicted, self.patients, self.names, self.weights)

    @cached_property
    def points(self) -> dict[str, list[OperatingPoint]]:
        """The operating points per label."""
        return {
            name: operating_points(self.labels[:, i], self.predicted[:, i], self.patients)
            for i, name in enumerate(self.names)
        }

    @property
    def defined(self) -> list[tuple[int, str]]:
        """Numbers and names of the labels with positives and negatives."""
        positives = self.labels.sum(axis=0)
        return [
            (i, name) for i, name in enumerate(self.names) if 0 < positives[i] < len(self.labels)
        ]

    def by_study(self, studies: npt.NDArray[Any]) -> Measured:
        """Group slices by study: a study is positive if any slice is, and has the highest score.

        Args:
            studies: study per slice, [N].
        """
        _, first, study = np.unique(studies, return_index=True, return_inverse=True)
        labels = np.zeros((len(first), len(self.names)), np.int64)
        predicted = np.zeros(labels.shape)
        np.maximum.at(labels, study, self.labels)
        np.maximum.at(predicted, study, self.predicted)
        return replace(self, labels=labels, predicted=predicted, patients=self.patients[first])


def read_predictions(path: Path, names: tuple[str, ...]) -> pd.DataFrame:
    """Read the predictions of a run, one row per slice in the order of the shards.

    Raises:
        UsageError: the file is missing or damaged, or lacks a column.
    """
    columns = ["image_id", "patient_id", "study_id"]
    columns += [f"{kind}_{name}" for kind in ("label", "probability") for name in names]
    try:
        return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: no predictions of these labels ({type(error).__name__})"
        ) from None


def measure_frame(
    frame: pd.DataFrame, names: tuple[str, ...], weights: tuple[float, ...]
) -> Measured:
    """Extract labels and probabilities from the result of `read_predictions`."""
    return Measured(
        names,
        weights,
        frame[[f"label_{name}" for name in names]].to_numpy(np.int64),
        frame[[f"probability_{name}" for name in names]].to_numpy(np.float64),
        frame["patient_id"].to_numpy(),
    )
