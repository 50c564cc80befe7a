from math import cos, exp, radians, sin
from typing import Any

import keras
import numpy as np
import pytest

from trainer.networks.image_layers import Augment, affine_grid, sample_bilinear

IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 2)).astype(np.float32)


def warp(images: np.ndarray, **changes: list[float]) -> np.ndarray:
    count = len(images)
    still = {"angle": [0.0], "scale": [1.0], "shift": [[0.0, 0.0]], "flip": [1.0]} | changes
    arrays = {name: np.repeat(np.float32(value), count, 0) for name, value in still.items()}
    tensors = {name: keras.ops.convert_to_tensor(each) for name, each in arrays.items()}
    grid = affine_grid(**tensors, size=images.shape[1])
    return np.asarray(sample_bilinear(keras.ops.convert_to_tensor(images), *grid))


def test_standing_still_changes_nothing() -> None:
    np.testing.assert_allclose(warp(IMAGES), IMAGES, rtol=1e-5)


def test_a_flip_mirrors_left_and_right() -> None:
    np.testing.assert_allclose(warp(IMAGES, flip=[-1.0]), IMAGES[:, :, ::-1], rtol=1e-5)


def test_a_right_angle_turns_the_image() -> None:
    turned = warp(IMAGES, angle=[np.pi / 2])
    np.testing.assert_allclose(turned, np.rot90(IMAGES, -1, axes=(1, 2)), rtol=1e-3, atol=1e-2)


def test_a_shift_of_a_quarter_moves_two_pixels_and_leaves_black() -> None:
    moved = warp(IMAGES, shift=[[0.25, 0.0]])
    np.testing.assert_allclose(moved[:, :6], IMAGES[:, 2:], rtol=1e-5)
    assert not moved[:, 6:].any()


def test_half_a_pixel_is_the_mean_of_two() -> None:
    moved = warp(IMAGES, shift=[[0.0, 0.5 / 8]])
    expected = (IMAGES[:, :, :-1] + IMAGES[:, :, 1:]) / 2
    np.testing.assert_allclose(moved[:, :, :-1], expected, rtol=1e-5)


def test_twice_the_scale_shows_the_middle() -> None:
    ramp = np.tile(np.arange(8, dtype=np.float32)[None, :, None, None], (1, 1, 8, 1))
    larger = warp(ramp, scale=[2.0])
    np.testing.assert_allclose(larger[0, :, 4, 0], np.arange(8) / 2 + 1.75, rtol=1e-5)


@pytest.mark.parametrize("shift", [[0.25, 0.0], [-0.25, 0.0], [0.0, 0.25], [0.0, -0.25]])
def test_half_a_pixel_beyond_an_edge_is_half_as_bright(shift: list[float]) -> None:
    # Of two pixels a side, a quarter is half a pixel.
    white = np.full((1, 2, 2, 1), 100, np.float32)
    expected = np.full((2, 2), 100)
    row = 1 if sum(shift) > 0 else 0
    expected[(row, slice(None)) if shift[0] else (slice(None), row)] = 50
    np.testing.assert_allclose(warp(white, shift=[shift])[0, :, :, 0], expected, rtol=1e-5)


