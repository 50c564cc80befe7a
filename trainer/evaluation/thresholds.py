"""Operating points: thresholds of probabilities, with sensitivity, specificity, PPV and NPV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from trainer.evaluation.bootstrap import SAMPLES, Array, interval, resamples
from trainer.evaluation.metrics import Floats, Ints

SENSITIVITY = 0.95
RATES = ("sensitivity", "specificity", "ppv", "npv")


class Rate(NamedTuple):
    """A fraction of examples with its 95 % interval; None without such examples."""

    value: float | None
    ends: list[float] | None


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and its rates; a probability at or above the threshold is a yes.

    Attributes:
        rule: rule of the threshold, "youden" or "sensitivity".
        threshold: a probability.
        counts: true positives, false negatives, true negatives, false positives.
        rates: by the names of `RATES`.
    """

    rule: str
    threshold: float
    counts: tuple[int, int, int, int]
    rates: dict[str, Rate]


def operating_points(
    labels: Ints,
    predicted: Floats,
    patients: npt.NDArray[Any],
    seed: int = 0,
    samples: int = SAMPLES,
) -> list[OperatingPoint]:
    """Return one label's two operating points; none without positives or without negatives.

    The first has the highest sensitivity + specificity (Youden, Cancer 1950), the second the
    highest threshold with a sensitivity of at least `SENSITIVITY`.

    Args:
        labels: [N].
        predicted: probabilities, [N].
        patients: patient per example, [N].
        seed: of the resamples.
        samples: number of resamples.
    """
    if not 0 < labels.sum() < len(labels):
        return []
    _, patient = np.unique(patients, return_inverse=True)
    points = []
    for rule, threshold in choose_thresholds(labels, predicted).items():
        counts = counts_by_patient(labels, predicted >= threshold, patient)
        drawn = [weights @ counts for weights in resamples(len(counts), samples, seed)]
        tp, fn, tn, fp = (int(total) for total in counts.sum(axis=0))
        described = describe_rates(counts, rates(np.reshape(drawn, (-1, 4))))
        points.append(OperatingPoint(rule, threshold, (tp, fn, tn, fp), described))
    return points


def choose_thresholds(labels: Ints, predicted: Floats) -> dict[str, float]:
    """Return the threshold of each rule, from labels and probabilities [N]."""
    # drop roc_curve's first threshold: infinite
    false, true, thresholds = (
        values[1:] for values in roc_curve(labels, predicted, drop_intermediate=False)
    )
    return {
        "youden": float(thresholds[np.argmax(true - false)]),
        "sensitivity": float(thresholds[np.argmax(true >= SENSITIVITY - 1e-12)]),
    }


def counts_by_patient(
    labels: Ints, answers: npt.NDArray[np.bool_], patient: Ints
) -> npt.NDArray[np.int64]:
    """Count true positives, false negatives, true negatives and false positives, [P, 4]."""
    positive = labels == 1
    kinds = (positive & answers, positive & ~answers, ~positive & ~answers, ~positive & answers)
    patients = int(patient.max()) + 1
    return np.stack([np.bincount(patient[kind], minlength=patients) for kind in kinds], axis=1)


def shares(counts: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return numerators and denominators of `RATES`, each [..., 4], from counts [..., 4]."""
    tp, fn, tn, fp = np.moveaxis(counts, -1, 0)
    return np.stack((tp, tn, tp, tn), axis=-1), np.stack((tp + fn, tn + fp, tp + fp, tn + fn), -1)


def rates(counts: npt.NDArray[Any]) -> Array:
    """Return sensitivity, specificity, PPV and NPV, [..., 4], from counts; NaN for 0 of 0."""
    part, whole = shares(counts)
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def describe_rates(counts: npt.NDArray[np.int64], drawn: Array) -> dict[str, Rate]:
    """Return the rates with intervals.

    Rates of 0 or 1 have no spread over resamples: their interval is the exact binomial interval
    (Clopper and Pearson, Biometrika 1934) for the number of patients.

    Args:
        counts: counts per patient, [P, 4].
        drawn: rates per resample, [S, 4].
    """
    values = rates(counts.sum(axis=0))
    patients = (shares(counts)[1] > 0).sum(axis=0)
    described = {}
    for i, name in enumerate(RATES):
        if np.isnan(values[i]):
            described[name] = Rate(None, None)
        elif values[i] in (0, 1):
            n = int(patients[i])
            exact = binomtest(int(values[i]) * n, n).proportion_ci(method="exact")
            described[name] = Rate(float(values[i]), [float(exact.low), float(exact.high)])
        else:
            described[name] = Rate(float(values[i]), interval(drawn[:, i]))
    return described
