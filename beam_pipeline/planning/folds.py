"""Stratified, seeded assignment of patients to folds and of slices to shards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beam_pipeline.options import SplitOptions
from headct.errors import UsageError
from headct.layout import HOLDOUT_SPLIT, fold_split

_MAX_STEPS = 5000
_CANDIDATES = 256  # groups per fold in the search for a swap
_KICK = 5  # random swaps before a descent
_IDLE = 100  # the search ends after as many descents without improvement
# Bounds the time to about three seconds. Above some 900 groups, the steps are too few to matter,
# and a greedy assignment is already more even.
_WORK = 100_000_000
_FEWEST_STEPS = 120
# Search for a sample: number of descents, failed searches for a swap that end a descent, and random
# swaps before the next descent.
_ROUNDS, _IDLE_SWAPS, _SWAPS = 128, 4, 3


def assign_splits(
    groups: NDArray[np.int64],
    labels: NDArray[np.int8],
    options: SplitOptions,
    known: Sequence[str | None] | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Assign whole groups to the folds and the hold-out.

    Args:
        groups: [n], numbered from 0.
        labels: [n, l], 0 or 1.
        options: folds, hold-out and seed.
        known: [n], split in an earlier data set, or None.

    Returns:
        The indices of the slices of each split, in alphabetical order of the splits.

    Raises:
        UsageError: there are too few groups, or known splits cannot be kept.
    """
    folds, holdout = options.folds, options.holdout
    shares = {HOLDOUT_SPLIT: holdout} if holdout else {}
    shares |= dict.fromkeys(map(fold_split, range(folds)), (1 - holdout) / folds)
    names = [*shares]
    fixed = None if known is None else _fix(groups, known, names)
    patients, most = int(groups.max()) + 1, int(groups.max()) + 1 - bool(holdout)
    if patients < len(names):
        raise UsageError(
            f"--folds {folds}{' with --holdout' if holdout else ''}: {patients} patients cannot "
            f"fill {folds} folds{' and a hold-out' if holdout else ''}"
            + (f"; want --folds {most} or fewer" if most > 1 else "")
        )
    split_of = assign_folds(groups, labels, [*shares.values()], options.seed, fixed)[groups]
    found = {name: np.flatnonzero(split_of == names.index(name)) for name in sorted(names)}
    return {name: slices for name, slices in found.items() if len(slices)}


def _fix(
    groups: NDArray[np.int64], known: Sequence[str | None], names: Sequence[str]
) -> NDArray[np.int64]:
    """Return the known split per group, as an index into `names`; -1 for a new group."""
    pairs = pd.DataFrame({"group": groups, "split": known}).dropna().drop_duplicates()
    other = sorted(set(pairs["split"]) - set(names))
    if other:
        raise UsageError(f"--folds_from has the split {other[0]!r}; here are {', '.join(names)}")
    if pairs["group"].duplicated().any():
        raise UsageError(
            "--folds_from has one patient, or patients with identical pixels, in two splits: "
            "such an assignment leaks; --leak_check report keeps it"
        )
    fixed = np.full(int(groups.max()) + 1, -1, np.int64)
    fixed[pairs["group"]] = [names.index(split) for split in pairs["split"]]
    return fixed


