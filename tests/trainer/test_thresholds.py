import numpy as np
import pytest

from trainer.evaluation.thresholds import choose_thresholds, operating_points, rates


def test_rates_by_hand() -> None:
    # 8 of 10 found, 3 of 90 wrong.
    found = rates(np.array([8, 2, 87, 3]))
    np.testing.assert_allclose(found, [8 / 10, 87 / 90, 8 / 11, 87 / 89])
    assert np.isnan(rates(np.array([0, 0, 5, 0]))).tolist() == [True, False, True, False]


def test_thresholds_by_hand() -> None:
    labels = np.array([0, 1, 0, 0, 1, 1])
    predicted = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    # At 0.5: sensitivity 2/3, specificity 1. At 0.2: sensitivity 1, specificity 1/3.
    assert choose_thresholds(labels, predicted) == {"youden": 0.5, "sensitivity": 0.2}


def test_a_useless_model_has_a_finite_threshold() -> None:
    found = choose_thresholds(np.array([1, 0]), np.array([0.2, 0.7]))
    assert found["youden"] == 0.2


def make_points(patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, patients * 3)
    predicted = np.clip(labels * 0.3 + random.uniform(0, 0.7, len(labels)), 0, 1)
    return labels, predicted, np.repeat(np.arange(patients), 3)


def test_the_counts_are_of_all_examples_and_the_intervals_hold_the_rates() -> None:
    labels, predicted, patients = make_points(60)
    youden, sensitive = operating_points(labels, predicted, patients, samples=200)
    assert (youden.rule, sensitive.rule) == ("youden", "sensitivity")
    assert sensitive.rates["sensitivity"].value >= 0.95
    for point in (youden, sensitive):
        assert sum(point.counts) == len(labels)
        answers = predicted >= point.threshold
        assert point.counts[0] == (answers & (labels == 1)).sum()
        for each in point.rates.values():
            assert each.ends[0] <= each.value <= each.ends[1]


def test_a_rate_of_one_is_no_certainty() -> None:
    labels, patients = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3])
    (point, _) = operating_points(labels, labels * 0.8 + 0.1, patients, samples=50)
    # Two of two patients: the lower end p has p^2 = 0.025.
    assert point.rates["sensitivity"].value == 1
    assert point.rates["sensitivity"].ends == pytest.approx([0.025**0.5, 1])


def test_one_kind_of_labels_has_no_threshold() -> None:
    assert operating_points(np.zeros(3, int), np.array([0.1, 0.2, 0.3]), np.arange(3)) == []
