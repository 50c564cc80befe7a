import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.input_pipeline import Order
from trainer.sampling import balanced_weights, epoch_copies, epoch_rows

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


def test_a_stream_has_what_a_bank_would_draw() -> None:
    labels = np.zeros((1000, 1), np.float32)
    labels[:10] = 1
    copies = epoch_copies(labels, 100, 10, Order(0, 0))
    assert copies.sum() == 1000
    rows = epoch_rows(labels, 100, 10, Order(0, 0), balanced=True)
    assert np.array_equal(np.sort(rows.ravel()), np.repeat(np.arange(1000), copies))
    assert np.array_equal(epoch_copies(labels, 100, 10, Order(0, 0, skip=7)), copies)
