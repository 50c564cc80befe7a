from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipeline.options import SplitOptions
from beam_pipeline.planning import folds
from beam_pipeline.planning.folds import (
    Balance,
    _deal,
    assign_folds,
    assign_shards,
    assign_splits,
    sample_groups,
    search_folds,
)
from beam_pipeline.planning.labels import RSNA_LABELS
from headct.errors import UsageError


def even(folds: int) -> list[float]:
    return [1 / folds] * folds


def assert_even(groups: np.ndarray, labels: np.ndarray, fold_of: np.ndarray) -> None:
    """Every label, and the size, within 0.5 % of its share or within one slice."""
    folds = int(fold_of.max()) + 1
    for column in np.column_stack([labels, np.ones(len(labels), int)]).T:
        counts = np.bincount(fold_of[groups], weights=column, minlength=folds)
        share = column.sum() / folds
        assert (np.abs(counts - share) <= max(1.0, 0.005 * share)).all(), counts


@pytest.mark.parametrize(
    ("counts", "fixed", "expected"),
    [
        # Slices with the labels A and B, and all slices, of five patients. Each fold needs 2 of A,
        # 3 of B, 7.5 slices. A: the first patient to fold 0, the second to fold 1, which lacks more
        # of A. B: both need as much of it, so the third goes to fold 1, which lacks 6.5 slices to
        # 2.5, the fourth to fold 0. The last: fold 1 lacks 2.5 to 0.5.
        ("305 101 044 022 003", [-1, -1, -1, -1, -1], [0, 1, 1, 0, 1]),
        # Fold 0 lacks 4.5 slices at first. The first goes to fold 1, the second to fold 0; then
        # fold 0 lacks 3.5 slices, fold 1 lacks 2.5.
        ("305 101 044 022 003", [-1, -1, -1, -1, 0], [1, 0, 0, 1, 0]),
        # The third goes to fold 0, which lacks 4.5 slices to 0.5, though it has more than enough
        # of A.
        ("202 106 044 011", [-1, -1, -1, -1], [0, 1, 0, 1]),
    ],
)
def test_patients_are_dealt_by_the_rarest_label_first(
    counts: str, fixed: list[int], expected: list[int]
) -> None:
    of_patients = np.array([[*map(float, digits)] for digits in counts.split()])
    shares, rng = np.array([0.5, 0.5]), np.random.default_rng(0)
    assert _deal(of_patients, shares, np.array(fixed), rng).tolist() == expected


def imbalance(counts: np.ndarray, shares: np.ndarray, fold_of: np.ndarray) -> float:
    """The squared deviations from the folds' shares, in units of an even share, 1 at least."""
    total = counts.sum(axis=0)
    held = np.array([counts[fold_of == fold].sum(axis=0) for fold in range(len(shares))])
    unit = np.maximum(total / len(shares), 1)
    return float((((held - np.outer(shares, total)) / unit) ** 2).sum())


