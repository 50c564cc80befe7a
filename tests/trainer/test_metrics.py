import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from trainer.evaluation.metrics import (
    expected_calibration_error,
    label_figures,
    label_log_losses,
    mean_defined,
    prevalence_baseline,
    probabilities,
    reliability_curve,
    sensitivity_at,
    split_figures,
)


def test_log_loss_by_hand() -> None:
    losses = label_log_losses(np.array([[1], [0]]), np.array([[0.8], [0.4]]))
    assert losses == pytest.approx([-(math.log(0.8) + math.log(0.6)) / 2])


def test_a_certain_mistake_costs_what_kaggle_says() -> None:
    losses = label_log_losses(np.array([[1], [0]]), np.array([[0.0], [0.0]]))
    assert losses == pytest.approx([-math.log(1e-15) / 2], rel=1e-6)
    losses = label_log_losses(np.array([[0], [1]]), np.array([[1.0], [1.0]]))
    # 1 - 1e-15 has three digits left in float64.
    assert losses == pytest.approx([-math.log(1e-15) / 2], rel=1e-3)


def test_a_label_with_no_positives_has_a_loss_but_no_auc() -> None:
    figures = label_figures(np.array([0, 0, 0]), np.array([0.1, 0.2, 0.3]))
    assert figures["roc_auc"] is None
    assert figures["average_precision"] is None
    assert figures["log_loss"] == pytest.approx(log_loss([0, 0, 0], [0.1, 0.2, 0.3], labels=[0, 1]))


def test_figures_of_a_label_need_both_kinds_of_examples() -> None:
    defined = {
        "roc_auc",
        "average_precision",
        "sensitivity_at_specificity_0.90",
        "sensitivity_at_specificity_0.95",
    }
    predicted = np.array([0.1, 0.2, 0.3])
    for labels in ([0, 0, 0], [1, 1, 1]):
        figures = label_figures(np.array(labels), predicted)
        assert {name for name, value in figures.items() if value is None} == defined
    for labels in ([0, 0, 1], [1, 1, 0]):
        figures = label_figures(np.array(labels), predicted)
        assert None not in figures.values()
        assert set(figures) == {"positives", "log_loss", *defined}


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
    assert list(figures["labels"]) == ["a", "any"]
    assert [each["positives"] for each in figures["labels"].values()] == [1, 0]


def test_means_of_nothing_are_none() -> None:
    figures = split_figures(np.zeros((2, 1), int), np.full((2, 1), 0.5), ("a",), (1,))
    assert figures["mean_roc_auc"] is None
    assert figures["mean_average_precision"] is None
    assert mean_defined([1.0, None, 4.0]) == 2.5


def test_probabilities_are_of_float64() -> None:
    assert 0 < 1 - probabilities(np.float32([20.0]))[0] < 3e-9


def test_sensitivity_at_a_specificity_by_hand() -> None:
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    predicted = np.array([0.9, 0.8, 0.6, 0.2, 0.7, 0.5, 0.4, 0.1])
    assert sensitivity_at(labels, predicted, 1.0) == 0.5
    assert sensitivity_at(labels, predicted, 0.75) == 0.75
    assert sensitivity_at(labels, predicted, 0.8) == 0.5
    assert sensitivity_at(labels, predicted, 0.25) == 1.0


def test_the_prevalence_alone() -> None:
    labels = np.array([[1], [0], [0], [0]])
    expected = -(math.log(0.25) + 3 * math.log(0.75)) / 4
    assert prevalence_baseline(labels, (0.25,), (1.0,)) == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
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


def test_bins_begin_at_their_lower_ends() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0.0, 0.49, 0.5, 0.99])
    curve = reliability_curve(labels, predicted, bins=2)
    assert [(each["examples"], each["observed"]) for each in curve] == [(2, 0), (2, 1)]
    # Without a number there are fifteen.
    edges = np.arange(15) / 15 + 0.001
    assert len(reliability_curve(np.zeros(15), edges)) == 15
    assert len(reliability_curve(np.zeros(30), np.append(edges, edges + 0.06))) == 15