def draw_extremes(monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    """Every random number is the largest that may come, or the smallest."""

    def draw(shape: Any, low: float, high: float, dtype: str, seed: Any) -> Any:
        assert low == -high
        return keras.ops.full(shape, sign * high, dtype)

    monkeypatch.setattr("keras.random.uniform", draw)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_reach_of_each_change_by_hand(
    monkeypatch: pytest.MonkeyPatch, sign: int, strength: float
) -> None:
    draw_extremes(monkeypatch, sign)
    # A channel that shows where in the source a pixel comes from by row, and one by column.
    size, middle = 41, 20
    place = np.arange(size, dtype=np.float32) - middle
    ramps = np.stack(np.broadcast_arrays(place[:, None], place[None, :]), axis=-1) * 2 + 127.5
    found = np.asarray(Augment(strength, seed=0)(ramps[None], training=True))[0]
    reach = sign * strength
    source = ((found - 127.5 - 0.05 * 255 * reach) / exp(0.1 * reach)) / 2
    # 15 degrees, a scale of e^0.1, a shift of a twentieth; draws below 0 mirror.
    along, across = cos(radians(15) * reach), sin(radians(15) * reach)
    zoom, shift = exp(0.1 * reach), 0.05 * size * reach
    for down, right in ((0, 0), (8, 0), (0, 8), (-6, 3)):
        expected = (
            (along * down - across * right) / zoom + shift,
            sign * (across * down + along * right) / zoom + shift,
        )
        np.testing.assert_allclose(source[middle + down, middle + right], expected, atol=1e-3)


@pytest.mark.parametrize(("sign", "level"), [(1, 255.0), (-1, 0.0)])
def test_levels_end_at_black_and_white(
    monkeypatch: pytest.MonkeyPatch, sign: int, level: float
) -> None:
    draw_extremes(monkeypatch, sign)
    image = np.full((1, 9, 9, 3), level, np.float32)
    found = np.asarray(Augment(1.0, seed=0)(image, training=True))
    assert found[0, 4, 4].tolist() == [level] * 3


def test_each_image_is_changed_in_its_own_way_and_its_channels_alike() -> None:
    images = np.repeat(IMAGES[:1, :, :, :1], 32, axis=0).repeat(3, axis=-1)
    found = np.asarray(Augment(1.0, seed=3)(images, training=True))
    assert len({each.tobytes() for each in found}) == 32
    np.testing.assert_array_equal(found[..., 0], found[..., 1])
    np.testing.assert_array_equal(found[..., 0], found[..., 2])


def test_about_half_of_the_images_are_mirrored() -> None:
    # White is the right third.
    images = np.zeros((64, 9, 9, 1), np.float32)
    images[:, :, 6:] = 255
    found = np.asarray(Augment(0.2, seed=3)(images, training=True))
    mirrored = found[:, 4, 1, 0] > found[:, 4, 7, 0]
    assert 20 <= mirrored.sum() <= 44


def test_a_saved_layer_changes_images_alike() -> None:
    layer = Augment(0.7, seed=5, name="augment")
    again = Augment.from_config(layer.get_config())
    assert again.name == "augment"
    assert np.array_equal(*(np.asarray(each(IMAGES, training=True)) for each in (layer, again)))
    assert layer.compute_output_shape((None, 8, 8, 2)) == (None, 8, 8, 2)


def test_only_training_images_change_and_the_seed_repeats_them() -> None:
    first, second = Augment(1.0, seed=3), Augment(1.0, seed=3)
    assert np.array_equal(np.asarray(first(IMAGES, training=False)), IMAGES)
    one = np.asarray(first(IMAGES, training=True))
    assert not np.allclose(one, IMAGES)
    assert np.array_equal(one, np.asarray(second(IMAGES, training=True)))
    assert not np.array_equal(one, np.asarray(first(IMAGES, training=True)))
    assert one.min() >= 0
    assert one.max() <= 255


def test_strength_zero_is_off() -> None:
    assert np.array_equal(np.asarray(Augment(0.0, seed=3)(IMAGES, training=True)), IMAGES)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="TensorFlow uses one device")
def test_devices_do_not_exchange_their_images() -> None:
    import jax

    count, size = len(jax.devices()), 32
    if count == 1:
        pytest.skip("there is one device")
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (2 * count, size, size, 3)).astype(np.float32)
    rows, columns = random.uniform(-4, size + 4, (2, 2 * count, size, size)).astype(np.float32)
    batches = jax.NamedSharding(jax.make_mesh((count,), ("batch",)), jax.P("batch"))
    shared = [jax.device_put(each, batches) for each in (images, rows, columns)]
    compiled = jax.jit(sample_bilinear).lower(*shared).compile()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in compiled.as_text(), word
    alone = jax.jit(sample_bilinear)(images, rows, columns)
    np.testing.assert_array_equal(np.asarray(compiled(*shared)), np.asarray(alone))