@st.composite
def dealings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts of some groups, shares of some folds, the groups' folds, and which may be moved."""
    folds, groups = draw(st.integers(2, 4)), draw(st.integers(4, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = rng.integers(0, 6, (groups, 3)) * rng.integers(0, 2, (groups, 3))
    fold_of = rng.permutation(np.r_[np.arange(folds), rng.integers(0, folds, groups - folds)])
    return counts.astype(float), rng.dirichlet(np.ones(folds)), fold_of, rng.random(groups) < 0.8


@given(dealings())
def test_the_best_move_is_that_of_trying_all(
    dealing: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    counts, shares, fold_of, movable = dealing
    before = imbalance(counts, shares, fold_of)
    gains = []
    for group in np.flatnonzero(movable & (np.bincount(fold_of)[fold_of] > 1)):
        for fold in set(range(len(shares))) - {int(fold_of[group])}:
            moved = fold_of.copy()
            moved[group] = fold
            gains.append(imbalance(counts, shares, moved) - before)
    balance = Balance(counts, shares, fold_of.copy(), movable)
    gain, group, fold = balance.best_move()
    assert gain == pytest.approx(min(gains, default=np.inf), abs=1e-9)
    if gains:
        balance.move(group, fold)
        assert imbalance(counts, shares, balance.fold_of) == pytest.approx(before + gain, abs=1e-9)
        fresh = Balance(counts, shares, balance.fold_of.copy(), movable)
        np.testing.assert_allclose(balance.excess, fresh.excess, atol=1e-9)
        assert balance.sizes.tolist() == fresh.sizes.tolist()


@given(dealings())
def test_the_best_swap_is_that_of_trying_all(
    dealing: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    counts, shares, fold_of, movable = dealing
    before = imbalance(counts, shares, fold_of)
    gains = []
    for here in np.flatnonzero(movable & (fold_of == 1)):
        for there in np.flatnonzero(movable & (fold_of == 0)):
            swapped = fold_of.copy()
            swapped[[here, there]] = 0, 1
            gains.append(imbalance(counts, shares, swapped) - before)
    balance = Balance(counts, shares, fold_of.copy(), movable)
    gain, here, there = balance.best_swap(1, 0, np.random.default_rng(0))
    assert gain == pytest.approx(min(gains, default=0.0), abs=1e-9)
    if gains:
        balance.move(here, 0)
        balance.move(there, 1)
        assert imbalance(counts, shares, balance.fold_of) == pytest.approx(before + gain, abs=1e-9)


@settings(max_examples=30)
@given(st.data())
def test_every_group_has_a_fold_and_no_fold_is_empty(data: st.DataObject) -> None:
    count = data.draw(st.integers(4, 30))
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    folds = data.draw(st.integers(2, 4))
    groups = np.repeat(np.arange(count), sizes)
    labels = np.random.default_rng(count).integers(0, 2, (len(groups), 3)).astype(np.int8)
    fold_of = assign_folds(groups, labels, even(folds), seed=1)
    assert fold_of.shape == (count,)
    assert set(fold_of) == set(range(folds))
    np.testing.assert_array_equal(fold_of, assign_folds(groups, labels, even(folds), seed=1))


def test_folds_have_the_shares_asked_for() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), 10)
    labels = (rng.random((4000, 2)) < (0.3, 0.02)).astype(np.int8)
    fold_of = assign_folds(groups, labels, [0.1, 0.45, 0.45], seed=0)
    sizes = np.bincount(fold_of[groups])
    assert sizes.tolist() == [400, 1800, 1800]
    rare = np.bincount(fold_of[groups], weights=labels[:, 1])
    assert np.abs(rare - labels[:, 1].sum() * np.array([0.1, 0.45, 0.45])).max() <= 1


def test_groups_that_have_a_fold_keep_it_though_it_is_too_large() -> None:
    groups = np.repeat(np.arange(40), 5)
    fixed = np.where(np.arange(40) < 30, 0, -1)
    fold_of = assign_folds(groups, np.ones((200, 1), np.int8), even(2), seed=0, fixed=fixed)
    assert fold_of.tolist() == [0] * 30 + [1] * 10


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_folds_of_the_real_table_are_even_on_all_labels(real_data: Path, seed: int) -> None:
    table = pd.read_csv(real_data / "tables" / "slices_78545.csv.gz")
    groups = pd.factorize(table["PatientID"])[0]
    labels = table[list(RSNA_LABELS)].to_numpy(np.int8)
    assert_even(groups, labels, assign_folds(groups, labels, even(5), seed))


def off(groups: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Slices with each label that a sample has more than its share, by its own size."""
    of_sample = labels[chosen[groups]]
    return np.asarray(of_sample.sum(axis=0) - labels.mean(axis=0) * len(of_sample))


@pytest.mark.parametrize("number", [50, 200])
def test_a_sample_of_the_real_table_has_its_label_shares(real_data: Path, number: int) -> None:
    table = pd.read_csv(real_data / "tables" / "slices_78545.csv.gz")
    groups = pd.factorize(table["PatientID"])[0]
    labels = table[list(RSNA_LABELS)].to_numpy(np.int8)
    patients = int(groups.max()) + 1
    by_chance = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        random = np.isin(np.arange(patients), rng.choice(patients, number, replace=False))
        by_chance.append(np.abs(off(groups, labels, random)).max())
    assert np.median(by_chance) > 20
    samples = [sample_groups(groups, labels, number, seed) for seed in (0, 1, 2)]
    with_label = pd.DataFrame(labels).groupby(groups).max()
    for chosen in samples:
        assert chosen.sum() == number
        assert np.abs(off(groups, labels, chosen)).max() < 1
        assert abs(chosen[groups].sum() - number * len(groups) / patients) < 1
        assert (abs(with_label[chosen].sum() - number * with_label.mean()) < 1).all()
    assert (samples[0] == sample_groups(groups, labels, number, 0)).all()
    assert (samples[0] != samples[1]).any()


@pytest.mark.parametrize(
    ("count", "number", "kinds"), [(2, 1, 0), (2, 1, 3), (9, 8, 1), (9, 1, 2), (9, 4, 0)]
)
def test_a_sample_has_as_many_groups_as_asked(count: int, number: int, kinds: int) -> None:
    groups = np.repeat(np.arange(count), 2)
    labels = (np.arange(len(groups))[:, None] % 3 == np.arange(kinds)).astype(np.int8)
    assert sample_groups(groups, labels, number, seed=1).sum() == number


@given(
    st.integers(1, 60).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(0, 3), min_size=n, max_size=n), st.integers(1, min(n, 7))
        )
    )
)
def test_every_shard_mirrors_the_whole(case: tuple[list[int], int]) -> None:
    kinds, count = case
    labels = np.array([[kind & 1, kind >> 1] for kind in kinds], np.int8)
    shards = assign_shards(labels, count, seed=3)
    assert sorted(np.concatenate(shards)) == list(range(len(kinds)))
    for kind in set(kinds):
        per_shard = [sum(kinds[i] == kind for i in shard) for shard in shards]
        assert max(per_shard) - min(per_shard) <= 1
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("missing", [0, 79])
def test_combinations_of_more_labels_than_a_number_holds_are_told_apart(missing: int) -> None:
    labels = np.ones((40, 80), np.int8)
    labels[::2, missing] = -1  # half of them differ in one label
    for shard in assign_shards(labels, 4, seed=0):
        assert sorted(labels[shard, missing]) == [-1] * 5 + [1] * 5


def test_the_order_within_a_shard_is_shuffled_and_seeded() -> None:
    labels = np.repeat([[0], [1]], 50, axis=0).astype(np.int8)
    (shard,) = assign_shards(labels, 1, seed=0)
    assert 15 < labels[shard[:50]].sum() < 35  # labels are mixed
    np.testing.assert_array_equal(shard, assign_shards(labels, 1, seed=0)[0])
    assert (shard != assign_shards(labels, 1, seed=1)[0]).any()


def hospital(patients: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Slices of patients, some of whom bleed in one or two of six ways: groups and labels."""
    rng = np.random.default_rng(seed)
    labels, groups = [], []
    for patient in range(patients):
        slices = np.zeros((int(rng.integers(18, 21)), 6), np.int8)
        if rng.random() < 0.7:
            for kind in rng.choice(5, rng.integers(1, 3), replace=False):
                first = rng.integers(0, 12)
                slices[first : first + rng.integers(3, 9), kind] = 1
        slices[:, 5] = slices.any(axis=1)
        labels.append(slices)
        groups += [patient] * len(slices)
    return np.array(groups), np.concatenate(labels)


def counts_of(groups: np.ndarray, labels: np.ndarray) -> np.ndarray:
    rows = [[*labels[groups == g].sum(axis=0), (groups == g).sum()] for g in np.unique(groups)]
    return np.array(rows, float)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, "0332133112221323012233232123111123010231"),
        (1, "0332131211333123331210131313112222020222"),
    ],
)
def test_a_seed_assigns_as_in_earlier_versions(seed: int, expected: str) -> None:
    groups, labels = hospital(40, 0)
    fold_of = assign_folds(groups, labels, [0.1, 0.3, 0.3, 0.3], seed)
    assert "".join(map(str, fold_of)) == expected
    shards = assign_shards(labels[:12], 3, 0)
    assert [shard.tolist() for shard in shards] == [[11, 0, 6, 7], [10, 8, 3, 4], [5, 2, 9, 1]]


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, "0000010011001001100000000010001010110001"),
        (1, "0000000010011000000100011101001110000010"),
    ],
)
def test_a_seed_samples_as_in_earlier_versions(seed: int, expected: str) -> None:
    groups, labels = (some[::3] for some in hospital(40, 0))
    chosen = sample_groups(groups, labels, 12, seed)
    assert "".join(map(str, chosen.astype(int))) == expected


