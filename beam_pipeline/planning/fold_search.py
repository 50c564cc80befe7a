"""Iterated local search for more even folds, for data sets with few patients.

A round swaps random pairs of patients and then applies the best moves and swaps until none improves
the balance; the most even assignment is kept. Integer arithmetic makes ties reproducible on any
hardware.
"""

from math import isqrt

import numpy as np
from numpy.typing import NDArray

_KICK = 5  # random swaps before a descent
_IDLE = 100  # the search ends after as many descents without improvement
# Bounds the time to about three seconds. Above some 900 groups, the steps are too few to matter,
# and a greedy assignment is already more even.
_WORK = 100_000_000
_FEWEST_STEPS = 120


def search_folds(
    counts: NDArray[np.float64],
    shares: NDArray[np.float64],
    fold_of: NDArray[np.int64],
    movable: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return an assignment at least as even as `fold_of`; `fold_of` itself for many groups.

    Args:
        counts: [g, l], examples per group and label, and all examples per group.
        shares: [k], share per fold, with a sum of 1.
        fold_of: [g], fold per group; no fold is empty.
        movable: [g], whether a group may change its fold.
        rng: generator of the random swaps.
    """
    (groups,) = np.nonzero(movable)
    work = len(groups) * (len(groups) + len(shares) * counts.shape[1])  # per step
    steps = _WORK // max(work, 1)
    if len(groups) < 2 or steps < _FEWEST_STEPS:
        return fold_of
    search = _Search(counts, shares, fold_of, groups)
    best, least, idle = fold_of, search.cost(), 0
    while idle < _IDLE and search.steps < steps:
        search.descend(steps)
        idle += 1
        if search.cost() < least:
            best, least, idle = search.fold_of.copy(), search.cost(), 0
        search.load(best)
        for one, other in rng.integers(len(groups), size=(_KICK, 2)).tolist():
            search.swap(one, other)
    return best


class _Search:
    """An assignment and its cost.

    The cost is defined in `folds`: squared deviations in units of an even share of the label.
    """

    def __init__(
        self,
        counts: NDArray[np.float64],
        shares: NDArray[np.float64],
        fold_of: NDArray[np.int64],
        groups: NDArray[np.int64],
    ) -> None:
        total = counts.sum(axis=0)
        unit = np.maximum(total / len(shares), 1.0)
        # Deviations are at most all examples, so sums of products stay below 2^63.
        scale = isqrt((1 << 60) // counts.shape[1]) // (2 * len(shares))
        self._scaled = np.rint(counts / unit * scale).astype(np.int64)
        self._wanted = np.rint(np.outer(shares, total / unit) * scale).astype(np.int64)
        self._groups = groups
        self._own = self._scaled[groups]
        self._squares = (self._own**2).sum(axis=1)
        self._apart = self._squares[:, None] + self._squares - 2 * (self._own @ self._own.T)
        self.steps = 0
        self.load(fold_of)

    def load(self, fold_of: NDArray[np.int64]) -> None:
        """Start from an assignment."""
        self.fold_of = fold_of.copy()
        self._excess = -self._wanted
        np.add.at(self._excess, fold_of, self._scaled)
        self._sizes = np.bincount(fold_of, minlength=len(self._wanted))

    def cost(self) -> int:
        """Return the sum of all squared deviations."""
        return int((self._excess**2).sum())

    def descend(self, most_steps: int) -> None:
        """Apply the best move or swap until none lowers the cost, or the steps are used up."""
        helped = True
        while helped and self.steps < most_steps:
            self.steps += 1
            helped = self._step()

    def _step(self) -> bool:
        every, mine = np.arange(len(self._groups)), self.fold_of[self._groups]
        toward = self._own @ self._excess.T
        toward -= toward[every, mine][:, None]
        moves = toward + self._squares[:, None]  # half of the change in cost, as in swaps
        moves[every, mine] = 0
        moves[self._sizes[mine] == 1] = 0  # keep the last group of a fold
        swaps = toward[:, mine]
        swaps = swaps + swaps.T + self._apart  # never below 0 within a fold
        move, swap = int(moves.argmin()), int(swaps.argmin())
        if min(moves.flat[move], swaps.flat[swap]) >= 0:
            return False
        if moves.flat[move] <= swaps.flat[swap]:
            self._move(*divmod(move, len(self._wanted)))
        else:
            self.swap(*divmod(swap, len(every)))
        return True

    def swap(self, one: int, other: int) -> None:
        """Swap the folds of two groups."""
        fold, other_fold = self.fold_of[self._groups[[one, other]]].tolist()
        self._move(one, other_fold)
        self._move(other, fold)

    def _move(self, place: int, fold: int) -> None:
        group = self._groups[place]
        self._excess[self.fold_of[group]] -= self._scaled[group]
        self._sizes[self.fold_of[group]] -= 1
        self._excess[fold] += self._scaled[group]
        self._sizes[fold] += 1
        self.fold_of[group] = fold
