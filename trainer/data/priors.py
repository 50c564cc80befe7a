"""Probabilities as they are in nature, from a network that was trained on other shares of labels.

Sampling that draws a label more often than it occurs moves the logits of that label by the
difference of the log-odds of the two shares (Saerens et al., Neural Computation 2002, eq. 2.4;
King and Zeng, Political Analysis 2001, 4.1). A network trained so is saved with the difference
taken back in the bias of its head.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# A label without positives, or without negatives, shall still be learnable.
_RAREST = 1e-4


def log_odds(shares: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """log(p / (1 - p)) of shares [L], kept away from 0 and 1."""
    clipped = np.clip(np.asarray(shares, np.float64), _RAREST, 1 - _RAREST)
    return np.asarray(np.log(clipped / (1 - clipped)))


def logit_shift(natural: npt.ArrayLike, sampled: npt.ArrayLike) -> tuple[float, ...]:
    """What is to be added to the logits of a network that was trained on other shares.

    Args:
        natural: shares of positives as they occur, [L].
        sampled: as training drew them, [L].
    """
    return tuple(float(each) for each in log_odds(natural) - log_odds(sampled))
