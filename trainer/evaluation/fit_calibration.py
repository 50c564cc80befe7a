"""Calibration of logits: fits a temperature and a bias per label (Platt scaling)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.model_selection import GroupKFold

from trainer.evaluation.metrics import Floats, Ints
from trainer.runs.evaluation_setup import Calibration

_HIGHEST_TEMPERATURE = 20.0
_GROUPS = 10

Array = npt.NDArray[np.float64]


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
    scale, bias = (float(value) for value in fit.x)
    return 1 / scale, bias


def cross_calibrate(logits: Floats, labels: Ints, patients: npt.NDArray[Any]) -> Array:
    """Calibrate logits per patient by fits on other patients; float64 [N, L].

    Args:
        logits: [N, L].
        labels: [N, L].
        patients: patient per slice, [N]; at least two different patients.
    """
    calibrated = np.empty(logits.shape)
    for rest, group in GroupKFold(count_groups(patients)).split(logits, groups=patients):
        calibrated[group] = fit_calibration(logits[rest], labels[rest]).apply(logits[group])
    return calibrated


def count_groups(patients: npt.NDArray[Any]) -> int:
    """Return the number of groups of patients in cross-fitting."""
    return min(_GROUPS, len(np.unique(patients)))


def explain_fit(
    logits: Floats, labels: Ints, names: tuple[str, ...], fitted: Calibration
) -> list[str]:
    """Explain poor fits, one text per label; labels and logits are [N, L]."""
    lines = []
    for i, name in enumerate(names):
        positive = logits[labels[:, i] == 1, i]
        negative = logits[labels[:, i] == 0, i]
        if not len(positive) or not len(negative):
            kind = "positives" if len(negative) else "negatives"
            lines.append(f"{name}: no {kind}, so its probabilities stay as they are")
        elif positive.min() > negative.max():
            lines.append(
                f"{name}: perfectly separated, so its probabilities keep a distance from 0 and 1"
                f" that suits {len(positive)} positives and {len(negative)} negatives"
            )
        elif fitted.temperatures[i] > 0.99 * _HIGHEST_TEMPERATURE:
            lines.append(
                f"{name}: its logits rank no better than chance, so its probabilities are close to"
                " its share of positives"
            )
    return lines
