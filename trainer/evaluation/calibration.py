"""Fits of temperatures and biases to logits, and fits that leave out patients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.model_selection import GroupKFold

from trainer.evaluation.metrics import Array, Floats, Ints
from trainer.runs.run import Calibration

_HIGHEST_TEMPERATURE = 20.0
_GROUPS = 10  # of patients, in cross-fitting
# From rows of slices to the logits of all slices, smoothed as fits the patients of these.
SmoothBy = Callable[[npt.NDArray[np.integer[Any]]], Array]


def count_groups(patients: npt.NDArray[Any]) -> int:
    """Return the number of groups of patients in cross-fitting."""
    return min(_GROUPS, len(np.unique(patients)))


def cross_fit(patients: npt.NDArray[Any], answer: Callable[[Ints, Ints], Array]) -> Array:
    """Return answers for each example, [N, ...], by fits without the example's patient.

    Args:
        patients: [N], of two patients or more.
        answer: fits on some examples, and answers for others: from the numbers of both, to [n, ...]
            for the latter.
    """
    groups = GroupKFold(count_groups(patients)).split(patients, groups=patients)
    parts = [(group, answer(rest, group)) for rest, group in groups]
    crossed = np.empty((len(patients), *parts[0][1].shape[1:]))
    for group, answers in parts:
        crossed[group] = answers
    return crossed


def fit_calibration(logits: Floats, labels: Ints) -> Calibration:
    """Fit a temperature and a bias per label, from logits and labels [N, L]."""
    fitted = [fit_label(logits[:, i], labels[:, i]) for i in range(labels.shape[1])]
    temperatures, biases = zip(*fitted, strict=True)
    return Calibration(temperatures, biases)


def fit_label(logits: Floats, labels: Ints) -> tuple[float, float]:
    """Fit temperature and bias of one label: a logistic regression on its logits, [N].

    The targets are slightly smoothed (Platt 1999, section 2.2): the fit stays finite for separable
    labels. The temperature is 1/20 to 20; positive temperatures keep the ranking.
    A label without positives, or without negatives, keeps its logits.
    """
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if not positives or not negatives:
        return 1.0, 0.0
    x = logits.astype(np.float64)
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss_and_gradient(parameters: Array) -> tuple[float, Array]:
        z = parameters[0] * x + parameters[1]
        error = expit(z) - target
        loss = float((np.logaddexp(0, z) - target * z).mean())
        return loss, np.array([(error * x).mean(), error.mean()])

    fit = minimize(
        loss_and_gradient,
        (1.0, 0.0),
        jac=True,
        method="L-BFGS-B",
        bounds=[(1 / _HIGHEST_TEMPERATURE, _HIGHEST_TEMPERATURE), (None, None)],
        options={"ftol": 1e-12, "gtol": 1e-8},
    )
    scale, bias = fit.x.tolist()
    return 1 / scale, bias


def cross_calibrate(
    logits: Floats, labels: Ints, patients: npt.NDArray[Any], smooth_by: SmoothBy | None = None
) -> Array:
    """Calibrate logits [N, L] per patient by fits on other patients, of whom there must be some.

    With `smooth_by`, the smoothing is fitted on the same other patients, in place of `logits`.
    """

    def calibrate(rest: Ints, group: Ints) -> Array:
        these = logits if smooth_by is None else smooth_by(rest)
        return fit_calibration(these[rest], labels[rest]).apply(these[group])

    return cross_fit(patients, calibrate)
