"""What a label's probabilities give once a threshold makes them yes or no."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from trainer.evaluation.bootstrap import SAMPLES, Array, interval, resamples
from trainer.evaluation.metrics import Floats, Ints

SENSITIVITY = 0.95
RATES = ("sensitivity", "specificity", "ppv", "npv")


@dataclass(frozen=True)
class Rate:
    """A share of examples with its 95 % interval; None where there is no such example."""

    value: float | None
    ends: list[float] | None


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it gives; a probability at or above it is a yes.

    Attributes:
        rule: how the threshold was chosen, "youden" or "sensitivity".
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
    """One label's two thresholds, from labels, probabilities and patients [N].

    The first makes sensitivity + specificity highest (Youden, Cancer 1950), the second is the
    highest with a sensitivity of `SENSITIVITY`. None without both positives and negatives.
    """
    if not 0 < labels.sum() < len(labels):
        return []
    _, patient = np.unique(patients, return_inverse=True)
    found = []
    for rule, threshold in choose_thresholds(labels, predicted).items():
        counts = counts_by_patient(labels, predicted >= threshold, patient)
        drawn = [weight @ counts for weight in resamples(len(counts), samples, seed)]
        total = counts.sum(axis=0)
        found.append(
            OperatingPoint(
                rule,
                threshold,
                (int(total[0]), int(total[1]), int(total[2]), int(total[3])),
                describe_rates(counts, rates(np.reshape(drawn, (-1, 4)))),
            )
        )
    return found


def choose_thresholds(labels: Ints, predicted: Floats) -> dict[str, float]:
    """The thresholds of both rules, of labels and probabilities [N]."""
    # The first of roc_curve's thresholds is infinite, for the curve's corner.
    false, true, thresholds = (
        each[1:] for each in roc_curve(labels, predicted, drop_intermediate=False)
    )
    return {
        "youden": float(thresholds[np.argmax(true - false)]),
        "sensitivity": float(thresholds[np.argmax(true >= SENSITIVITY - 1e-12)]),
    }


def counts_by_patient(
    labels: Ints, answers: npt.NDArray[np.bool_], patient: Ints
) -> npt.NDArray[np.int64]:
    """True positives, false negatives, true negatives and false positives, [P, 4]."""
    positive = labels == 1
    kinds = (positive & answers, positive & ~answers, ~positive & ~answers, ~positive & answers)
    patients = int(patient.max()) + 1
    return np.stack([np.bincount(patient[kind], minlength=patients) for kind in kinds], axis=1)


def shares(counts: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Of what, and out of what, the four `RATES` are shares: [..., 4] each, of counts [..., 4]."""
    true_positive, false_negative, true_negative, false_positive = np.moveaxis(counts, -1, 0)
    wanted = (true_positive, true_negative, true_positive, true_negative)
    missed = (false_negative, false_positive, false_positive, false_negative)
    part = np.stack(wanted, axis=-1)
    return part, part + np.stack(missed, axis=-1)


def rates(counts: npt.NDArray[Any]) -> Array:
    """Sensitivity, specificity, PPV and NPV, [..., 4], of counts [..., 4]; NaN of nothing."""
    part, whole = shares(counts)
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def describe_rates(counts: npt.NDArray[np.int64], drawn: Array) -> dict[str, Rate]:
    """Each rate with its interval, of counts by patient [P, 4] and rates of resamples [S, 4].

    A rate of 0 or 1 is the same in every resample, which is no certainty: the exact binomial
    interval (Clopper and Pearson, Biometrika 1934) of as many patients takes its place.
    """
    values = rates(counts.sum(axis=0))
    patients = (shares(counts)[1] > 0).sum(axis=0)
    found = {}
    for i, name in enumerate(RATES):
        if np.isnan(values[i]):
            found[name] = Rate(None, None)
        elif values[i] in (0, 1):
            n = int(patients[i])
            exact = binomtest(int(values[i]) * n, n).proportion_ci(method="exact")
            found[name] = Rate(float(values[i]), [float(exact.low), float(exact.high)])
        else:
            found[name] = Rate(float(values[i]), interval(drawn[:, i]))
    return found
