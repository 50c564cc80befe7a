"""Predictions with labels, of slices or studies: metrics, intervals, and operating points."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from headct.errors import UsageError
from trainer.evaluation.bootstrap import interval, resample_losses, resample_ranks, resamples
from trainer.evaluation.metrics import TOTALS, Array, Floats, Ints, split_figures

SENSITIVITY = 0.95


class Estimate(NamedTuple):
    """A figure with its 95 % interval; None if undefined.

    As text, the interval is in parentheses; in HTML, in small type.

    Attributes:
        value: the figure.
        ends: both ends of the interval.
        spec: format of the numbers.
    """

    value: float | None
    ends: list[float] | None = None
    spec: str = ".3f"

    @property
    def number(self) -> str:
        """The figure alone."""
        return "n/a" if self.value is None else format(self.value, self.spec)

    @property
    def is_below_0(self) -> bool:
        """Whether the whole interval is below 0: a loss that is lower for certain."""
        return bool(self.ends and self.ends[1] < 0)

    @property
    def spread(self) -> str:
        """The interval; empty if undefined."""
        return "" if self.ends is None else " to ".join(format(end, self.spec) for end in self.ends)

    def __str__(self) -> str:
        return f"{self.number} ({self.spread})" if self.ends else self.number

    def __html__(self) -> str:
        # An interval of zero width would suggest certainty: all resamples have the same figure.
        if self.value is None or self.ends is None or self.ends[0] == self.ends[1]:
            return self.number
        return f"{self.number} <small>{self.spread}</small>"


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and its rates; a probability at or above the threshold is a yes.

    Attributes:
        threshold: a probability.
        counts: true positives, false negatives, true negatives, false positives.
        rates: sensitivity, specificity, PPV and NPV.
    """

    threshold: float
    counts: tuple[int, ...]
    rates: tuple[Estimate, ...]


