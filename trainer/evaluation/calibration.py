"""Whether a probability means what it says, and two numbers a label that make it so."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.model_selection import GroupKFold

from trainer.evaluation.metrics import Floats, Ints
from trainer.runs.calibration import Calibration

_BINS = 15
_HOTTEST = 20.0
_PARTS = 10

Array = npt.NDArray[np.float64]


def reliability_curve(labels: Ints, predicted: Floats, bins: int = _BINS) -> list[dict[str, Any]]:
    """Mean probability and share of positives in bins of equal width; empty bins left out.

    Labels and probabilities are [N].
    """
    which = np.minimum((predicted * bins).astype(int), bins - 1)
    curve = []
    for each in np.unique(which):
        inside = which == each
        curve.append(
            {
                "examples": int(inside.sum()),
                "predicted": float(predicted[inside].mean()),
                "observed": float(labels[inside].mean()),
            }
        )
    return curve


def expected_calibration_error(labels: Ints, predicted: Floats, bins: int = _BINS) -> float:
    """Mean distance of probability and share of positives (Guo et al., arXiv:1706.04599)."""
    curve = reliability_curve(labels, predicted, bins)
    gaps = [each["examples"] * abs(each["predicted"] - each["observed"]) for each in curve]
    return float(sum(gaps) / len(labels))


def fit_calibration(logits: Floats, labels: Ints) -> Calibration:
    """Fits a temperature and a bias per label, from logits and labels [N, L]."""
    fitted = [fit_label(logits[:, i], labels[:, i]) for i in range(labels.shape[1])]
    temperatures, biases = zip(*fitted, strict=True)
    return Calibration(temperatures, biases)


def fit_label(logits: Floats, labels: Ints) -> tuple[float, float]:
    """The temperature and the bias of one label: a logistic regression on its logits, [N].

    Labels count as a little less than certain (Platt 1999, section 2.2), so that it ends where a
    logit separates them. The temperature is 1/20 to 20: no ranking is turned round. A label
    without positives, or without negatives, keeps its logits.
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

    found = minimize(
        loss_and_gradient,
        (1.0, 0.0),
        jac=True,
        method="L-BFGS-B",
        bounds=[(1 / _HOTTEST, _HOTTEST), (None, None)],
        options={"ftol": 1e-12, "gtol": 1e-8},
    )
    scale, bias = (float(each) for each in found.x)
    return 1 / scale, bias


def cross_calibrate(logits: Floats, labels: Ints, patients: npt.NDArray[Any]) -> Array:
    """Calibrates the logits of each patient by what is fitted on other patients, [N, L].

    Args:
        logits: [N, L].
        labels: [N, L].
        patients: whose each example is, [N]; of two or more.
    """
    calibrated = np.empty(logits.shape)
    for rest, part in GroupKFold(parts_of(patients)).split(logits, groups=patients):
        calibrated[part] = fit_calibration(logits[rest], labels[rest]).apply(logits[part])
    return calibrated


def parts_of(patients: npt.NDArray[Any]) -> int:
    """Into how many parts patients are split for cross-fitting."""
    return min(_PARTS, len(np.unique(patients)))


def explain_fit(
    logits: Floats, labels: Ints, names: tuple[str, ...], found: Calibration
) -> list[str]:
    """Labels of which a fit says little, and why; labels and logits are [N, L]."""
    lines = []
    for i, name in enumerate(names):
        positive = logits[labels[:, i] == 1, i]
        negative = logits[labels[:, i] == 0, i]
        if not len(positive) or not len(negative):
            kind = "positives" if len(negative) else "negatives"
            lines.append(f"{name}: no {kind}, so its probabilities stay as they are")
        elif positive.min() > negative.max():
            lines.append(
                f"{name}: perfectly separated, so its probabilities are kept off 0 and 1 as far as"
                f" {len(positive)} positives and {len(negative)} negatives ask for it"
            )
        elif found.temperatures[i] > 0.99 * _HOTTEST:
            lines.append(
                f"{name}: its logits rank no better than chance, so its probabilities are close to"
                " its share of positives"
            )
    return lines
