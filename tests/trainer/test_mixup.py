"""mixup: images and labels of a batch mixed in one share, and the loss of balanced draws."""

import math
from itertools import product
from typing import Any

import keras
import numpy as np
import pytest

from trainer.data.sampling import balanced_rates, balanced_weights
from trainer.networks.image_layers import Mixup
from trainer.training.training_model import WeightedBinaryCrossentropy

IMAGES = np.arange(3 * 2 * 2, dtype=np.float32).reshape(3, 2, 2, 1)


def at_share(share: float) -> Mixup:
    """A layer whose last step has drawn a share."""
    layer = Mixup(1.0, seed=0)
    layer.draw.assign(int(share * 4096))  # Beta(1, 1) is uniform
    return layer


def test_a_batch_by_hand() -> None:
    layer = at_share(0.75)
    # The middle one of three is its own partner.
    expected = [0.75 * 0 + 0.25 * 8, 4, 0.75 * 8 + 0.25 * 0]
    mixed = np.asarray(layer.mix(IMAGES))[:, 0, 0, 0]
    np.testing.assert_allclose(mixed, expected, atol=1e-2)
    labels = np.asarray(layer.mix(np.float32([[1, 0], [1, 1], [0, 0]])))
    np.testing.assert_allclose(labels, [[0.75, 0], [1, 1], [0.25, 0]], atol=1e-3)


def test_images_and_labels_of_a_step_are_mixed_alike_and_only_in_training() -> None:
    layer = Mixup(0.4, seed=3)
    assert np.array_equal(np.asarray(layer(IMAGES, training=False)), IMAGES)
    shares = []
    for _ in range(5):
        mixed = np.asarray(layer(IMAGES, training=True))
        np.testing.assert_array_equal(mixed, np.asarray(layer.mix(IMAGES)))
        shares.append(float(1 - mixed[0, 0, 0, 0] / 8))
    assert len(set(shares)) == 5
    again = Mixup.from_config(layer.get_config())
    assert float(1 - np.asarray(again(IMAGES, training=True))[0, 0, 0, 0] / 8) == shares[0]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    shares = Mixup(alpha, seed=0).quantiles
    assert shares.mean() == pytest.approx(0.5, abs=1e-4)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-3)


def test_the_extreme_draws_are_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    for drawn, place in ((0.0, 0), (4096.0, 4095)):  # rounding may reach the limit
        monkeypatch.setattr("keras.random.uniform", lambda *_, drawn=drawn: np.float32(drawn))
        layer = Mixup(0.4, seed=0)
        layer(IMAGES, training=True)
        assert int(keras.ops.convert_to_numpy(layer.draw.value)) == place


def loss(mix: Any, **options: Any) -> WeightedBinaryCrossentropy:
    return WeightedBinaryCrossentropy((1, 2), mix=mix, **options)


def test_the_loss_by_hand() -> None:
    # Logits 0 and log 3: probabilities 1/2 and 3/4. Of the second label, 3/4 of it is present in
    # the first mixture, a quarter in the second; it counts twice of three.
    labels, logits = np.array([[1, 1], [0, 0]]), np.array([[0.0, math.log(3)]] * 2)
    present, absent = -math.log(3 / 4), -math.log(1 / 4)
    expected = [
        (math.log(2) + 2 * (share * present + (1 - share) * absent)) / 3 for share in (0.75, 0.25)
    ]
    found = np.asarray(loss(at_share(0.75).mix).call(labels, logits))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    # Smoothed by 0.2, a share s is 0.8 s + 0.1.
    expected = [
        (math.log(2) + 2 * (share * present + (1 - share) * absent)) / 3 for share in (0.7, 0.3)
    ]
    found = np.asarray(loss(at_share(0.75).mix, label_smoothing=0.2).call(labels, logits))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_balanced_pairs_have_the_loss_of_all_pairs() -> None:
    """The expected loss is that of natural sampling, for any logits of each pair."""
    labels = np.float32([[0, 0], [0, 0], [0, 0], [0, 1], [1, 1], [0, 1]])
    probability, mix = balanced_weights(labels), at_share(0.3).mix
    natural, balanced = loss(mix), loss(mix, rates=balanced_rates(labels))
    logits = np.random.default_rng(0).normal(0, 3, (6, 6, 2, 2)).astype(np.float32)
    drawn, all_pairs = 0.0, 0.0
    for i, j in product(range(6), repeat=2):
        pair = labels[[i, j]]
        weighted = float(np.mean(np.asarray(balanced.call(pair, logits[i, j]))))
        drawn += probability[i] * probability[j] * weighted
        all_pairs += float(np.mean(np.asarray(natural.call(pair, logits[i, j])))) / 36
    assert drawn == pytest.approx(all_pairs, rel=1e-5)
