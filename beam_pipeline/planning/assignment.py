"""Which slices go to which split: new, or as an earlier data set had it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beam_pipeline.planning.folds import assign_folds
from headct.errors import UsageError
from headct.layout import HOLDOUT_SPLIT, fold_split


@dataclass(frozen=True)
class Splits:
    """The splits to make.

    Attributes:
        names: of the splits.
        shares: of each, of all examples; their sum is 1.
    """

    names: tuple[str, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, folds: int, holdout: float) -> "Splits":
        """Even folds, after a part that is held out if it is more than nothing."""
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
    """The split of each slice, as its place in `splits.names`; no group is in two.

    Args:
        groups: [n], numbered from 0.
        labels: [n, l], 0 or 1.
        splits: to make.
        seed: decides between equals.
        known: [n], the split that a slice had in an earlier data set, None if it was not there.

    Raises:
        UsageError: there are too few groups, or what is known cannot be kept.
    """
    fixed = None if known is None else _fix(groups, known, splits.names)
    _check_patients(int(groups.max(initial=-1)) + 1, splits)
    return assign_folds(groups, labels, splits.shares, seed, fixed)[groups]


def _check_patients(patients: int, splits: Splits) -> None:
    """Refuse fewer patients than splits, in terms of the options that were given."""
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
    """The place in `names` of the split that each group had, -1 if it is new."""
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
