import math

import numpy as np
import pytest

from trainer.evaluation.metrics import probabilities, weighted_log_loss
from trainer.training.losses import WeightedBinaryCrossentropy


def test_by_hand() -> None:
    # Logits 0 and log 3: probabilities 1/2 and 3/4; any counts twice of three.
    loss = WeightedBinaryCrossentropy((1, 2))
    value = float(loss(np.array([[1, 0]]), np.array([[0.0, math.log(3)]])))
    assert value == pytest.approx((math.log(2) + 2 * math.log(4)) / 3, rel=1e-6)


def test_equals_the_competitions_metric() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (64, 6))
    labels[0], labels[1] = 0, 1
    logits = random.normal(0, 3, (64, 6)).astype(np.float32)
    weights = (1, 1, 1, 1, 1, 2)
    expected = weighted_log_loss(labels, probabilities(logits), weights)
    assert float(WeightedBinaryCrossentropy(weights)(labels, logits)) == pytest.approx(expected)


def test_huge_logits_stay_finite() -> None:
    loss = WeightedBinaryCrossentropy((1,))
    assert float(loss(np.array([[0]]), np.array([[1e4]]))) == pytest.approx(1e4)
    assert float(loss(np.array([[1]]), np.array([[1e4]]))) == 0


def test_smoothing_pulls_labels_to_a_half() -> None:
    smooth = WeightedBinaryCrossentropy((1,), label_smoothing=0.2)
    logit = math.log(9)
    expected = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert float(smooth(np.array([[1]]), np.array([[logit]]))) == pytest.approx(expected, rel=1e-5)


def test_a_loss_for_each_example() -> None:
    loss = WeightedBinaryCrossentropy((1, 3))
    found = np.asarray(
        loss.call(np.array([[1, 0], [0, 0]]), np.array([[0.0, 0.0], [math.log(3), 0.0]]))
    )
    # log 2 for each logit of 0, log 4 for a probability of 3/4 that should be 0.
    expected = [math.log(2), (math.log(4) + 3 * math.log(2)) / 4]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_logits_of_half_precision_are_reckoned_with_in_float32() -> None:
    logits = np.array([[8.0]], np.float16)
    found = float(WeightedBinaryCrossentropy((1,))(np.array([[1]]), logits))
    assert found == pytest.approx(math.log1p(math.exp(-8)), rel=1e-5)


def test_it_is_saved_with_a_model() -> None:
    loss = WeightedBinaryCrossentropy((1, 2), label_smoothing=0.1)
    assert loss.name == "weighted_log_loss"
    again = WeightedBinaryCrossentropy.from_config(loss.get_config())
    assert (again.weights, again.label_smoothing) == ([1, 2], 0.1)
    assert WeightedBinaryCrossentropy((1,)).label_smoothing == 0
    assert WeightedBinaryCrossentropy((1,), name="mine").name == "mine"
