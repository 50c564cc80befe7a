import numpy as np

from trainer.data.sampling import log_odds, priors


def test_log_odds_by_hand() -> None:
    np.testing.assert_allclose(log_odds((0.5, 0.25, 0.9)), np.log([1, 1 / 3, 9]))
    # One of ten thousand at least, and one at least that is not.
    np.testing.assert_allclose(log_odds((0.0, 1.0)), np.log([1 / 9999, 9999]))


def test_priors_are_what_log_odds_are_of() -> None:
    np.testing.assert_allclose(priors((0.0, 0.5, 1.0)), [1e-4, 0.5, 1 - 1e-4])
