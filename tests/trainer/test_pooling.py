"""Means of several models' answers, by hand."""

import numpy as np
import pytest

from trainer.evaluation.calibration import cross_fit
from trainer.evaluation.pooling import fit_weights, pool, without

LOG3, LOG9 = np.log(3.0), np.log(9.0)
# Logits of the probabilities 0.9 and 0.5, for one example and one label.
TWO = np.array([[[LOG9]], [[0.0]]])


@pytest.mark.parametrize(
    ("mean", "weights", "expected"),
    [
        ("logits", [0.5, 0.5], LOG3),
        ("logits", [0.25, 0.75], LOG9 / 4),
        ("probabilities", [0.5, 0.5], np.log(0.7 / 0.3)),
        ("probabilities", [0.75, 0.25], np.log(0.8 / 0.2)),
        ("probabilities", [0, 1], 0),
    ],
)
def test_means_by_hand(mean: str, weights: list[float], expected: float) -> None:
    assert pool(TWO, mean, np.array(weights)) == pytest.approx(np.array([[expected]]))


def test_a_mean_of_probabilities_keeps_what_float_cannot_write() -> None:
    logits = np.array([[[60.0, -800.0]], [[60.0, -800.0]]])
    assert pool(logits, "probabilities", np.array([0.5, 0.5])) == pytest.approx(logits[0])


def test_only_those_who_answer_are_averaged() -> None:
    logits = np.array([[[1.0], [2.0]], [[3.0], [6.0]], [[5.0], [7.0]]])
    answering = np.array([[True, False], [True, True], [False, True]])
    weights = np.array([0.2, 0.6, 0.2])
    found = pool(logits, "logits", weights, answering)
    assert found[:, 0] == pytest.approx([0.25 * 1 + 0.75 * 3, 0.75 * 6 + 0.25 * 7])
    by_example = np.array([[1.0, 0], [0, 0.5], [0, 0.5]])
    assert pool(logits, "logits", by_example)[:, 0] == pytest.approx([1, 6.5])


@pytest.mark.parametrize(
    ("mean", "probabilities", "labels", "expected"),
    [
        # The best constant is the share of positives, 0.75 = 0.625 * 0.9 + 0.375 * 0.5 ...
        ("probabilities", [0.9, 0.5], [1, 1, 1, 0], [0.625, 0.375]),
        # ... and of logits, log 3 = log 9 / 2.
        ("logits", [0.9, 0.5], [1, 1, 1, 0], [0.5, 0.5]),
        # Beyond both members: all weight on the nearer one, and none below 0.
        ("logits", [0.9, 0.8], [1, 0], [0, 1]),
        ("probabilities", [0.9, 0.8], [1, 0], [0, 1]),
    ],
)
def test_weights_by_hand(
    mean: str, probabilities: list[float], labels: list[int], expected: list[float]
) -> None:
    p = np.array(probabilities)[:, None, None] * np.ones((1, len(labels), 1))
    found = fit_weights(np.log(p / (1 - p)), np.array(labels)[:, None], mean, (1,))
    assert found == pytest.approx(expected, abs=1e-4)
    assert found.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_a_label_counts_by_its_weight_in_the_loss(mean: str) -> None:
    """The first member knows the first label, the second member the second one."""
    sure = np.array([4.0, -4.0, 4.0, -4.0])
    labels = np.tile([1, 0], 2)[:, None] * np.ones((1, 2), int)
    logits = np.stack([np.stack([sure, -sure / 4], 1), np.stack([-sure / 4, sure], 1)])
    even, first, second = (
        fit_weights(logits, labels, mean, weights)[0] for weights in ((1, 1), (9, 1), (1, 9))
    )
    assert even == pytest.approx(0.5, abs=1e-4)
    assert first == pytest.approx(1 - second, abs=1e-4)
    assert first > 0.6


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_who_gets_no_weight_might_as_well_be_missing(mean: str) -> None:
    labels, first, second = two_members()
    alone = fit_weights(np.stack([first, second]), labels, mean, (1, 2))
    assert alone.min() > 0.3
    # The opposite of the first member: below 0, its weight would help.
    found = fit_weights(np.stack([first, second, -first]), labels, mean, (1, 2))
    assert found[2] == 0
    assert found[:2] == pytest.approx(alone, abs=1e-3)


def test_an_example_that_all_members_exclude_changes_no_weights() -> None:
    labels, first, second = two_members()
    logits = np.stack([first, second])
    alone = fit_weights(logits, labels, "probabilities", (1, 2))
    logits = np.concatenate([logits, np.full((2, 1, 2), -800.0)], axis=1)
    labels = np.concatenate([labels, [[1, 1]]])
    assert fit_weights(logits, labels, "probabilities", (1, 2)) == pytest.approx(alone, abs=1e-3)


def two_members() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels [N, 2], and logits that are as good and err independently."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (400, 2))
    first, second = 2 * labels - 1 + random.normal(0, 1.5, (2, *labels.shape))
    return labels, first, second


def test_no_patient_has_a_say_in_its_own_weights() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (60, 2))
    logits = np.stack([labels * 2 - 1 + random.normal(size=labels.shape) for _ in range(3)])
    patients = np.repeat(np.arange(12), 5)

    def weigh(labels: np.ndarray) -> np.ndarray:
        def answer(rest: np.ndarray, group: np.ndarray) -> np.ndarray:
            fitted = fit_weights(logits[:, rest], labels[rest], "logits", (1, 2))
            return np.tile(fitted, (len(group), 1))

        return cross_fit(patients, answer).T

    found = weigh(labels)
    assert found.shape == (3, 60)
    assert found.sum(axis=0) == pytest.approx(np.ones(60))
    assert found.min() >= 0
    poisoned = np.where((patients == 7)[:, None], 1 - labels, labels)
    of_others = weigh(poisoned)
    np.testing.assert_array_equal(of_others[:, patients == 7], found[:, patients == 7])
    assert len({*of_others[0]} - {*found[0]}) == 9  # the other groups saw the poison


def test_the_others_take_the_weight_of_who_leaves() -> None:
    weights = np.array([[0.5, 1.0], [0.1, 0.0], [0.4, 0.0]])
    assert without(weights, 0) == pytest.approx(np.array([[0, 0], [0.2, 0.5], [0.8, 0.5]]))
    assert without(weights, 1) == pytest.approx(np.array([[5 / 9, 1], [0, 0], [4 / 9, 0]]))
