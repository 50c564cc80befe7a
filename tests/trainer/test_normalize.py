import keras
import numpy as np
import pytest

from trainer.networks.catalog import BACKBONES
from trainer.networks.normalize import NORMALIZATIONS, Normalize

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("mode", "family"),
    [("caffe", "resnet50"), ("tf", "resnet_v2"), ("caffe", "vgg16"), ("torch", "densenet")],
)
def test_equals_what_keras_does_before_the_network(mode: str, family: str) -> None:
    expected = getattr(keras.applications, family).preprocess_input(IMAGES.copy())
    np.testing.assert_allclose(np.asarray(Normalize(mode)(IMAGES)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["efficientnetv2b0", "efficientnetv2s", "convnexttiny"])
def test_equals_what_keras_does_within_the_network(name: str) -> None:
    backbone = BACKBONES[name]
    make = getattr(keras.applications, backbone.maker)
    model = make(include_top=False, weights=None, input_shape=(32, 32, 3))
    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    first = [each for each in model.layers if isinstance(each, kinds)]
    if name == "convnexttiny":
        first = model.layers[1].layers if hasattr(model.layers[1], "layers") else first
        first = [each for each in first if isinstance(each, kinds)]
    expected = IMAGES
    for layer in first:
        expected = layer(expected)
    assert first
    normalized = np.asarray(Normalize(backbone.normalization)(IMAGES))
    np.testing.assert_allclose(normalized, np.asarray(expected), rtol=1e-4, atol=1e-4)


def test_other_numbers_of_channels_get_the_mean_constants() -> None:
    image = np.full((1, 1, 1, 2), 127.5, np.float32)
    assert not np.asarray(Normalize("tf")(image)).any()
    expected = 127.5 - np.mean(NORMALIZATIONS["caffe"].mean)
    np.testing.assert_allclose(np.asarray(Normalize("caffe")(image)), expected, rtol=1e-5)


@pytest.mark.parametrize("mode", NORMALIZATIONS)
def test_a_saved_layer_is_the_same(mode: str) -> None:
    layer = Normalize.from_config(Normalize(mode, name="normalize").get_config())
    assert (layer.mode, layer.name) == (mode, "normalize")
    assert layer.compute_output_shape((None, 4, 5, 3)) == (None, 4, 5, 3)


@pytest.mark.parametrize(
    ("mode", "channels", "order"),
    [
        ("caffe", 3, [2, 1, 0]),
        ("caffe", 4, [0, 1, 2, 3]),
        ("caffe", 1, [0]),
        ("torch", 3, [0, 1, 2]),
    ],
)
def test_blue_comes_first_where_a_network_wants_it(
    mode: str, channels: int, order: list[int]
) -> None:
    assert Normalize(mode).constants(channels)[2].tolist() == order
    # A channel is brighter than the one before; the constants differ by less.
    image = np.float32([[[range(0, 50 * channels, 50)]]])
    found = np.asarray(Normalize(mode)(image))[0, 0, 0]
    assert np.argsort(found).tolist() == order
