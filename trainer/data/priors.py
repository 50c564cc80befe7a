"""Shares of positives as a network begins with them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# A label without positives, or without negatives, shall still be learnable.
_RAREST = 1e-4


def priors(shares: npt.ArrayLike) -> tuple[float, ...]:
    """Shares of positives, [L], kept away from 0 and 1: what is answered by prevalence alone."""
    return tuple(float(each) for each in np.clip(shares, _RAREST, 1 - _RAREST))


def log_odds(shares: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """log(p / (1 - p)) of the priors of shares, [L]."""
    kept = np.array(priors(shares))
    return np.asarray(np.log(kept / (1 - kept)))
