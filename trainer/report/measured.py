"""The examples that a report is of: by slice, and by study."""

from __future__ import annotations

from dataclasses import dataclass
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
    """Labels and probabilities of slices, or of studies.

    Attributes:
        names: of the labels.
        weights: of the labels.
        labels: int64 [N, L].
        predicted: probabilities, [N, L].
        patients: whose each example is, [N].
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.float64]
    patients: npt.NDArray[Any]

    @cached_property
    def figures(self) -> dict[str, Any]:
        """As `metrics.split_figures` has them."""
        return split_figures(self.labels, self.predicted, self.names, self.weights)

    @cached_property
    def intervals(self) -> dict[str, Any]:
        """As `bootstrap.intervals` has them."""
        return intervals(self.labels, self.predicted, self.patients, self.names, self.weights)

    @cached_property
    def points(self) -> dict[str, list[OperatingPoint]]:
        """Each label's thresholds."""
        return {
            name: operating_points(self.labels[:, i], self.predicted[:, i], self.patients)
            for i, name in enumerate(self.names)
        }


def read_predictions(path: Path, names: tuple[str, ...]) -> pd.DataFrame:
    """Reads a run's predictions, one row per slice in the order of the shards.

    Raises:
        UsageError: the file is not there, damaged, or without a column.
    """
    wanted = ["image_id", "patient_id", "study_id"]
    wanted += [f"{kind}_{name}" for kind in ("label", "probability") for name in names]
    try:
        return pd.read_parquet(path, columns=wanted)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: no predictions of these labels ({type(error).__name__})"
        ) from None


def measure_slices(
    frame: pd.DataFrame, names: tuple[str, ...], weights: tuple[float, ...]
) -> Measured:
    """Each row of the predictions."""
    return Measured(
        names,
        weights,
        frame[[f"label_{name}" for name in names]].to_numpy(np.int64),
        frame[[f"probability_{name}" for name in names]].to_numpy(np.float64),
        frame["patient_id"].to_numpy(),
    )


def measure_studies(
    frame: pd.DataFrame, names: tuple[str, ...], weights: tuple[float, ...]
) -> Measured:
    """A study is positive when any of its slices is; its probability is the highest of theirs."""
    columns = [f"{kind}_{name}" for kind in ("label", "probability") for name in names]
    how = dict.fromkeys(columns, "max") | {"patient_id": "first"}
    return measure_slices(frame.groupby("study_id").agg(how), names, weights)
