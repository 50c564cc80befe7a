import keras
import numpy as np

from trainer.networks.augment import Augment, affine_grid, sample_bilinear

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
