import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.input_pipeline import Order
from trainer.data.sampling import balanced_prevalence, balanced_weights, epoch_rows

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


def test_the_drawn_prevalence_by_hand() -> None:
    # 4, 2.5, 2.5 and 3 of 12: the rows' weights.
    expected = [1 / 3, 5 / 12, 3 / 4]
    np.testing.assert_allclose(balanced_prevalence(LABELS), expected)


def test_the_drawn_prevalence_is_that_of_draws() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((500, 3)) < (0.3, 0.05, 0.5)).astype(np.float32)
    rows = epoch_rows(labels, 1000, 50, Order(0, 0), balanced=True)
    np.testing.assert_allclose(
        labels[rows.ravel()].mean(axis=0), balanced_prevalence(labels), atol=0.01
    )
