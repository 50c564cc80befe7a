import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from trainer.data.priors import RAREST, log_odds, logit_shift


def test_log_odds_by_hand() -> None:
    np.testing.assert_allclose(log_odds((0.5, 0.25, 0.9)), np.log([1, 1 / 3, 9]))
    extreme = np.log(RAREST / (1 - RAREST))
    np.testing.assert_allclose(log_odds((0.0, 1.0)), [extreme, -extreme])


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
