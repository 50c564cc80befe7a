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


def test_bins_begin_at_their_lower_ends() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0.0, 0.49, 0.5, 0.99])
    curve = reliability_curve(labels, predicted, bins=2)
    assert [(each["examples"], each["observed"]) for each in curve] == [(2, 0), (2, 1)]
    # Without a number there are fifteen.
    edges = np.arange(15) / 15 + 0.001
    assert len(reliability_curve(np.zeros(15), edges)) == 15
    assert len(reliability_curve(np.zeros(30), np.append(edges, edges + 0.06))) == 15


def test_temperatures_end_at_a_twentieth_and_at_twenty() -> None:
    # Right by a little, and wrong by much: no temperature is small or large enough.
    right, labels = np.array([-0.01, 0.01]), np.array([0, 1])
    assert fit_temperature(right, labels) == pytest.approx(1 / 20, rel=1e-3)
    assert fit_temperature(right * -1e4, labels) == pytest.approx(20, rel=1e-3)


def test_each_label_has_a_temperature_of_its_own() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 2))
    labels = (random.uniform(0, 1, logits.shape) < probabilities(logits)).astype(int)
    labels = np.column_stack([labels, np.zeros(4000, int)])
    scaled = np.column_stack([logits * (0.5, 4), logits[:, 0]])
    found = fit_temperatures(scaled, labels)
    assert found == pytest.approx((0.5, 4, 1), rel=0.1)
    assert found[2] == 1