@pytest.mark.parametrize("seed", range(4))
def test_the_most_even_of_all_assignments_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (8, 3)).astype(float)
    shares = np.array([0.3, 0.3, 0.4])
    every = [np.array(folds) for folds in product(range(3), repeat=8) if len(set(folds)) == 3]
    least = min(imbalance(counts, shares, fold_of) for fold_of in every)
    start = np.arange(8) % 3
    found = search_folds(Balance(counts, shares, start, np.ones(8, bool)), np.random.default_rng(0))
    assert imbalance(counts, shares, found) == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_folds_of_few_patients_are_within_three_percent(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, labels = hospital(72, seed)
    counts, shares = counts_of(groups, labels), np.full(5, 0.2)
    even = assign_folds(groups, labels, [0.2] * 5, seed)
    monkeypatch.setattr("beam_pipeline.planning.folds._WORK", 0)
    greedy = assign_folds(groups, labels, [0.2] * 5, seed)
    assert imbalance(counts, shares, even) < imbalance(counts, shares, greedy) / 2
    every = np.bincount(even[groups], weights=labels[:, 5])
    assert np.abs(every / every.mean() - 1).max() < 0.03


def test_a_move_is_preferred_to_a_swap_that_helps_as_much() -> None:
    counts, start = np.array([[2.0], [1.0], [1.0]]), np.array([0, 0, 1])  # 3 in fold 0, 1 in fold 1
    balance = Balance(counts, np.full(2, 0.5), start, np.ones(3, bool))
    assert search_folds(balance, np.random.default_rng(0)).tolist() == [0, 1, 1]


def test_many_groups_are_left_as_they_are() -> None:
    rng = np.random.default_rng(0)
    counts, start = rng.integers(0, 9, (1000, 3)).astype(float), rng.integers(0, 5, 1000)
    every = np.ones(1000, bool)
    assert search_folds(Balance(counts, np.full(5, 0.2), start, every), rng) is start


def test_groups_that_may_not_be_moved_are_not() -> None:
    rng = np.random.default_rng(0)
    counts, start = rng.integers(0, 9, (40, 3)).astype(float), rng.integers(0, 4, 40)
    movable = np.arange(40) % 2 == 0
    shares = np.full(4, 0.25)
    found = search_folds(Balance(counts, shares, start, movable), rng)
    np.testing.assert_array_equal(found[~movable], start[~movable])
    assert imbalance(counts, shares, found) < imbalance(counts, shares, start)
    for one in ([], [3]):
        alone = np.isin(np.arange(40), one)
        assert search_folds(Balance(counts, shares, start, alone), rng) is start


@pytest.mark.parametrize("seed", range(4))
def test_a_step_takes_the_best_of_all_moves_and_swaps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, start = rng.integers(0, 9, (9, 3)).astype(float), np.r_[:3, rng.integers(0, 3, 6)]
    balance = Balance(counts, np.full(3, 1 / 3), start, start >= 0, exact=True)
    groups, apart = np.arange(9), ((balance.scaled[:, None] - balance.scaled) ** 2).sum(axis=2)
    costs = [balance.cost()]
    for one, other in product(groups, repeat=2):
        near = replace(balance, fold_of=start.copy())
        near.swap(one, other)
        costs.append(near.cost())
    for group, fold in product(groups, range(3)):
        near = replace(balance, fold_of=start.copy())
        near.move(group, fold)
        costs.append(near.cost() if near.sizes.all() else costs[0])
    balance = replace(balance, fold_of=start.copy())
    room = np.empty((2, 9, 9), np.int64)
    assert folds._step(balance, groups, apart, room) == (min(costs) < costs[0])
    assert balance.cost() == min(costs)


@pytest.mark.parametrize(("steps", "expected"), [(150, 150), (120, 120), (119, 0)])
def test_a_search_has_a_bound_on_its_work_and_is_left_out_if_that_is_little(
    monkeypatch: pytest.MonkeyPatch, steps: int, expected: int
) -> None:
    taken: list[object] = []
    step = folds._step
    monkeypatch.setattr(folds, "_step", lambda *given: taken.append(given) or step(*given))
    groups, labels = hospital(120, 0)
    monkeypatch.setattr(folds, "_WORK", steps * 120 * (120 + 5 * 7))
    assign_folds(groups, labels, [0.2] * 5, 0)
    assert len(taken) == expected


def test_deviations_of_many_labels_and_folds_fit_their_numbers() -> None:
    """One group holds everything: no deviation is larger."""
    counts = np.zeros((100, 500))
    counts[0] = 1e6
    groups = np.arange(100)
    balance = Balance(counts, np.full(100, 0.01), groups, groups >= 0, exact=True)
    exact = (99 / 100 * 100) ** 2 + 99  # of one label: 99 even shares, and 99 folds without one
    scale = np.sqrt(balance.cost() / (500 * exact))
    assert balance.cost() > 0
    assert scale == pytest.approx(float(balance.scaled[0, 0]) / 100, rel=1e-6)


GROUPS = np.repeat(np.arange(20), 5)
LABELS = (GROUPS % 2 == 0).astype(np.int8)[:, None]


def assign(known: list[str | None] | None = None, **options: Any) -> list[str]:
    """The name of each slice's split."""
    found = assign_splits(GROUPS, LABELS, SplitOptions(**options), known)
    names = {slice_: name for name, slices in found.items() for slice_ in slices}
    assert len(names) == sum(map(len, found.values()))
    return [names[slice_] for slice_ in range(len(GROUPS))]


def test_folds_are_even_and_the_holdout_comes_off_first() -> None:
    assert Counter(assign(folds=2, holdout=0.2)) == {"holdout": 20, "fold0": 40, "fold1": 40}
    splits = assign(folds=4)
    assert Counter(splits) == dict.fromkeys(["fold0", "fold1", "fold2", "fold3"], 25)
    assert len({*zip(GROUPS.tolist(), splits, strict=True)}) == 20  # no group is in two


def test_an_earlier_assignment_is_kept_and_new_groups_are_dealt() -> None:
    known = [f"fold{group % 2}" if group < 8 else None for group in GROUPS]
    splits = assign(known, folds=2)
    for split, earlier in zip(splits, known, strict=True):
        assert earlier in (None, split)
    assert splits.count("fold0") == 50


def test_an_assignment_that_leaks_is_refused() -> None:
    known = ["fold0", "fold1"] + [None] * (len(GROUPS) - 2)
    with pytest.raises(UsageError, match="in two splits: such an assignment leaks"):
        assign(known, folds=2)


def test_an_assignment_of_other_splits_is_refused() -> None:
    known = ["fold7", "fold4"] + [None] * (len(GROUPS) - 2)
    with pytest.raises(UsageError, match="has the split 'fold4'; here are fold0, fold1"):
        assign(known, folds=2)


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(UsageError) as raised:
        assign(folds=21)
    assert str(raised.value) == (
        "--folds 21: 20 patients cannot fill 21 folds; want --folds 20 or fewer"
    )
    for patients, advice in {1: "", 2: "; want --folds 2 or fewer"}.items():
        groups = np.arange(patients)
        with pytest.raises(UsageError, match=rf"cannot fill 3 folds{advice}$"):
            assign_splits(groups, LABELS[:patients], SplitOptions(folds=3))
    with pytest.raises(UsageError) as raised:
        assign(folds=20, holdout=0.1)
    assert str(raised.value) == (
        "--folds 20 with --holdout: 20 patients cannot fill 20 folds and a hold-out; "
        "want --folds 19 or fewer"
    )
