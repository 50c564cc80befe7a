import keras
import numpy as np
import pytest
from keras.src.applications import convnext, efficientnet_v2

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
def test_equals_what_keras_does_within_the_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only what is before the first blocks is looked at.
    for network, blocks in efficientnet_v2.DEFAULT_BLOCKS_ARGS.items():
        monkeypatch.setitem(efficientnet_v2.DEFAULT_BLOCKS_ARGS, network, blocks[:1])
    monkeypatch.setitem(convnext.MODEL_CONFIGS["tiny"], "depths", [1, 1, 1, 1])
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
