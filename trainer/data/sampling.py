"""Which examples an epoch takes, how often, and the shares of positives a network begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # it loads TensorFlow
    from trainer.data.input_pipeline import Order


# A label without positives, or without negatives, is still learnable.
_RAREST = 1e-4


def epoch_rows(
    labels: npt.NDArray[np.float32], steps: int, batch_size: int, order: Order, balanced: bool
) -> npt.NDArray[np.int64]:
    """Rows of each batch that is still to come, int64 [steps - skip, batch_size].

    Each example at most once; or, `balanced`, drawn with replacement, all labels (of all
    examples, [N, L]) and their absence equally often.
    """
    random, wanted = order.generator(), steps * batch_size
    if balanced:
        rows = random.choice(len(labels), wanted, p=balanced_weights(labels))
    else:
        rows = random.permutation(len(labels))[:wanted]
    return rows.reshape(steps, batch_size)[order.skip :]


def balanced_weights(labels: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """How likely each example is drawn, [N]; the sum is 1.

    Each label's positives are a group, examples without any label are one more; groups are
    drawn equally often, and the members of a group too.
    """
    return np.asarray(_groups(labels) @ balanced_rates(labels) / len(labels), np.float64)


def balanced_rates(labels: npt.NDArray[np.float32]) -> tuple[float, ...]:
    """How many times as often as it occurs each group of examples, [N, L], is drawn: [L + 1].

    An example of several groups is drawn as often as they are together. A group without examples
    counts as drawn as often as it occurs.
    """
    sizes = _groups(labels).sum(axis=0)
    groups = np.count_nonzero(sizes)
    return tuple(float(len(labels) / groups / size) if size else 1.0 for size in sizes)


def _groups(labels: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """The groups that each example is in: those of its labels, or the last one, [N, L + 1]."""
    return np.column_stack([labels > 0, ~(labels > 0).any(axis=1)])


def priors(shares: npt.ArrayLike) -> tuple[float, ...]:
    """Shares of positives, [L], kept away from 0 and 1: what is answered by prevalence alone."""
    return tuple(float(share) for share in np.clip(shares, _RAREST, 1 - _RAREST))


def log_odds(shares: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """log(p / (1 - p)) of the priors of shares, [L]."""
    kept = np.array(priors(shares))
    return np.asarray(np.log(kept / (1 - kept)))
