import math
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import logit, softmax

from trainer.data.sampling import Order, balanced_rates, balanced_weights, epoch_rows
from trainer.evaluation.metrics import probabilities, weighted_log_loss
from trainer.training.training_model import WeightedBinaryCrossentropy


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
    loss = WeightedBinaryCrossentropy((1, 2), label_smoothing=0.1, rates=(3, 4, 5))
    assert loss.name == "weighted_log_loss"
    again = WeightedBinaryCrossentropy.from_config(loss.get_config())
    assert (again.weights, again.label_smoothing, again.rates) == ([1, 2], 0.1, [3, 4, 5])
    assert WeightedBinaryCrossentropy((1,)).label_smoothing == 0
    assert WeightedBinaryCrossentropy((1,), name="mine").name == "mine"


# Five subtypes, and any of them. RSNA's shares and what occurs together, by and large.
FIELD = np.array([-5.6, -3.6, -4.6, -3.9, -3.1])
TOGETHER = {(0, 4): 1.6, (0, 3): 0.8, (1, 2): 2.2, (1, 3): 1.0, (2, 3): 1.4, (3, 4): 1.2}
SUBTYPES = np.array([[number >> i & 1 for i in range(5)] for number in range(32)])
COMBINATIONS = np.column_stack([SUBTYPES, SUBTYPES.any(axis=1)])
SHARES = softmax(
    SUBTYPES @ FIELD
    + sum(each * SUBTYPES[:, i] * SUBTYPES[:, j] for (i, j), each in TOGETHER.items())
)
RSNA_WEIGHTS = (1, 1, 1, 1, 1, 2)
Array = npt.NDArray[Any]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_balanced_draws_have_the_loss_of_all_examples(smoothing: float) -> None:
    """For whatever logits: the expected loss is the same, and so is the best network."""
    random = np.random.default_rng(0)
    labels = COMBINATIONS[random.choice(32, 3000, p=SHARES)].astype(np.float32)
    logits = random.normal(0, 3, labels.shape).astype(np.float32)
    natural = WeightedBinaryCrossentropy(RSNA_WEIGHTS, smoothing)
    balanced = WeightedBinaryCrossentropy(RSNA_WEIGHTS, smoothing, balanced_rates(labels))
    drawn = balanced_weights(labels) @ np.asarray(balanced.call(labels, logits))
    assert drawn == pytest.approx(float(natural(labels, logits)), rel=1e-5)


@pytest.mark.full
def test_balanced_training_comes_as_close_to_the_optimum_as_natural() -> None:
    """Gaussian features of each combination: the best probabilities are known."""
    random = np.random.default_rng(0)
    means = SUBTYPES @ random.normal(size=(5, 8)) * 0.5
    means += (SUBTYPES.sum(axis=1) > 1)[:, None] * random.normal(size=(32, 8)) * 0.3

    def draw(count: int) -> tuple[Array, Array]:
        which = random.choice(32, count, p=SHARES)
        features = means[which] + random.normal(size=(count, 8))
        return features.astype(np.float32), COMBINATIONS[which].astype(np.float32)

    features, labels = draw(40_000)
    unseen, truth = draw(40_000)
    nearness = -((unseen[:, None] - means) ** 2).sum(axis=2) / 2
    best = softmax(np.log(SHARES) + nearness, axis=1) @ COMBINATIONS
    optimum = weighted_log_loss(truth.astype(int), best, RSNA_WEIGHTS)

    def excess(balanced: bool) -> float:
        keras.utils.set_random_seed(0)
        head = keras.layers.Dense(6, kernel_initializer="zeros")
        model = keras.Sequential([keras.layers.Dense(96, "gelu") for _ in range(2)] + [head])
        model.build((None, 8))
        head.bias.assign(logit(labels.mean(axis=0)))
        epochs, steps = 8, len(labels) // 200
        rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * steps)
        rates = balanced_rates(labels) if balanced else ()
        model.compile("adam", WeightedBinaryCrossentropy(RSNA_WEIGHTS, rates=rates))
        model.optimizer.learning_rate = rate
        for epoch in range(epochs):
            rows = epoch_rows(labels, steps, 200, Order(0, epoch), balanced).ravel()
            model.fit(features[rows], labels[rows], 200, verbose=0, shuffle=False)
        predicted = probabilities(model.predict(unseen, 4000, verbose=0))
        return weighted_log_loss(truth.astype(int), predicted, RSNA_WEIGHTS) / optimum - 1

    natural, balanced = excess(balanced=False), excess(balanced=True)
    # Corrected label by label, it was 5 % and more.
    assert natural < 0.01
    assert balanced < 0.015
