"""Stratified, seeded assignment of patients to folds and of slices to shards."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beam_pipeline.planning.fold_search import search_folds
from headct.errors import UsageError
from headct.layout import HOLDOUT_SPLIT, fold_split

_MAX_STEPS = 5000
_CANDIDATES = 256  # groups per fold in the search for a swap


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

    Raises:
        ValueError: fewer groups than folds.
    """
    counts = _group_counts(groups, labels)
    if len(counts) < len(shares):
        raise ValueError(f"{len(counts)} patients cannot fill {len(shares)} folds")
    rng = np.random.default_rng(seed)
    start = np.full(len(counts), -1, np.int64) if fixed is None else fixed
    dealt = _deal(counts, np.asarray(shares), start, rng)
    balance = _Balance(counts, np.asarray(shares), dealt, movable=start < 0)
    _refine(balance, rng)
    return search_folds(counts, balance.shares, balance.fold_of, balance.movable, rng)


def _group_counts(groups: NDArray[np.int64], labels: NDArray[np.int8]) -> NDArray[np.float64]:
    """Count examples per group and label, and all examples per group: [g, l + 1]."""
    columns = np.column_stack([labels, np.ones(len(labels), np.int8)])
    size = int(groups.max()) + 1
    return np.stack(
        [np.bincount(groups, weights=column, minlength=size) for column in columns.T], axis=1
    )


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
class _Balance:
    """Deviations of the folds from their shares of the labels.

    The cost is the sum over folds and labels of squared deviations, in units of an even share of
    the label: rare and common labels have the same weight.
    """

    counts: NDArray[np.float64]
    shares: NDArray[np.float64]
    fold_of: NDArray[np.int64]
    movable: NDArray[np.bool_]

    def __post_init__(self) -> None:
        self.folds = len(self.shares)
        total = self.counts.sum(axis=0)
        unit = np.maximum(total / self.folds, 1.0)
        self.scaled = self.counts / unit
        self.squares = (self.scaled**2).sum(axis=1)
        self.excess = -np.outer(self.shares, total / unit)
        np.add.at(self.excess, self.fold_of, self.scaled)
        self.sizes = np.bincount(self.fold_of, minlength=self.folds)

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
        here = _sample(np.flatnonzero(self.movable & (self.fold_of == one)), rng)
        there = _sample(np.flatnonzero(self.movable & (self.fold_of == other)), rng)
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


def _sample(groups: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.choice(groups, min(len(groups), _CANDIDATES), replace=False, shuffle=False)


def _refine(balance: _Balance, rng: np.random.Generator) -> None:
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
            balance.move(here, other)
            balance.move(there, one)
            idle = 0
        elif (idle := idle + 1) > 3 * len(pairs):
            return


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
    dealt = shuffled[np.argsort(_combinations(labels[shuffled]), kind="stable")]
    return [rng.permutation(dealt[shard::shards]) for shard in range(shards)]


def _combinations(labels: NDArray[np.int8]) -> NDArray[np.int64]:
    """Number each row's combination of labels (-1, 0 or 1), in lexicographic order: [n]."""
    code = np.zeros(len(labels), np.int64)
    for column in labels.T:
        code = code * 3 + (column + 1)
        if code.max(initial=0) > 1 << 60:  # more than 37 labels
            code = np.unique(code, return_inverse=True)[1]
    return code


@dataclass(frozen=True)
class Splits:
    """The splits to make.

    Attributes:
        names: names of the splits.
        shares: share of all examples per split, with a sum of 1.
    """

    names: tuple[str, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, folds: int, holdout: float) -> "Splits":
        """Return the hold-out, if its share is above 0, and even folds."""
        names = tuple(map(fold_split, range(folds)))
        shares = ((1 - holdout) / folds,) * folds
        return cls((HOLDOUT_SPLIT, *names), (holdout, *shares)) if holdout else cls(names, shares)


def assign_splits(
    groups: NDArray[np.int64],
    labels: NDArray[np.int8],
    splits: Splits,
    seed: int,
    known: Sequence[str | None] | None = None,
) -> NDArray[np.int64]:
    """Return the split per slice, as an index into `splits.names`; groups stay together.

    Args:
        groups: [n], numbered from 0.
        labels: [n, l], 0 or 1.
        splits: splits to make.
        seed: seed that breaks ties.
        known: [n], split in an earlier data set, or None.

    Raises:
        UsageError: there are too few groups, or known splits cannot be kept.
    """
    fixed = None if known is None else _fix(groups, known, splits.names)
    _check_patients(int(groups.max(initial=-1)) + 1, splits)
    return assign_folds(groups, labels, splits.shares, seed, fixed)[groups]


def _check_patients(patients: int, splits: Splits) -> None:
    """Raise a UsageError if patients are fewer than splits; the message names the options."""
    held_out = HOLDOUT_SPLIT in splits.names
    folds = len(splits.names) - held_out
    if patients < len(splits.names):
        most = patients - held_out
        raise UsageError(
            f"--folds {folds}{' with --holdout' if held_out else ''}: {patients} patients cannot "
            f"fill {folds} folds{' and a hold-out' if held_out else ''}"
            + (f"; want --folds {most} or fewer" if most > 1 else "")
        )


def _fix(
    groups: NDArray[np.int64], known: Sequence[str | None], names: Sequence[str]
) -> NDArray[np.int64]:
    """Return the known split per group, as an index into `names`; -1 for a new group."""
    frame = pd.DataFrame({"group": groups, "split": known}).dropna()
    other = sorted(set(frame["split"]) - set(names))
    if other:
        raise UsageError(f"--folds_from has the split {other[0]!r}; here are {', '.join(names)}")
    if (frame.groupby("group")["split"].nunique() > 1).any():
        raise UsageError(
            "--folds_from has one patient, or patients with identical pixels, in two splits: "
            "such an assignment leaks; --leak_check report keeps it"
        )
    first = frame.drop_duplicates("group")
    fixed = np.full(int(groups.max()) + 1, -1, np.int64)
    fixed[first["group"]] = [names.index(split) for split in first["split"]]
    return fixed
