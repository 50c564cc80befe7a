import inspect
import sys
from typing import Any

import keras
import numpy as np
import pytest

from trainer.networks.catalog import BACKBONES
from trainer.networks.image_layers import NORMALIZATIONS, Normalize

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.float32)


MAKERS = {
    name: getattr(keras.applications, each.maker) for name, each in BACKBONES.items() if each.maker
}
WITHIN = [
    name
    for name, maker in MAKERS.items()
    if "include_preprocessing" in inspect.signature(maker).parameters
]


@pytest.mark.parametrize("name", sorted({*MAKERS} - {*WITHIN}))
def test_equals_what_keras_does_before_the_network(name: str) -> None:
    expected = sys.modules[MAKERS[name].__module__].preprocess_input(IMAGES.copy())
    normalized = np.asarray(Normalize(BACKBONES[name].normalization)(IMAGES))
    np.testing.assert_allclose(normalized, expected, rtol=1e-4, atol=1e-4)


def make_shallow(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small network of that family: what comes before its blocks is all that matters."""
    module: Any = sys.modules[MAKERS[name].__module__]
    for each, blocks in getattr(module, "DEFAULT_BLOCKS_ARGS", {}).items():
        monkeypatch.setitem(module.DEFAULT_BLOCKS_ARGS, each, [blocks[0] | {"num_repeat": 1}])
    for config in getattr(module, "MODEL_CONFIGS", {}).values():
        monkeypatch.setitem(config, "depths", [1, 1, 1, 1])
        monkeypatch.setitem(config, "projection_dims", [4, 4, 4, 4])
    return MAKERS[name](include_top=False, weights=None, input_shape=(32, 32, 3))


@pytest.mark.parametrize("name", WITHIN)
def test_equals_what_keras_does_within_the_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_shallow(name, monkeypatch)
    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    first = [each for each in model.layers if isinstance(each, kinds)]
    if name.startswith("convnext"):
        first = model.layers[1].layers if hasattr(model.layers[1], "layers") else first
        first = [each for each in first if isinstance(each, kinds)]
    expected = IMAGES
    for layer in first:
        expected = layer(expected)
    assert first
    normalized = np.asarray(Normalize(BACKBONES[name].normalization)(IMAGES))
    np.testing.assert_allclose(normalized, np.asarray(expected), rtol=1e-4, atol=1e-4)


def test_other_numbers_of_channels_get_the_mean_constants() -> None:
    image = np.full((1, 1, 1, 2), 127.5, np.float32)
    assert not np.asarray(Normalize("tf")(image)).any()
    expected = 127.5 - np.mean(NORMALIZATIONS["caffe"].mean)
    np.testing.assert_allclose(np.asarray(Normalize("caffe")(image)), expected, rtol=1e-5)


@pytest.mark.parametrize("mode", NORMALIZATIONS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_every_slice_is_normalized_as_one_alone(mode: str, channels: int) -> None:
    slices = np.random.default_rng(0).uniform(0, 255, (3, 2, 4, 4, channels)).astype(np.float32)
    alone = [np.asarray(Normalize(mode)(each)) for each in slices]
    layer, together = Normalize(mode, slices=3), np.concatenate(slices, axis=-1)
    np.testing.assert_array_equal(np.asarray(layer(together)), np.concatenate(alone, axis=-1))


@pytest.mark.parametrize("mode", NORMALIZATIONS)
def test_a_saved_layer_is_the_same(mode: str) -> None:
    layer = Normalize.from_config(Normalize(mode, 5, name="normalize").get_config())
    assert (layer.mode, layer.slices, layer.name) == (mode, 5, "normalize")
    before = {k: v for k, v in layer.get_config().items() if k != "slices"}  # of a run of before
    assert Normalize.from_config(before).slices == 1
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
