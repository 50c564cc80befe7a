import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from trainer.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    fit_temperatures,
    reliability_curve,
)
from trainer.evaluation.metrics import probabilities


def test_by_hand() -> None:
    # Two bins: mean 0.25 with half positive, and 0.9 with all positive.
    labels, predicted = np.array([0, 1, 1, 1]), np.array([0.2, 0.3, 0.8, 1.0])
    assert reliability_curve(labels, predicted, bins=2) == [
        {"examples": 2, "predicted": pytest.approx(0.25), "observed": 0.5},
        {"examples": 2, "predicted": pytest.approx(0.9), "observed": 1.0},
    ]
    found = expected_calibration_error(labels, predicted, bins=2)
    assert found == pytest.approx(0.5 * 0.25 + 0.5 * 0.1)


def test_the_curve_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    predicted = random.uniform(0, 1, 500)
    labels = (random.uniform(0, 1, 500) < predicted).astype(int)
    observed, mean = calibration_curve(labels, predicted, n_bins=15)
    curve = reliability_curve(labels, predicted)
    assert [each["observed"] for each in curve] == pytest.approx(observed)
    assert [each["predicted"] for each in curve] == pytest.approx(mean)


def test_a_temperature_is_found_again() -> None:
    random = np.random.default_rng(0)
    true_logits = random.normal(0, 2, 20000)
    labels = (random.uniform(0, 1, 20000) < probabilities(true_logits)).astype(int)
    assert fit_temperature(true_logits * 3, labels) == pytest.approx(3, rel=0.05)


def test_one_class_alone_keeps_one() -> None:
    logits, labels = np.zeros((4, 2)), np.array([[0, 1]] * 4)
    assert fit_temperatures(logits, labels) == (1.0, 1.0)
