from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.networks.head_crop import CropHead
from trainer.networks.image_layers import Resize, resize_matrix


def test_halving_four_pixels_by_hand() -> None:
    # Centres at 0.5 and 2.5, triangles of reach 2: weights 0.75, 0.75, 0.25 over their sum.
    expected = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    np.testing.assert_allclose(resize_matrix(4, 2), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("before", "after"),
    [((16, 16), 16), ((64, 64), 24), ((20, 31), 48), ((16, 9), 16), ((9, 16), 16)],
)
def test_equals_tensorflows_antialiased_resize(before: tuple[int, int], after: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, *before, 3), dtype=np.uint8)
    expected = tf.image.resize(images, (after, after), antialias=True).numpy()
    resized = np.asarray(Resize(after)(images))
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=1e-3)


def test_enlarging_by_hand() -> None:
    # Centres at -0.25, 0.25, 0.75 and 1.25, triangles of reach 1; the outer ones see one pixel.
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(resize_matrix(2, 4), expected, atol=1e-7)


def test_an_image_of_that_size_stays() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 5, 5, 2), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Resize(5)(image)), image)


def test_a_saved_layer_is_the_same() -> None:
    layer = Resize.from_config(Resize(7, name="resize").get_config())
    assert (layer.size, layer.name) == (7, "resize")
    assert layer.compute_output_shape((None, 20, 31, 3)) == (None, 7, 7, 3)


def round_to_tf32(values: Any) -> Any:
    """Values as NVIDIA's tensor cores take them: 10 bits of a float32's mantissa, rounded."""
    bits = np.asarray(values, np.float32).view(np.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(np.float32)


@pytest.mark.parametrize("layer", [Resize, CropHead])
def test_tensor_cores_do_not_blur_the_brain_window(
    layer: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored values of 0 to 80 HU, of which one is 3.2 gray levels of the window."""
    images = np.random.default_rng(0).integers(1024, 1105, (2, 96, 80, 1), dtype=np.uint16)
    arguments = {"threshold": 524.0} if layer is CropHead else {}
    exact = np.asarray(layer(56, **arguments)(images))
    products = keras.ops.einsum, keras.ops.matmul
    for name, product in zip(("einsum", "matmul"), products, strict=True):

        def rounded(*factors: Any, product: Any = product) -> Any:
            return product(
                *(each if isinstance(each, str) else round_to_tf32(each) for each in factors)
            )

        monkeypatch.setattr(keras.ops, name, rounded)
    errors = [
        np.abs(np.asarray(layer(56, middle=middle, **arguments)(images)) - exact).max() * 255 / 80
        for middle in (0.0, 1064.0)
    ]
    assert errors[0] > 1
    assert errors[1] < 0.1
    outside = np.asarray(CropHead(8, 524.0, 1064.0)(images[:, :, :24]))
    if layer is CropHead:
        np.testing.assert_allclose(outside[:, :, 0], 0, atol=1e-3)
