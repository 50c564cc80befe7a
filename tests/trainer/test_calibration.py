from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from trainer.evaluation.calibration import cross_calibrate, fit_calibration, fit_label

Array = npt.NDArray[Any]


def drawn(logits: Array, seed: int = 0) -> Array:
    """Labels of these log-odds."""
    random = np.random.default_rng(seed)
    return (random.uniform(0, 1, logits.shape) < expit(logits)).astype(int)


def test_scale_and_bias_are_found_again() -> None:
    true = np.random.default_rng(0).normal(-2, 2, (20000, 2))
    labels = np.column_stack([drawn(true), np.zeros(20000, int)])
    spoiled = np.column_stack([true * (3, 0.5) + (1, -2), true[:, 0]])
    found = fit_calibration(spoiled, labels)
    # true = (spoiled - 1) / 3, and (spoiled + 2) * 2; a label of one kind stays as it is.
    assert found.temperatures == pytest.approx((3, 0.5, 1), rel=0.05)
    assert found.biases == pytest.approx((-1 / 3, 4, 0), abs=0.1)
    assert (found.temperatures[2], found.biases[2]) == (1, 0)


def test_it_is_a_logistic_regression_of_labels_that_are_nearly_certain() -> None:
    logits = np.random.default_rng(1).normal(-1, 2, 60)
    labels = drawn(logits / 2 + 1)
    positives, negatives = labels.sum(), 60 - labels.sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # A label of 0.9 is nine tenths of a positive and a tenth of a negative.
    expected = LogisticRegression(C=np.inf, tol=1e-8).fit(
        np.tile(logits, 2)[:, None], np.repeat([1, 0], 60), np.concatenate([target, 1 - target])
    )
    temperature, bias = fit_label(logits, labels)
    assert 1 / temperature == pytest.approx(expected.coef_[0, 0], rel=1e-3)
    assert bias == pytest.approx(expected.intercept_[0], abs=1e-3)


def test_what_is_separated_is_kept_off_0_and_1() -> None:
    logits, labels = np.array([-9.0, -8.0, -7.0, 7.0, 8.0]), np.array([0, 0, 0, 1, 1])
    temperature, bias = fit_label(logits, labels)
    predicted = expit(logits / temperature + bias)
    # Of two positives and three negatives: 3/4 and 1/5.
    assert predicted == pytest.approx([0.2, 0.2, 0.2, 0.75, 0.75], abs=0.04)


def test_no_ranking_is_turned_round() -> None:
    logits = np.linspace(-3, 3, 200)
    labels = drawn(-2 * logits - 1)
    temperature, bias = fit_label(logits, labels)
    assert temperature == pytest.approx(20)
    assert expit(logits / temperature + bias).mean() == pytest.approx(labels.mean(), abs=0.02)
    same = np.full(200, 3.0)
    temperature, bias = fit_label(same, labels)
    assert expit(same / temperature + bias) == pytest.approx(labels.mean(), abs=0.01)


def test_no_patient_is_calibrated_by_own_slices(full: bool) -> None:
    random = np.random.default_rng(0)
    patients = np.repeat([f"p{i}" for i in range(12)], 5)
    logits = random.normal(0, 2, (60, 2))
    labels = drawn(logits)
    crossed = cross_calibrate(logits, labels, patients)
    for patient in np.unique(patients)[: 3 if full else 1]:
        # Whatever labels a patient has: the calibration of the own slices is the same.
        other = np.where((patients == patient)[:, None], 1 - labels, labels)
        again = cross_calibrate(logits, other, patients)
        assert again[patients == patient] == pytest.approx(crossed[patients == patient])
        assert again != pytest.approx(crossed)
    two = np.repeat(["a", "b"], 30)
    halves = cross_calibrate(logits, labels, two)
    assert halves[:30] == pytest.approx(
        fit_calibration(logits[30:], labels[30:]).apply(logits[:30])
    )
