"""The order of examples in an epoch, and sampling that draws all labels equally often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# keeps labels without positives, or without negatives, learnable
_RAREST = 1e-4


@dataclass(frozen=True)
class Order:
    """Position of training in its data: `skip` batches of `epoch` are done."""

    seed: int
    epoch: int
    skip: int = 0

    def generator(self) -> np.random.Generator:
        """Return the random generator of this epoch."""
        return np.random.default_rng([self.seed, self.epoch])


def epoch_rows(
    labels: npt.NDArray[np.float32], steps: int, batch_size: int, order: Order, balanced: bool
) -> npt.NDArray[np.int64]:
    """Return the rows of the remaining batches, int64 [steps - skip, batch_size].

    An example occurs at most once; `balanced` draws with replacement, all labels (of all
    examples, [N, L]) and their absence equally often.
    """
    random, wanted = order.generator(), steps * batch_size
    if balanced:
        rows = random.choice(len(labels), wanted, p=balanced_weights(labels))
    else:
        rows = random.permutation(len(labels))[:wanted]
    return rows.reshape(steps, batch_size)[order.skip :]


def balanced_weights(labels: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the sampling probability per example, [N].

    The positives of a label are a group, and examples without any label are one more; groups
    are drawn equally often, and so are the members of a group.
    """
    return np.asarray(_groups(labels) @ balanced_rates(labels) / len(labels), np.float64)


def balanced_rates(labels: npt.NDArray[np.float32]) -> tuple[float, ...]:
    """Return the sampling rate per group relative to its frequency, [N, L] → [L + 1].

    The rate of an example in several groups is the sum of their rates. A group without
    examples has rate 1.
    """
    sizes = _groups(labels).sum(axis=0)
    groups = np.count_nonzero(sizes)
    return tuple(float(len(labels) / groups / size) if size else 1.0 for size in sizes)


def _groups(labels: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return the groups per example: its labels, or the last group, [N, L + 1]."""
    return np.column_stack([labels > 0, ~(labels > 0).any(axis=1)])


def priors(shares: npt.ArrayLike) -> tuple[float, ...]:
    """Return the prevalences, [L], clipped away from 0 and 1."""
    return tuple(float(share) for share in np.clip(shares, _RAREST, 1 - _RAREST))
