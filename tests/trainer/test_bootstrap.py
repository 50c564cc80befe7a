import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from trainer.evaluation.bootstrap import RankedScores, interval, resamples
from trainer.evaluation.measured import Measured


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=30
    )
)
def test_weighted_figures_are_scikit_learns(rows: list[tuple[int, int, int]]) -> None:
    labels, scores, weights = (np.array(column) for column in zip(*rows, strict=True))
    patients = np.arange(len(labels))
    ranked = RankedScores(labels, scores / 5, patients)
    auc, precision = ranked.figures(weights.astype(np.int32))
    used = weights > 0
    if len(np.unique(labels[used])) < 2:
        assert np.isnan(auc)
        assert np.isnan(precision)
    else:
        assert auc == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))
        assert precision == pytest.approx(
            average_precision_score(labels, scores, sample_weight=weights)
        )


def intervals(
    labels: np.ndarray,
    predicted: np.ndarray,
    patients: np.ndarray,
    names: tuple[str, ...],
    weights: tuple[float, ...],
) -> dict[str, Any]:
    columns = {f"label_{name}": labels[:, i] for i, name in enumerate(names)}
    columns |= {f"probability_{name}": predicted[:, i] for i, name in enumerate(names)}
    return Measured(pd.DataFrame({"patient_id": patients, **columns}), names, weights).intervals


def make_data(patients: int, slices: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    ids = np.repeat(np.arange(patients), slices)
    labels = random.integers(0, 2, (patients * slices, 1))
    predicted = np.clip(labels * 0.4 + random.uniform(0, 0.6, labels.shape), 0.01, 0.99)
    return labels, predicted, ids


def test_an_interval_holds_the_figure_and_narrows_with_patients() -> None:
    widths = []
    for patients in (20, 500):
        labels, predicted, ids = make_data(patients, 4)
        found = intervals(labels, predicted, ids, ("a",), (1.0,))
        low, high = found["labels"]["a"]["roc_auc"]
        assert low < roc_auc_score(labels[:, 0], predicted[:, 0]) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_slices_of_a_patient_stay_together() -> None:
    # A hundred copies of each slice add no patient, so they must not narrow the interval.
    labels, predicted, ids = make_data(30, 1)
    one = intervals(labels, predicted, ids, ("a",), (1.0,))
    copies = (np.repeat(each, 100, axis=0) for each in (labels, predicted, ids))
    many = intervals(*copies, ("a",), (1.0,))
    assert many["weighted_log_loss"] == pytest.approx(one["weighted_log_loss"])


def test_what_is_not_defined_is_none() -> None:
    with warnings.catch_warnings(action="error"):
        labels, predicted, ids = make_data(10, 2)
        found = intervals(labels * 0, predicted, ids, ("a",), (1.0,))
        assert found["mean_roc_auc"] is None
        assert found["weighted_log_loss"] is not None
        alone = intervals(labels, predicted, ids * 0, ("a",), (1.0,))
        assert alone["weighted_log_loss"] is None


def test_two_patients_by_hand() -> None:
    # One in four resamples is of the first alone, and one of the second; both are within 95 %.
    patients = np.array(["P", "Q", "Q", "Q", "P"])
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 0], [0, 0]])
    predicted = np.array([[0.5, 0.25], [0.2, 0.5], [0.5, 0.75], [0.5, 0.5], [0.25, 0.5]])
    found = intervals(labels, predicted, patients, ("a", "any"), (1.0, 3.0))
    first = [-(math.log(0.5) + math.log(0.75)) / 2, -(math.log(0.75) + math.log(0.5)) / 2]
    second = [-(math.log(0.2) + 2 * math.log(0.5)) / 3, -(2 * math.log(0.5) + math.log(0.75)) / 3]
    expected = [(a + 3 * b) / 4 for a, b in (first, second)]
    assert found["patients"] == 2
    assert found["samples"] == 1000
    assert found["weighted_log_loss"] == pytest.approx(sorted(expected))
    assert found["labels"]["a"]["log_loss"] == pytest.approx([first[0], second[0]])
    assert found["labels"]["any"]["log_loss"] == pytest.approx(sorted([first[1], second[1]]))
    # The first ranks `a` rightly and has no `any`; the second the other way about.
    assert found["labels"]["a"]["roc_auc"] == [0, 1]
    low, high = found["labels"]["any"]["roc_auc"]
    assert (low, high) == (1, 1)
    # Its `a` of 0 and `any` of 1; the first has `a` alone.
    assert found["mean_roc_auc"] == [0.5, 1]


def test_a_thousand_resamples_of_seed_zero() -> None:
    random = np.random.default_rng(0)
    expected = [np.bincount(random.integers(0, 3, 3), minlength=3) for _ in range(1000)]
    np.testing.assert_array_equal([*resamples(3)], expected)
    assert [*resamples(1)] == []


def test_percentiles_by_hand() -> None:
    assert interval(np.arange(1001.0)) == [25, 975]
    assert interval(np.array([np.nan, 3.0])) == [3, 3]
    assert interval(np.array([np.nan])) is None
