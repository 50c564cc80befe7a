import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from trainer.data.priors import log_odds, logit_shift


def test_log_odds_by_hand() -> None:
    np.testing.assert_allclose(log_odds((0.5, 0.25, 0.9)), np.log([1, 1 / 3, 9]))
    # One of ten thousand at least, and one at least that is not.
    np.testing.assert_allclose(log_odds((0.0, 1.0)), np.log([1 / 9999, 9999]))


def test_the_shift_by_hand() -> None:
    # From odds of 1 to 1 back to 1 to 3, and from 1 to 4 to 9 to 1.
    assert logit_shift((0.25, 0.9), (0.5, 0.2)) == pytest.approx(np.log([1 / 3, 36]))


def test_no_shift_between_equal_shares() -> None:
    assert logit_shift((0.1, 0.0), (0.1, 0.0)) == (0.0, 0.0)


def test_a_model_of_other_shares_is_put_right() -> None:
    """With an independent oracle: a logistic regression trained on what occurs."""
    random = np.random.default_rng(0)
    labels = random.random(200_000) < 0.02
    images = random.normal(size=labels.size) + 1.5 * labels
    weights = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())
    drawn = random.choice(labels.size, 100_000, p=weights)
    natural, balanced = (
        LogisticRegression(C=1e6).fit(images[rows, None], labels[rows])
        for rows in (np.arange(labels.size), drawn)
    )
    (shift,) = logit_shift((labels.mean(),), (0.5,))
    assert balanced.intercept_[0] + shift == pytest.approx(natural.intercept_[0], abs=0.1)
    assert abs(balanced.intercept_[0] - natural.intercept_[0]) > 3