def assign_folds(
    groups: NDArray[np.int64],
    labels: NDArray[np.int8],
    shares: Sequence[float],
    seed: int,
    fixed: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Assign whole groups to folds so that every fold has its share of labels and examples.

    Iterative stratification (Sechidis et al., ECML PKDD 2011) of groups instead of examples: groups
    with the rarest label are assigned first, to the fold with the greatest need of the label; then
    moves and swaps of groups reduce the remaining imbalance. If groups are few, a search follows.

    Args:
        groups: [n], group (patient) per example, 0 to g - 1.
        labels: [n, l], 0 or 1.
        shares: share per fold, above 0, with a sum of 1; at most g folds.
        seed: seed that breaks ties.
        fixed: [g], known fold per group, or -1; or None.

    Returns:
        [g], fold per group.
    """
    counts = _count(groups, labels)
    rng, wanted = np.random.default_rng(seed), np.asarray(shares)
    start = np.full(len(counts), -1, np.int64) if fixed is None else fixed
    balance = Balance(counts, wanted, _deal(counts, wanted, start, rng), start < 0)
    _refine(balance, rng)
    return search_folds(balance, rng)


def _count(groups: NDArray[np.int64], labels: NDArray[np.int8]) -> NDArray[np.float64]:
    """Return the slices per group (row) with each label, and all slices: [g, l + 1]."""
    columns = np.column_stack([labels, np.ones(len(labels), np.int8)])
    return np.stack([np.bincount(groups, weights=column) for column in columns.T], axis=1)


def sample_groups(
    groups: NDArray[np.int64], labels: NDArray[np.int8], number: int, seed: int
) -> NDArray[np.bool_]:
    """Choose groups whose labels are distributed as in all groups.

    For each label, the sample has about its share of the slices and of the groups with the label,
    and about its share of all slices. Iterated local search by swaps, as in `search_folds`.

    Args:
        groups: [n], group (patient) per example, 0 to g - 1.
        labels: [n, l], 0 or 1.
        number: number of groups to choose, below g.
        seed: seed of the search.

    Returns:
        [g], whether each group is chosen.
    """
    counts = _count(groups, labels)
    counts = np.column_stack([counts, counts[:, :-1] > 0])
    shares = np.array([number, len(counts) - number]) / len(counts)
    rng = np.random.default_rng(seed)
    outside = np.ones(len(counts), np.int64)
    outside[rng.choice(len(counts), number, replace=False)] = 0
    balance = Balance(counts, shares, outside, np.ones(len(counts), np.bool_), exact=True)
    best, least = outside, balance.cost()
    for _ in range(_ROUNDS):
        idle = 0
        while idle < _IDLE_SWAPS:
            gain, one, other = balance.best_swap(0, 1, rng)
            if gain < 0:
                balance.swap(one, other)
            idle = 0 if gain < 0 else idle + 1
        if balance.cost() < least:
            best, least = balance.fold_of.copy(), balance.cost()
        balance = replace(balance, fold_of=best.copy())
        for _ in range(_SWAPS):
            one, other = (rng.choice(np.flatnonzero(balance.fold_of == fold)) for fold in (0, 1))
            balance.swap(one, other)
    return np.asarray(best == 0)


def _deal(
    counts: NDArray[np.float64],
    shares: NDArray[np.float64],
    start: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Assign groups to the fold in greatest need, starting with the rarest label."""
    need = np.outer(shares, counts.sum(axis=0))
    fold_of = start.copy()
    np.subtract.at(need, fold_of[fold_of >= 0], counts[fold_of >= 0])
    for label in np.argsort(counts.sum(axis=0), kind="stable"):
        waiting = np.flatnonzero((fold_of < 0) & (counts[:, label] > 0))
        waiting = rng.permutation(waiting)
        for group in waiting[np.argsort(-counts[waiting, label], kind="stable")]:
            fold = np.lexsort((-need[:, -1], -need[:, label]))[0]
            fold_of[group] = fold
            need[fold] -= counts[group]
    return fold_of


@dataclass
class Balance:
    """Deviations of the folds from their shares of the labels.

    The cost is the sum over folds and labels of squared deviations, in units of an even share of
    the label: rare and common labels have the same weight.

    Attributes:
        counts: [g, l], examples per group and label, and all examples per group.
        shares: [k], share per fold, with a sum of 1.
        fold_of: [g], fold per group; changed in place; no fold is empty.
        movable: [g], whether a group may change its fold.
        exact: whether to use integers, which make ties reproducible on any hardware.
    """

    counts: NDArray[np.float64]
    shares: NDArray[np.float64]
    fold_of: NDArray[np.int64]
    movable: NDArray[np.bool_]
    exact: bool = False

    def __post_init__(self) -> None:
        self.folds = len(self.shares)
        total = self.counts.sum(axis=0)
        unit = np.maximum(total / self.folds, 1.0)
        self.scaled: NDArray[Any] = self.counts / unit
        self.excess: NDArray[Any] = -np.outer(self.shares, total / unit)
        if self.exact:
            # Deviations are at most all examples, so sums of products stay below 2^63.
            scale = isqrt((1 << 60) // self.counts.shape[1]) // (2 * self.folds)
            self.scaled = np.rint(self.scaled * scale).astype(np.int64)
            self.excess = np.rint(self.excess * scale).astype(np.int64)
        self.squares = (self.scaled**2).sum(axis=1)
        np.add.at(self.excess, self.fold_of, self.scaled)
        self.sizes = np.bincount(self.fold_of, minlength=self.folds)

    def cost(self) -> Any:
        """Return the sum of all squared deviations."""
        return (self.excess**2).sum()

    def best_move(self) -> tuple[float, int, int]:
        """Return the best move: change in cost, group and new fold."""
        toward = self.scaled @ self.excess.T
        own = np.take_along_axis(toward, self.fold_of[:, None], axis=1)
        gain = 2 * (toward - own) + 2 * self.squares[:, None]
        gain[np.arange(len(gain)), self.fold_of] = np.inf
        gain[self.sizes[self.fold_of] == 1] = np.inf  # no fold is emptied
        gain[~self.movable] = np.inf
        group, fold = np.unravel_index(np.argmin(gain), gain.shape)
        return float(gain[group, fold]), int(group), int(fold)

    def best_swap(self, one: int, other: int, rng: np.random.Generator) -> tuple[float, int, int]:
        """Return the best swap among samples of two folds: change in cost, and both groups."""
        both = [np.flatnonzero(self.movable & (self.fold_of == fold)) for fold in (one, other)]
        here, there = (
            rng.choice(groups, min(len(groups), _CANDIDATES), replace=False, shuffle=False)
            for groups in both
        )
        if not (len(here) and len(there)):
            return 0.0, -1, -1
        toward = self.scaled @ (self.excess[other] - self.excess[one])
        cross = self.scaled[here] @ self.scaled[there].T
        gain = toward[here, None] - toward[there]
        gain = gain + self.squares[here, None] + self.squares[there] - 2 * cross
        row, column = np.unravel_index(np.argmin(gain), gain.shape)
        return 2 * float(gain[row, column]), int(here[row]), int(there[column])

    def move(self, group: int, fold: int) -> None:
        """Move a group to a fold."""
        self.excess[self.fold_of[group]] -= self.scaled[group]
        self.sizes[self.fold_of[group]] -= 1
        self.excess[fold] += self.scaled[group]
        self.sizes[fold] += 1
        self.fold_of[group] = fold

    def swap(self, one: int, other: int) -> None:
        """Swap the folds of two groups."""
        fold, other_fold = self.fold_of[[one, other]].tolist()
        self.move(one, other_fold)
        self.move(other, fold)


def _refine(balance: Balance, rng: np.random.Generator) -> None:
    """Apply improving moves and swaps until several rounds over all pairs bring none."""
    pairs = [(a, b) for a in range(balance.folds) for b in range(a)]
    idle = 0
    for _ in range(_MAX_STEPS):
        gain, group, fold = balance.best_move()
        if gain < -1e-12:
            balance.move(group, fold)
            idle = 0
            continue
        one, other = pairs[int(rng.integers(len(pairs)))]
        gain, here, there = balance.best_swap(one, other, rng)
        if gain < -1e-12:
            balance.swap(here, there)
            idle = 0
        elif (idle := idle + 1) > 3 * len(pairs):
            return


def search_folds(start: Balance, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return an assignment at least as even as the given one; the given one for many groups.

    Iterated local search: a round swaps random pairs of groups and then applies the best moves and
    swaps until none improves the balance; the most even assignment is kept.
    """
    groups = np.flatnonzero(start.movable)
    work = len(groups) * (len(groups) + start.folds * start.counts.shape[1])  # per step
    steps = _WORK // max(work, 1)
    if len(groups) < 2 or steps < _FEWEST_STEPS:
        return start.fold_of
    balance = replace(start, fold_of=start.fold_of.copy(), exact=True)
    own, squares = balance.scaled[groups], balance.squares[groups]
    apart = squares[:, None] + squares - 2 * (own @ own.T)
    room = np.empty((2, *apart.shape), apart.dtype)
    best, least, idle = start.fold_of, balance.cost(), 0
    while idle < _IDLE and steps:
        helped = True
        while helped and steps:
            steps -= 1
            helped = _step(balance, groups, apart, room)
        idle += 1
        if balance.cost() < least:
            best, least, idle = balance.fold_of.copy(), balance.cost(), 0
        balance = replace(balance, fold_of=best.copy())
        for pair in rng.integers(len(groups), size=(_KICK, 2)):
            balance.swap(*groups[pair].tolist())
    return best


def _step(
    balance: Balance,
    groups: NDArray[np.int64],
    apart: NDArray[np.int64],
    room: NDArray[np.int64],
) -> bool:
    """Apply the best move or swap of all; return whether any lowers the cost.

    Args:
        balance: the assignment.
        groups: the movable groups.
        apart: squared distance of each pair of groups.
        room: for two arrays like `apart`; new arrays would take most of the time, as the kernel
            clears their memory at every step.
    """
    every, mine = np.arange(len(groups)), balance.fold_of[groups]
    toward = balance.scaled[groups] @ balance.excess.T
    toward -= toward[every, mine][:, None]
    moves = toward + balance.squares[groups][:, None]  # half of the change in cost, as in swaps
    moves[every, mine] = 0
    moves[balance.sizes[mine] == 1] = 0  # keep the last group of a fold
    there, swaps = room
    np.take(toward.T, mine, axis=0, out=there, mode="clip")  # the default mode copies `out`
    np.add(apart, there, out=swaps)
    np.add(swaps, there.T, out=swaps)  # never below 0 within a fold
    move, swap = int(moves.argmin()), int(swaps.argmin())
    if min(moves.flat[move], swaps.flat[swap]) >= 0:
        return False
    if moves.flat[move] <= swaps.flat[swap]:
        place, fold = divmod(move, balance.folds)
        balance.move(int(groups[place]), fold)
    else:
        balance.swap(*groups[[*divmod(swap, len(groups))]].tolist())
    return True


def assign_shards(labels: NDArray[np.int8], shards: int, seed: int) -> list[NDArray[np.int64]]:
    """Assign examples to shards with equal label distributions, in shuffled order.

    Args:
        labels: [n, l], the examples of one split in a fixed order.
        shards: number of shards, at most n.
        seed: seed of the shuffles.

    Returns:
        The positions of the examples per shard, in writing order. Size and count of every
        combination of labels differ by at most 1 between shards.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    keys = (np.zeros(len(labels)), *labels[shuffled].T[::-1])  # without labels, one key
    dealt = shuffled[np.lexsort(keys)]
    return [rng.permutation(dealt[shard::shards]) for shard in range(shards)]