@dataclass(frozen=True)
class Measured:
    """Predictions with labels; metrics are computed on first use.

    Attributes:
        frame: one row per slice or study: patient_id, study_id, and label_<name> (0 or 1) and
            probability_<name> of every label.
        names: names of the labels, L.
        weights: weights of the labels in the log loss, L.
    """

    frame: pd.DataFrame
    names: tuple[str, ...]
    weights: tuple[float, ...]

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """The labels, [N, L]."""
        return self.values("label").astype(np.int64)

    @cached_property
    def predicted(self) -> Array:
        """The probabilities, [N, L]."""
        return self.values("probability")

    def has(self, kind: str) -> bool:
        """Return whether there are columns <kind>_<name>."""
        return f"{kind}_{self.names[0]}" in self.frame

    def values(self, kind: str) -> Array:
        """Return the columns <kind>_<name>, [N, L]."""
        return self.frame[[f"{kind}_{name}" for name in self.names]].to_numpy(np.float64)

    def answered(self, predicted: Array) -> Measured:
        """Return the same slices with other probabilities, [N, L]."""
        columns = zip(self.names, predicted.T, strict=True)
        frame = self.frame.assign(**{f"probability_{name}": column for name, column in columns})
        return replace(self, frame=frame)

    @cached_property
    def means(self) -> pd.DataFrame:
        """Mean probability of a label (column) among the positives of a label (row), [L, L].

        It replaces a confusion matrix, because labels are not mutually exclusive. Rows of labels
        without positives are NaN.
        """
        frame = pd.DataFrame(self.predicted, columns=list(self.names))
        rows = {name: frame[self.labels[:, i] == 1].mean() for i, name in enumerate(self.names)}
        return pd.DataFrame(rows).T

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The metrics of `metrics.split_figures`."""
        return split_figures(self.labels, self.predicted, self.names, self.weights)

    @cached_property
    def resampled_losses(self) -> Array:
        """The losses of `bootstrap.resample_losses`."""
        patients = self.frame["patient_id"]
        return resample_losses(self.labels, self.predicted, patients, self.weights)

    @cached_property
    def resampled_ranks(self) -> dict[str, Array]:
        """The metrics of `bootstrap.resample_ranks`, which take much longer than the losses."""
        return resample_ranks(self.labels, self.predicted, self.frame["patient_id"])

    def resampled(self, metric: str) -> Array:
        """Return a metric of `TOTALS` per resample of patients, [S, L + 1]."""
        return self.resampled_losses if metric == "log_loss" else self.resampled_ranks[metric]

    @cached_property
    def intervals(self) -> dict[str, Any]:
        """Intervals by the keys of `figures`; None if undefined in all resamples, if any."""
        ends = {
            metric: [interval(column) for column in self.resampled(metric).T] for metric in TOTALS
        }
        return {
            "patients": self.frame["patient_id"].nunique(),
            "samples": len(self.resampled_losses),
            **{total: ends[metric][-1] for metric, total in TOTALS.items()},
            "labels": {
                name: {metric: ends[metric][i] for metric in TOTALS}
                for i, name in enumerate(self.names)
            },
        }

    def estimate(self, metric: str, name: str = "", spec: str = ".3f") -> Estimate:
        """Return a metric of `TOTALS` for one label, or for all together."""
        return Estimate(
            _find(self.figures, metric, name), _find(self.intervals, metric, name), spec
        )

    def difference(
        self, other: Measured, metric: str, name: str = "", spec: str = "+.3f"
    ) -> Estimate:
        """Return a metric minus that of other predictions of the same slices, in the same order.

        The interval is of differences over the same resamples of patients.
        """
        mine, theirs = (_find(each.figures, metric, name) for each in (self, other))
        column = self.names.index(name) if name else -1
        drawn = self.resampled(metric)[:, column] - other.resampled(metric)[:, column]
        value = None if mine is None or theirs is None else mine - theirs
        return Estimate(value, interval(drawn), spec)

    @property
    def defined(self) -> list[tuple[int, str]]:
        """Numbers and names of the labels with positives and negatives."""
        kinds = np.ptp(self.labels, axis=0)
        return [(i, name) for i, name in enumerate(self.names) if kinds[i]]

    @cached_property
    def points(self) -> dict[str, list[OperatingPoint]]:
        """The operating points of the labels in `defined`."""
        patients = self.frame["patient_id"]
        return {
            name: operating_points(self.labels[:, i], self.predicted[:, i], patients)
            for i, name in self.defined
        }

    def by_study(self) -> Measured:
        """Group slices by study: a study is positive if any slice is, and has the highest score."""
        return self._grouped(["study_id"])

    def by_scan(self) -> Measured:
        """Group slices by series, as `by_study`."""
        return self._grouped(["study_id", "series_id"])

    def _grouped(self, by: list[str]) -> Measured:
        highest = [f"{kind}_{name}" for kind in ("label", "probability") for name in self.names]
        how = {"patient_id": "first"} | dict.fromkeys(highest, "max")
        return replace(self, frame=self.frame.groupby(by, as_index=False).agg(how))


def _find(figures: dict[str, Any], metric: str, name: str) -> Any:
    """Return a metric of one label, or of all together, from figures or intervals."""
    return figures["labels"][name][metric] if name else figures[TOTALS[metric]]


def read_predictions(path: Path, names: tuple[str, ...]) -> pd.DataFrame:
    """Read the predictions of a run, one row per slice, the shards interleaved.

    The columns that only some versions and models write are series_id, position_z, and, of a scan
    model, alone_<name> and pooled_<name>.

    Raises:
        UsageError: the file is missing or damaged, or lacks a column.
    """
    columns = ["image_id", "patient_id", "study_id"]
    columns += [f"{kind}_{name}" for kind in ("label", "probability") for name in names]
    more = ["series_id", "position_z"]
    more += [f"{kind}_{name}" for kind in ("alone", "pooled") for name in names]
    try:
        known = pq.read_schema(path).names
        return pd.read_parquet(path, columns=columns + [each for each in more if each in known])
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: no predictions of these labels ({type(error).__name__})"
        ) from None


def operating_points(labels: Ints, predicted: Floats, patients: Any) -> list[OperatingPoint]:
    """Return two operating points of one label with positives and negatives; arguments are [N].

    The first has the highest sensitivity + specificity (Youden, Cancer 1950), the second the
    highest threshold with a sensitivity of at least `SENSITIVITY`.
    """
    unique, patient = np.unique(patients, return_inverse=True)
    # drop roc_curve's first threshold: infinite
    false, true, thresholds = (
        values[1:] for values in roc_curve(labels, predicted, drop_intermediate=False)
    )
    points = []
    for index in (np.argmax(true - false), np.argmax(true >= SENSITIVITY)):
        threshold, positive = float(thresholds[index]), labels == 1
        answers = predicted >= threshold
        kinds = (positive & answers, positive & ~answers, ~positive & ~answers, ~positive & answers)
        counts = np.stack([np.bincount(patient[kind], minlength=len(unique)) for kind in kinds], 1)
        draws = [draw @ counts for draw in resamples(len(unique))]
        drawn = np.reshape(draws, (len(draws), 4))
        # Sensitivity, specificity, PPV and NPV: columns of right and wrong answers.
        pairs = ([0, 1], [2, 3], [0, 3], [2, 1])
        rates = tuple(estimate_rate(counts[:, pair], drawn[:, pair]) for pair in pairs)
        points.append(OperatingPoint(threshold, tuple(counts.sum(axis=0).tolist()), rates))
    return points


def estimate_rate(counts: Ints, drawn: Ints) -> Estimate:
    """Return the share of right answers.

    A share of 0 or 1 has no spread over resamples: its interval is the exact binomial interval
    (Clopper and Pearson, Biometrika 1934) for the number of patients. Right and wrong answers are
    counted per patient, [P, 2], and drawn per resample, [S, 2].
    """
    right, wrong = counts.sum(axis=0).tolist()
    if not right + wrong:
        return Estimate(None)
    if right and wrong:
        with np.errstate(invalid="ignore"):  # 0 of 0 is NaN
            return Estimate(right / (right + wrong), interval(drawn[:, 0] / drawn.sum(axis=1)))
    patients = int(counts.any(axis=1).sum())
    exact = binomtest(patients if right else 0, patients).proportion_ci(method="exact")
    return Estimate(float(right > 0), [float(exact.low), float(exact.high)])
