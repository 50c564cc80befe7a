import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.sampling import Order, balanced_rates, balanced_weights, epoch_rows, priors

LABELS = np.float32([[1, 0, 1], [0, 1, 1], [0, 1, 1], [0, 0, 0]])


def test_weights_by_hand() -> None:
    # Groups: {0}, {1, 2}, {0, 1, 2}, {3}.
    expected = np.array([1 + 1 / 3, 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1]) / 4
    np.testing.assert_allclose(balanced_weights(LABELS), expected)


def test_a_label_without_positives_is_no_group() -> None:
    np.testing.assert_allclose(balanced_weights(np.float32([[0, 1], [0, 0]])), [0.5, 0.5])


@given(
    count=st.integers(4, 40),
    batch=st.integers(1, 4),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 9),
)
def test_an_epoch_has_no_example_twice_and_goes_on(
    count: int, batch: int, seed: int, epoch: int
) -> None:
    labels, steps = np.zeros((count, 2), np.float32), count // batch
    rows = epoch_rows(labels, steps, batch, Order(seed, epoch), balanced=False)
    assert rows.shape == (steps, batch)
    assert len(set(rows.ravel().tolist())) == rows.size
    rest = epoch_rows(labels, steps, batch, Order(seed, epoch, skip=steps // 2), balanced=False)
    assert np.array_equal(rest, rows[steps // 2 :])


def test_balanced_draws_are_balanced() -> None:
    labels = np.zeros((1000, 1), np.float32)
    labels[:10] = 1
    rows = epoch_rows(labels, 100, 50, Order(0, 0), balanced=True)
    assert abs(labels[rows].mean() - 0.5) < 0.03


def test_rates_by_hand() -> None:
    # Each of four groups is a quarter of the draws; one to three of four examples are in it.
    np.testing.assert_allclose(balanced_rates(LABELS), [1, 1 / 2, 1 / 3, 1])
    # Without a group of its own, a label has no rate.
    np.testing.assert_allclose(balanced_rates(np.float32([[0, 1], [0, 1]])), [1, 1, 1])


def test_rates_are_those_of_draws() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((500, 3)) < (0.3, 0.05, 0.5)).astype(np.float32)
    rows = epoch_rows(labels, 1000, 50, Order(0, 0), balanced=True)
    *positive, negative = balanced_rates(labels)
    expected = labels @ positive + negative * ~labels.any(axis=1)
    drawn = np.bincount(rows.ravel(), minlength=500) / 100
    for combination in np.unique(labels, axis=0):
        same = (labels == combination).all(axis=1)
        assert drawn[same].mean() == pytest.approx(expected[same].mean(), rel=0.1)


def test_priors_are_neither_0_nor_1() -> None:
    np.testing.assert_allclose(priors((0.0, 0.5, 1.0)), [1e-4, 0.5, 1 - 1e-4])
