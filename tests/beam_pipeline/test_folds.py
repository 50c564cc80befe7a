from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipeline.planning.folds import assign_folds, assign_shards
from beam_pipeline.planning.labels import RSNA_LABELS


def even(folds: int) -> list[float]:
    return [1 / folds] * folds


def assert_even(groups: np.ndarray, labels: np.ndarray, fold_of: np.ndarray) -> None:
    """Every label, and the size, within 0.5 % of its share or within one slice."""
    folds = int(fold_of.max()) + 1
    for column in np.column_stack([labels, np.ones(len(labels), int)]).T:
        counts = np.bincount(fold_of[groups], weights=column, minlength=folds)
        share = column.sum() / folds
        assert (np.abs(counts - share) <= max(1.0, 0.005 * share)).all(), counts


def test_the_only_even_assignment_of_four_groups_is_found() -> None:
    # Groups of sizes 3, 2, 2, 1, the first and the last with a label: only {3, 1} | {2, 2} is even
    # in size; only {3, 2} | {2, 1} in the label, so that each fold has one labeled group.
    groups = np.repeat([0, 1, 2, 3], [3, 2, 2, 1])
    labels = np.array([[1], [0], [0], [0], [0], [0], [0], [1]], np.int8)
    fold_of = assign_folds(groups, labels, even(2), seed=0)
    assert fold_of[0] != fold_of[3]
    assert fold_of[1] != fold_of[2]


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


def test_groups_that_have_a_fold_keep_it() -> None:
    groups = np.repeat(np.arange(40), 5)
    labels = (groups % 4 == 0).astype(np.int8)[:, None]
    fixed = np.full(40, -1)
    fixed[:15] = 0
    fold_of = assign_folds(groups, labels, even(2), seed=0, fixed=fixed)
    assert (fold_of[:15] == 0).all()
    assert np.bincount(fold_of).tolist() == [20, 20]
    assert np.bincount(fold_of[::4]).tolist() == [5, 5]


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="3 patients cannot fill 5 folds"):
        assign_folds(np.array([0, 1, 2]), np.zeros((3, 1), np.int8), even(5), seed=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_folds_of_the_real_table_are_even_on_all_labels(real_data: Path, seed: int) -> None:
    table = pd.read_csv(real_data / "tables" / "slices_78545.csv.gz")
    groups = pd.factorize(table["PatientID"])[0]
    labels = table[list(RSNA_LABELS)].to_numpy(np.int8)
    assert_even(groups, labels, assign_folds(groups, labels, even(5), seed))


def test_folds_of_all_labels_are_even(real_data: Path) -> None:
    table = pd.read_csv(real_data / "tables" / "labels_752803.csv.gz")
    labels = table[list(RSNA_LABELS)].to_numpy(np.int8)
    groups = np.arange(len(labels)) // 30
    assert_even(groups, labels, assign_folds(groups, labels, even(5), seed=0))


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


def test_the_order_within_a_shard_is_shuffled_and_seeded() -> None:
    labels = np.repeat([[0], [1]], 50, axis=0).astype(np.int8)
    (shard,) = assign_shards(labels, 1, seed=0)
    assert 15 < labels[shard[:50]].sum() < 35  # labels are mixed
    np.testing.assert_array_equal(shard, assign_shards(labels, 1, seed=0)[0])
    assert (shard != assign_shards(labels, 1, seed=1)[0]).any()
