"""The mean of several runs' answers: of logits or probabilities, with equal or fitted weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp

from trainer.evaluation.metrics import Array, Floats, Ints

PROBABILITIES = "probabilities"
# Smaller fitted weights are rounding errors of the solver.
_LEAST_WEIGHT = 1e-6


def pool(
    logits: Floats, mean: str, weights: Floats, answering: npt.NDArray[np.bool_] | None = None
) -> Array:
    """Return the logits of the weighted mean over members, [N, L].

    Args:
        logits: of each member, [M, N, L].
        mean: probabilities, or logits (the geometric mean of the odds).
        weights: [M], with the sum 1; or per example, [M, N].
        answering: which member answers which example, [M, N]; the weights of these are scaled to
            the sum 1. None: all.
    """
    shares = np.broadcast_to(np.reshape(weights, (len(logits), -1)), logits.shape[:2])
    if answering is not None:
        shares = np.where(answering, shares, 0)
        shares = shares / shares.sum(axis=0)
    values, factors = np.asarray(logits, np.float64), shares[..., None]
    if mean != PROBABILITIES:
        return np.asarray((values * factors).sum(axis=0))
    # log p - log (1 - p) of the mean, without rounding p to 0 or 1
    positive, negative = (
        logsumexp(log_expit(sign * values), axis=0, b=factors) for sign in (1, -1)
    )
    return np.asarray(positive - negative)


def fit_weights(logits: Floats, labels: Ints, mean: str, label_weights: Sequence[float]) -> Array:
    """Return the weight per member with the lowest weighted log loss, 0 or more, with the sum 1.

    The loss of either mean is convex in the weights, so there is one minimum.

    Args:
        logits: of each member, [M, N, L].
        labels: [N, L].
        mean: as for `pool`.
        label_weights: weight of each label in the loss.
    """
    count, values = len(logits), np.asarray(logits, np.float64)
    share = np.array(label_weights) / (sum(label_weights) * len(labels))
    sign = np.where(labels == 1, 1, -1)
    right = expit(sign * values)  # of probabilities

    def loss_and_gradient(weights: Array) -> tuple[float, Array]:
        if mean == PROBABILITIES:
            pooled = np.maximum(np.tensordot(weights, right, 1), 1e-300)
            loss = float((-np.log(pooled) * share).sum())
            return loss, -np.tensordot(right, share / pooled, 2)
        z = np.tensordot(weights, values, 1)
        loss = float((-log_expit(sign * z) * share).sum())
        return loss, np.tensordot(values, (expit(z) - labels) * share, 2)

    fit = minimize(
        loss_and_gradient,
        np.full(count, 1 / count),
        jac=True,
        method="SLSQP",
        bounds=[(0, None)] * count,
        constraints={
            "type": "eq",
            "fun": lambda weights: weights.sum() - 1,
            "jac": lambda weights: np.ones(count),
        },
        options={"ftol": 1e-9, "maxiter": 200},
    )
    weights = np.where(fit.x < _LEAST_WEIGHT, 0, fit.x)
    return np.asarray(weights / weights.sum())


def without(weights: Array, member: int) -> Array:
    """Return weights [M, N] without a member's: the others' scaled to the sum 1.

    Examples that only this member answers get equal weights of the others.
    """
    others = np.array(weights, np.float64)
    others[member] = 0
    sums = others.sum(axis=0)
    equal = np.full_like(others, 1 / (len(weights) - 1))
    equal[member] = 0
    return np.asarray(np.divide(others, sums, out=equal, where=sums > 0))
