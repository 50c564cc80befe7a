"""Which examples an epoch takes, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # it loads TensorFlow
    from trainer.data.input_pipeline import Order


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
    groups = np.column_stack([labels > 0, ~(labels > 0).any(axis=1)])
    groups = groups[:, groups.any(axis=0)]
    weights = (groups / groups.sum(axis=0)).sum(axis=1)
    return np.asarray(weights / weights.sum(), np.float64)


def balanced_prevalence(labels: npt.NDArray[np.float32]) -> tuple[float, ...]:
    """The share of positives of each label in what `balanced` draws of `labels`, [N, L]."""
    return tuple(float(each) for each in balanced_weights(labels) @ (labels > 0))
