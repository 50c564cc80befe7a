from itertools import product

import numpy as np
import pytest

from beam_pipeline.planning.fold_search import _Search, search_folds
from beam_pipeline.planning.folds import assign_folds


def imbalance(counts: np.ndarray, shares: np.ndarray, fold_of: np.ndarray) -> float:
    """The squared deviations from the folds' shares, in units of an even share, 1 at least."""
    total = counts.sum(axis=0)
    held = np.array([counts[fold_of == fold].sum(axis=0) for fold in range(len(shares))])
    unit = np.maximum(total / len(shares), 1)
    return float((((held - np.outer(shares, total)) / unit) ** 2).sum())


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


@pytest.mark.parametrize("seed", range(4))
def test_the_most_even_of_all_assignments_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (8, 3)).astype(float)
    shares = np.array([0.3, 0.3, 0.4])
    every = [np.array(folds) for folds in product(range(3), repeat=8) if len(set(folds)) == 3]
    least = min(imbalance(counts, shares, fold_of) for fold_of in every)
    start = np.arange(8) % 3
    found = search_folds(counts, shares, start, np.ones(8, bool), np.random.default_rng(0))
    assert imbalance(counts, shares, found) == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_folds_of_few_patients_are_within_three_percent(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, labels = hospital(72, seed)
    counts, shares = counts_of(groups, labels), np.full(5, 0.2)
    even = assign_folds(groups, labels, [0.2] * 5, seed)
    monkeypatch.setattr("beam_pipeline.planning.fold_search._WORK", 0)
    greedy = assign_folds(groups, labels, [0.2] * 5, seed)
    assert imbalance(counts, shares, even) < imbalance(counts, shares, greedy) / 2
    every = np.bincount(even[groups], weights=labels[:, 5])
    assert np.abs(every / every.mean() - 1).max() < 0.03


def test_the_seed_decides_and_nothing_else() -> None:
    groups, labels = hospital(30, 0)
    first, same, other = (assign_folds(groups, labels, [0.25] * 4, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_many_groups_are_left_as_they_are() -> None:
    rng = np.random.default_rng(0)
    counts, start = rng.integers(0, 9, (1000, 3)).astype(float), rng.integers(0, 5, 1000)
    every = np.ones(1000, bool)
    assert search_folds(counts, np.full(5, 0.2), start, every, rng) is start


def test_groups_that_may_not_be_moved_are_not() -> None:
    rng = np.random.default_rng(0)
    counts, start = rng.integers(0, 9, (40, 3)).astype(float), rng.integers(0, 4, 40)
    movable = np.arange(40) % 2 == 0
    shares = np.full(4, 0.25)
    found = search_folds(counts, shares, start, movable, rng)
    np.testing.assert_array_equal(found[~movable], start[~movable])
    assert imbalance(counts, shares, found) < imbalance(counts, shares, start)
    for one in ([], [3]):
        alone = np.isin(np.arange(40), one)
        assert search_folds(counts, shares, start, alone, rng) is start


def test_a_search_has_a_bound_on_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    descend = _Search.descend
    monkeypatch.setattr(
        _Search, "descend", lambda self, most: (descend(self, most), taken.append(self.steps))[0]
    )
    groups, labels = hospital(120, 0)
    steps = 150
    work = steps * 120 * (120 + 5 * 7)
    monkeypatch.setattr("beam_pipeline.planning.fold_search._WORK", work)
    assign_folds(groups, labels, [0.2] * 5, 0)
    assert taken[-1] == steps


def test_deviations_of_many_labels_and_folds_fit_their_numbers() -> None:
    """One group holds everything: no deviation is larger."""
    counts = np.zeros((100, 500))
    counts[0] = 1e6
    shares = np.full(100, 0.01)
    search = _Search(counts, shares, np.arange(100), np.arange(100))
    exact = (99 / 100 * 100) ** 2 + 99  # of one label: 99 even shares, and 99 folds without one
    scale = np.sqrt(search.cost() / (500 * exact))
    assert search.cost() > 0
    assert scale == pytest.approx(float(search._wanted[0, 0]), rel=1e-6)
    search.descend(3)
    assert search.cost() == pytest.approx(500 * exact * scale**2, rel=1e-6)  # none is better
