from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headct.errors import UsageError
from trainer.evaluation.measured import (
    Estimate,
    Measured,
    estimate_rate,
    operating_points,
    read_predictions,
)


def make_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": ["i", "j", "k"],
            "patient_id": ["p", "q", "p"],
            "study_id": ["s", "t", "s"],
            "label_a": [0, 0, 1],
            "label_b": [0, 0, 0],
            "probability_a": [0.25, 0.5, 0.125],
            "probability_b": [0.5, 0.75, 0.25],
        }
    )


def test_a_study_is_positive_where_a_slice_is_and_has_the_highest_probabilities() -> None:
    studies = Measured(make_frame(), ("a", "b"), (1, 2)).by_study()
    assert studies.labels.tolist() == [[1, 0], [0, 0]]
    assert studies.predicted.tolist() == [[0.25, 0.5], [0.5, 0.75]]
    assert studies.frame["patient_id"].tolist() == ["p", "q"]
    assert (studies.names, studies.weights) == (("a", "b"), (1, 2))


def test_labels_with_positives_and_negatives() -> None:
    frame = make_frame().assign(label_c=1, probability_c=0.5)
    measured = Measured(frame, ("c", "a", "b"), (1, 1, 1))
    assert measured.defined == [(1, "a")]
    assert [*measured.points] == ["a"]
    assert measured.estimate("roc_auc", "b") == (None, None, ".3f")
    assert measured.estimate("roc_auc").value == measured.estimate("roc_auc", "a").value == 0


def test_a_difference_is_that_of_the_metrics() -> None:
    measured, even = (
        Measured(frame, ("a", "b"), (1, 1))
        for frame in (make_frame(), make_frame().assign(probability_a=0.5))
    )
    # Losses of ln 4/3, ln 2 and ln 8 instead of three of ln 2
    found = measured.difference(even, "log_loss", "a")
    assert found.value == pytest.approx(np.log(8 / 3) / 3)
    assert not {"resampled_ranks", "intervals"} & {*vars(measured)}, "slow, and not needed"
    assert measured.difference(even, "roc_auc", "b").value is None
    # Resamples are paired: predictions never differ from themselves.
    assert measured.difference(measured, "log_loss", "a")[:2] == (0, [0, 0])


def test_mean_probabilities_are_of_the_positives_of_each_label() -> None:
    frame = make_frame().assign(label_c=[1, 0, 1], probability_c=[1.0, 0.5, 0.5])
    means = Measured(frame, ("a", "b", "c"), (1, 1, 1)).means
    assert means.loc["a"].tolist() == [0.125, 0.25, 0.5]
    assert means.loc["b"].isna().all()
    assert means.loc["c"].tolist() == [0.1875, 0.375, 0.75]


@pytest.mark.parametrize("content", [None, b"", b"PAR1"])
def test_predictions_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "predictions-fold0.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="no predictions of these labels"):
        read_predictions(path, ("a",))


def test_a_label_without_predictions(tmp_path: Path) -> None:
    path = tmp_path / "predictions-fold0.parquet"
    make_frame().to_parquet(path)
    assert len(read_predictions(path, ("a", "b"))) == 3
    with pytest.raises(UsageError, match="no predictions of these labels"):
        read_predictions(path, ("a", "c"))


@pytest.mark.parametrize(
    ("estimate", "text", "html"),
    [
        (Estimate(None), "n/a", "n/a"),
        (Estimate(0.5), "0.500", "0.500"),
        (Estimate(0.5, [0.25, 0.75]), "0.500 (0.250 to 0.750)", "0.500 <small>0.250 to 0.750"),
        (Estimate(1.0, [1.0, 1.0]), "1.000 (1.000 to 1.000)", "1.000"),
        (Estimate(0.5, [-0.25, 1], "+.1f"), "+0.5 (-0.2 to +1.0)", "+0.5 <small>-0.2 to +1.0"),
    ],
)
def test_how_estimates_look(estimate: Estimate, text: str, html: str) -> None:
    assert str(estimate) == text
    assert estimate.__html__().removesuffix("</small>") == html


def test_thresholds_by_hand() -> None:
    labels = np.array([0, 1, 0, 0, 1, 1])
    predicted = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    # At 0.5: sensitivity 2/3, specificity 1. At 0.2: sensitivity 1, specificity 1/3.
    youden, sensitive = operating_points(labels, predicted, np.arange(6))
    assert (youden.threshold, youden.counts) == (0.5, (2, 1, 3, 0))
    assert [rate.value for rate in youden.rates] == pytest.approx([2 / 3, 1, 1, 3 / 4])
    assert (sensitive.threshold, sensitive.counts) == (0.2, (3, 0, 1, 2))
    assert [rate.value for rate in sensitive.rates] == pytest.approx([1, 1 / 3, 3 / 5, 1])


def test_a_sensitivity_of_95_percent_itself_is_enough() -> None:
    labels = np.array([1] * 19 + [0] * 9 + [1])
    predicted = np.linspace(0.9, 0.1, len(labels))
    _, sensitive = operating_points(labels, predicted, np.arange(len(labels)))
    assert sensitive.counts == (19, 1, 9, 0)


def test_a_useless_model_has_a_finite_threshold() -> None:
    youden, _ = operating_points(np.array([1, 0]), np.array([0.2, 0.7]), np.arange(2))
    assert youden.threshold == 0.2


def test_the_counts_are_of_all_examples_and_the_intervals_hold_the_rates() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 180)
    predicted = np.clip(labels * 0.3 + random.uniform(0, 0.7, 180), 0, 1)
    youden, sensitive = operating_points(labels, predicted, np.arange(180) // 3)
    assert sensitive.rates[0].value >= 0.95
    for point in (youden, sensitive):
        assert sum(point.counts) == len(labels)
        assert point.counts[0] == ((predicted >= point.threshold) & (labels == 1)).sum()
        for rate in point.rates:
            assert rate.ends[0] <= rate.value <= rate.ends[1]


def test_a_rate_of_one_is_no_certainty_and_one_of_nothing_is_undefined() -> None:
    # Two of two patients: the lower end p has p^2 = 0.025.
    rate = estimate_rate(np.array([[2, 0], [1, 0], [0, 0]]), np.zeros((0, 2), int))
    assert rate.value == 1
    assert rate.ends == pytest.approx([0.025**0.5, 1])
    rate = estimate_rate(np.array([[0, 1], [0, 3]]), np.zeros((0, 2), int))
    assert rate.value == 0
    assert rate.ends == pytest.approx([0, 1 - 0.025**0.5])
    assert estimate_rate(np.zeros((2, 2), int), np.zeros((1, 2), int)) == (None, None, ".3f")
    # A resample without an answer counts for nothing.
    rate = estimate_rate(np.array([[1, 1]]), np.array([[1, 1], [0, 0]]))
    assert rate == (0.5, [0.5, 0.5], ".3f")


@pytest.mark.parametrize(
    ("ends", "is_below"), [([-2, -1], True), ([-1, 0], False), ([-1, 1], False), (None, False)]
)
def test_a_loss_is_lower_for_certain_if_the_whole_interval_is(
    ends: list[float] | None, is_below: bool
) -> None:
    assert Estimate(-1, ends).is_below_0 == is_below
