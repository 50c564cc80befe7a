from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from headct.errors import UsageError
from trainer.networks.backbones import adapt_kernel, add_slices, build_backbone, make_network
from trainer.networks.image_layers import Normalize
from trainer.networks.saved_models import load_classifier

GREY = np.random.default_rng(0).uniform(0, 1, (2, 32, 32, 1)).astype(np.float32)


def make_trained(channels: int) -> Any:
    """A small network with weights that let a gray image through."""
    network = make_network("smallresnet", 32, channels)
    random = np.random.default_rng(channels)
    network.set_weights([np.abs(random.normal(0.05, 0.02, w.shape)) for w in network.get_weights()])
    return network


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A small network of three channels, and the file of its weights."""
    network = make_trained(3)
    path = str(tmp_path_factory.mktemp("weights") / "small.weights.h5")
    network.save_weights(path)
    return network, path


def test_a_kernel_for_two_channels_by_hand() -> None:
    kernel = np.float32([[[[1.0], [2.0], [6.0]]]])
    assert adapt_kernel(kernel, (1, 1, 2, 1)).tolist() == [[[[4.5], [4.5]]]]
    assert adapt_kernel(kernel, (1, 1, 3, 1)) is kernel
    one = np.float32([[[[8.0]]]])
    assert adapt_kernel(one, (1, 1, 4, 1)).tolist() == [[[[2.0], [2.0], [2.0], [2.0]]]]


def test_a_files_weights_are_loaded(trained: tuple[Any, str]) -> None:
    network, path = trained
    loaded = build_backbone("smallresnet", 32, 3, path)
    for one, other in zip(network.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("source", range(1, 6))
@pytest.mark.parametrize("kind", ["weights.h5", "keras"])
def test_any_number_of_channels_sees_a_gray_image_as_any_other_did(
    source: int, kind: str, tmp_path: Path
) -> None:
    network = make_trained(source)
    path = str(tmp_path / f"file.{kind}")
    if kind == "keras":
        inputs = keras.layers.Input((32, 32, source))
        core = keras.Model(inputs, network(inputs), name="core")
        keras.Sequential([keras.layers.Input((32, 32, source)), core]).save(path)
    else:
        network.save_weights(path)
    expected = np.asarray(network(np.repeat(GREY, source, axis=-1)))
    assert np.ptp(expected) > 0
    for channels in range(1, 6):
        adapted = build_backbone("smallresnet", 32, channels, path)
        features = np.asarray(adapted(np.repeat(GREY, channels, axis=-1)))
        np.testing.assert_allclose(features, expected, rtol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_neighbors_change_nothing_before_training(
    channels: int, trained: tuple[Any, str], tmp_path: Path
) -> None:
    """Weights of one slice, then those of a run with neighbors, which may get more of them."""
    images = np.random.default_rng(1).uniform(0, 1, (2, 32, 32, 5 * channels)).astype(np.float32)
    middle = images[..., 2 * channels : 3 * channels]
    expected = np.asarray(build_backbone("smallresnet", 32, channels, trained[1])(middle))
    three = build_backbone("smallresnet", 32, 3 * channels, trained[1], slices=3)
    found = np.asarray(three(images[..., channels : 4 * channels]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    stem = three.get_layer("stem")
    stem.set_weights([stem.get_weights()[0] + 0.01])  # after training
    path = str(tmp_path / "run.keras")
    inputs = keras.layers.Input((32, 32, 3 * channels))
    core = keras.Model(inputs, three(Normalize("tf", 3)(inputs)), name="core")
    keras.Sequential([keras.layers.Input((32, 32, 3 * channels)), core]).save(path)
    expected = np.asarray(three(images[..., channels : 4 * channels]))
    found = np.asarray(build_backbone("smallresnet", 32, 5 * channels, path, slices=5)(images))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    again = build_backbone("smallresnet", 32, 3 * channels, path, slices=3)
    np.testing.assert_array_equal(again.get_weights()[0], three.get_weights()[0])
    with pytest.raises(UsageError, match="its network sees 3 slices at once, this one 1"):
        build_backbone("smallresnet", 32, channels, path)


def test_a_kernel_for_slices_by_hand() -> None:
    rgb = np.float32([[[[1.0], [2.0], [6.0]]]])
    assert add_slices(rgb, (1, 1, 3, 1), 1, 1).ravel().tolist() == [1, 2, 6]
    assert add_slices(rgb, (1, 1, 3, 1), 1, 3).ravel().tolist() == [0, 9, 0]
    assert add_slices(rgb, (1, 1, 6, 1), 1, 3).ravel().tolist() == [0, 0, 4.5, 4.5, 0, 0]
    assert add_slices(rgb, (1, 1, 5, 1), 3, 5).ravel().tolist() == [0, 1, 2, 6, 0]


@pytest.mark.parametrize("name", ["vgg16", "efficientnetv2b0", "convnexttiny"])
def test_networks_of_keras_take_any_number_of_channels(name: str) -> None:
    network = build_backbone(name, 32, 2, "none")
    assert network.name == "backbone"
    assert network.input_shape == (None, 32, 32, 2)
    assert len(network.output_shape) == 4


def test_weights_of_another_architecture(trained: tuple[Any, str]) -> None:
    with pytest.raises(UsageError, match="no weights of vgg16") as raised:
        build_backbone("vgg16", 32, 3, trained[1])
    assert "\n" not in str(raised.value)


def test_a_runs_backbone_is_taken_over(finished: Path) -> None:
    path = finished / "model.keras"
    network = build_backbone("smallresnet", 64, 3, str(path))
    expected = load_classifier(path).get_layer("core").get_layer("backbone")
    for one, other in zip(network.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UsageError, match="no weights of vgg16"):
        build_backbone("vgg16", 32, 3, str(path))


def test_a_file_that_holds_no_weights(tmp_path: Path) -> None:
    for name in ("notes.weights.h5", "notes.txt", "notes.keras"):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(UsageError, match="no weights of smallresnet"):
            build_backbone("smallresnet", 32, 3, str(tmp_path / name))


def test_imagenet_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    unreachable = "http://127.0.0.1:9/"
    monkeypatch.setattr("keras.src.applications.vgg16.WEIGHTS_PATH_NO_TOP", unreachable)
    with pytest.raises(UsageError, match=r"imagenet: no weights of vgg16 \(URL fetch failure"):
        build_backbone("vgg16", 32, 3, "imagenet")
