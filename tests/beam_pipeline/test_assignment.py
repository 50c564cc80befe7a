from collections import Counter

import numpy as np
import pytest

from beam_pipeline.planning.folds import Splits, assign_splits
from headct.errors import UsageError

GROUPS = np.repeat(np.arange(20), 5)
LABELS = (GROUPS % 2 == 0).astype(np.int8)[:, None]


def assign(splits: Splits, known: list[str | None] | None = None) -> list[str]:
    """The name of each slice's split."""
    places = assign_splits(GROUPS, LABELS, splits, seed=0, known=known)
    return [splits.names[place] for place in places]


def test_folds_are_even_and_the_holdout_comes_off_first() -> None:
    assert Splits.of(4, 0.0) == Splits(("fold0", "fold1", "fold2", "fold3"), (0.25,) * 4)
    assert Splits.of(2, 0.2) == Splits(("holdout", "fold0", "fold1"), (0.2, 0.4, 0.4))
    assert Counter(assign(Splits.of(2, 0.2))) == {"holdout": 20, "fold0": 40, "fold1": 40}


def test_splits_are_told_by_their_places() -> None:
    places = assign_splits(GROUPS, LABELS, Splits.of(2, 0.2), seed=0)
    assert places.dtype == np.int64
    assert np.bincount(places).tolist() == [20, 40, 40]  # holdout, fold0, fold1
    assert (places.reshape(20, 5) == places[::5, None]).all()  # no group is in two


def test_an_earlier_assignment_is_kept_and_new_groups_are_dealt() -> None:
    known = [f"fold{group % 2}" if group < 8 else None for group in GROUPS]
    splits = assign(Splits.of(2, 0.0), known)
    for split, earlier in zip(splits, known, strict=True):
        assert earlier in (None, split)
    assert splits.count("fold0") == 50


def test_a_group_with_some_new_slices_stays_where_it_was() -> None:
    known: list[str | None] = [None] * len(GROUPS)
    known[7] = "fold1"  # one slice of group 1
    splits = assign(Splits.of(2, 0.0), known)
    assert set(splits[5:10]) == {"fold1"}


def test_an_assignment_that_leaks_is_refused() -> None:
    known = ["fold0", "fold1"] + [None] * (len(GROUPS) - 2)
    with pytest.raises(UsageError, match="in two splits: such an assignment leaks"):
        assign(Splits.of(2, 0.0), known)


def test_an_assignment_of_other_splits_is_refused() -> None:
    known = ["fold7", "fold4"] + [None] * (len(GROUPS) - 2)
    with pytest.raises(UsageError, match="has the split 'fold4'; here are fold0, fold1"):
        assign(Splits.of(2, 0.0), known)


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(UsageError) as raised:
        assign(Splits.of(21, 0.0))
    assert str(raised.value) == (
        "--folds 21: 20 patients cannot fill 21 folds; want --folds 20 or fewer"
    )
    with pytest.raises(UsageError) as raised:
        assign(Splits.of(20, 0.1))
    assert str(raised.value) == (
        "--folds 20 with --holdout: 20 patients cannot fill 20 folds and a hold-out; "
        "want --folds 19 or fewer"
    )
