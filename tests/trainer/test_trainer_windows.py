import math
from typing import Any

import keras
import numpy as np
import pytest

from trainer.networks.image_layers import ApplyWindows


def stored(*hounsfield: float) -> np.ndarray:
    """Stored values, [1, N, 1, 1], of an offset of -1024."""
    return (np.array(hounsfield) + 1024).astype(np.uint16).reshape(1, -1, 1, 1)


def layer(jitter: float = 0.0) -> ApplyWindows:
    return ApplyWindows([40, 600], [80, 2800], hu_offset=-1024, jitter=jitter, seed=0)


def test_linear_exact_by_hand() -> None:
    # Brain 40/80: (x / 80) * 255; bone 600/2800: ((x - 600) / 2800 + 0.5) * 255.
    levels = np.asarray(layer()(stored(-1024, 0, 40, 80, 3000)))
    assert levels.shape == (1, 5, 1, 2)
    assert levels.dtype == np.float32
    np.testing.assert_allclose(levels[0, :, 0, 0], [0, 0, 127.5, 255, 255], atol=1e-3)
    np.testing.assert_allclose(levels[0, 2, 0, 1], (0.5 - 0.2) * 255, atol=1e-3)


def test_jitter_moves_windows_while_training_alone() -> None:
    jittered = layer(jitter=0.1)
    still = np.asarray(layer()(stored(30, 50)))
    assert np.array_equal(np.asarray(jittered(stored(30, 50), training=False)), still)
    moved = np.asarray(jittered(stored(30, 50), training=True))
    assert not np.allclose(moved, still)
    assert np.all(np.abs(moved - still) < 60)


@pytest.mark.parametrize("sign", [1, -1])
def test_how_far_windows_move_by_hand(monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    def draw(shape: Any, low: float, high: float, dtype: str, seed: Any) -> Any:
        assert low == -high
        return keras.ops.full(shape, sign * high, dtype)

    monkeypatch.setattr("keras.random.uniform", draw)
    # The centers by a tenth of 80 and 2800, the widths by a factor of e^0.1.
    brain, bone = 40 + 8 * sign, 600 + 280 * sign
    factor = math.exp(0.1 * sign)
    pixels = np.float32([brain, brain + 20 * factor, bone, bone + 700 * factor]) + 1024
    levels = np.asarray(layer(jitter=0.1)(pixels.reshape(1, 4, 1, 1), training=True))
    assert levels.shape == (1, 4, 1, 2)
    levels = levels[0, :, 0]
    np.testing.assert_allclose(levels[:2, 0], [127.5, 0.75 * 255], rtol=1e-4)
    np.testing.assert_allclose(levels[2:, 1], [127.5, 0.75 * 255], rtol=1e-4)


def test_each_image_and_window_moves_in_its_own_way() -> None:
    images = np.repeat(stored(*range(0, 80, 10)), 3, axis=0)
    same = ApplyWindows([40, 40], [80, 80], hu_offset=-1024, jitter=0.1, seed=0)
    levels = np.asarray(same(images, training=True))
    found = {levels[i, :, 0, j].tobytes() for i in range(3) for j in range(2)}
    assert len(found) == 6
    # All pixels of an image in the same way: equal steps in, equal steps out.
    steps = np.diff(levels[0, 3:6, 0, 0])
    assert steps[0] == pytest.approx(steps[1], rel=1e-3)


def test_a_saved_layer_is_the_same() -> None:
    first = layer(jitter=0.1)
    again = ApplyWindows.from_config(first.get_config())
    pixels = stored(0, 10, 50, 70)
    for training in (False, True):
        one, other = (np.asarray(each(pixels, training=training)) for each in (first, again))
        np.testing.assert_array_equal(one, other)
    assert first.compute_output_shape((None, 8, 9, 1)) == (None, 8, 9, 2)
