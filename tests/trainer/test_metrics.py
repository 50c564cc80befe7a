import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from trainer.evaluation.metrics import (
    example_losses,
    label_figures,
    probabilities,
    reliability_curve,
    split_figures,
    weighted_log_loss,
)


def test_losses_by_hand_and_scikit_learns() -> None:
    labels, predicted = np.array([[1], [0]]), np.array([[0.8], [0.4]])
    losses = example_losses(labels, predicted)
    np.testing.assert_allclose(losses[:, 0], [-math.log(0.8), -math.log(0.6)])
    assert losses.mean() == pytest.approx(log_loss(labels[:, 0], predicted[:, 0]))


def test_a_certain_mistake_costs_what_kaggle_says() -> None:
    losses = example_losses(np.array([[1], [0]]), np.array([[0.0], [1.0]]))
    np.testing.assert_allclose(losses, -math.log(1e-15))
    assert example_losses(np.array([[1]]), np.array([[1.0]]))[0, 0] == pytest.approx(
        1e-15, rel=0.2, abs=0
    )


def test_figures_of_a_label_need_both_kinds_of_examples() -> None:
    needing = {
        "roc_auc",
        "average_precision",
        "sensitivity_at_specificity_0.90",
        "sensitivity_at_specificity_0.95",
    }
    others = {"positives", "log_loss", "calibration_error", "reliability"}
    predicted = np.array([0.1, 0.2, 0.3])
    for labels in ([0, 0, 0], [1, 1, 1], [0, 0, 1], [1, 1, 0]):
        figures = label_figures(np.array(labels), predicted)
        undefined = {name for name, value in figures.items() if value is None}
        assert undefined == (needing if len(set(labels)) == 1 else set())
        assert figures.keys() == needing | others
        assert figures["log_loss"] == pytest.approx(log_loss(labels, predicted, labels=[0, 1]))


def test_sensitivities_are_at_the_specificities_that_they_name() -> None:
    # Of 20 negatives, one is above the second positive, and one more above the third.
    labels = np.array([1, 0, 1, 0, 1, *[0] * 18])
    figures = label_figures(labels, np.linspace(0.9, 0.1, len(labels)))
    assert figures["sensitivity_at_specificity_0.95"] == pytest.approx(2 / 3)
    assert figures["sensitivity_at_specificity_0.90"] == 1


def test_auc_by_hand() -> None:
    # Of four pairs of a positive and a negative, three are in the right order.
    figures = label_figures(np.array([1, 1, 0, 0]), np.array([0.9, 0.3, 0.5, 0.1]))
    assert figures["roc_auc"] == pytest.approx(3 / 4)
    assert figures["average_precision"] == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert figures["positives"] == 2


def test_a_split_is_weighted_and_means_leave_out_what_is_undefined() -> None:
    labels = np.array([[1, 0], [0, 0]])
    predicted = np.array([[0.5, 0.25], [0.5, 0.25]])
    figures = split_figures(labels, predicted, ("a", "any"), (1, 2))
    expected = (math.log(2) + 2 * -math.log(0.75)) / 3
    assert figures["weighted_log_loss"] == pytest.approx(expected)
    assert figures["label_weights"] == {"a": 1, "any": 2}
    assert figures["mean_roc_auc"] == pytest.approx(0.5)
    assert figures["mean_average_precision"] == pytest.approx(0.5)
    assert figures["examples"] == 2
    assert [(name, each["positives"]) for name, each in figures["labels"].items()] == [
        ("a", 1),
        ("any", 0),
    ]
    figures = split_figures(labels[:, 1:], predicted[:, 1:], ("any",), (1,))
    assert figures["mean_roc_auc"] is figures["mean_average_precision"] is None


def test_probabilities_are_of_float64() -> None:
    assert 0 < 1 - probabilities(np.float32([20.0]))[0] < 3e-9


def test_the_prevalence_alone() -> None:
    labels = np.array([[1], [0], [0], [0]])
    expected = -(math.log(0.25) + 3 * math.log(0.75)) / 4
    assert weighted_log_loss(labels, np.array([0.25]), (1.0,)) == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
    # Two bins: mean 0.25 with half positive, and 0.99 with all positive.
    figures = label_figures(np.array([0, 1, 1, 1]), np.array([0.24, 0.26, 0.98, 1.0]))
    assert figures["reliability"] == [
        {"examples": 2, "predicted": pytest.approx(0.25), "observed": 0.5},
        {"examples": 2, "predicted": pytest.approx(0.99), "observed": 1.0},
    ]
    assert figures["calibration_error"] == pytest.approx(0.5 * 0.25 + 0.5 * 0.01)


def test_the_curve_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    predicted = random.uniform(0, 1, 500)
    labels = (random.uniform(0, 1, 500) < predicted).astype(int)
    observed, mean = calibration_curve(labels, predicted, n_bins=15)
    curve = reliability_curve(labels, predicted)
    assert [each["observed"] for each in curve] == pytest.approx(observed)
    assert [each["predicted"] for each in curve] == pytest.approx(mean)


def test_bins_begin_at_their_lower_ends() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0.0, 0.49, 0.5, 0.99])
    curve = reliability_curve(labels, predicted, bins=2)
    assert [(each["examples"], each["observed"]) for each in curve] == [(2, 0), (2, 1)]
    # Without a number there are fifteen.
    edges = np.arange(15) / 15 + 0.001
    assert len(reliability_curve(np.zeros(15), edges)) == 15
    assert len(reliability_curve(np.zeros(30), np.append(edges, edges + 0.06))) == 15
