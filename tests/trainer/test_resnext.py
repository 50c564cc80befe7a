"""ResNeXt and SE-ResNeXt against timm's features, with the same weights: see timm_reference.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from headct.manifest import ImageSpec
from tests.trainer.timm_reference import KINDS, SIZE, SMALL, make_images, make_tensor, project
from trainer.evaluation.export import answer, probability_model, write_format
from trainer.networks import backbones
from trainer.networks.backbones import build_backbone
from trainer.networks.model import build_classifier
from trainer.networks.resnext import (
    ARCHITECTURES,
    Architecture,
    build_resnext,
    grouped_convolution,
    load_state_dict,
    read_state_dict,
)
from trainer.networks.saved_models import in_float32
from trainer.options import TrainOptions
from trainer.runs.evaluation_setup import Calibration
from trainer.training.training_model import copy_values

# Of `python tests/trainer/timm_reference.py`
# timm 1.0.31
FEATURES = {
    "4 False": [-2.9412, 3.641844, 2.321154, 2.833012, -1.441208, 0.562958],
    "4 True": [-2.041853, 2.531108, 0.987096, 3.684022, -2.261592, -0.386144],
    "8 False": [-2.854886, 0.41216, -0.744499, 2.980274, -2.462147, -1.804876],
    "resnext50_32x4d": [-16.480793, 8.014585, -2.353271, 2.963817, -4.987064, -5.174953],
    "resnext101_32x4d": [-80.597168, 11.823882, 26.616344, 2.699205, -44.993168, -14.060387],
    "resnext101_32x8d": [-128.288756, 42.900534, -60.869232, 49.16579, 15.903515, 111.816179],
    "seresnext50_32x4d": [-3.665314, 3.709428, 0.2007, 4.003302, -2.061086, -0.684877],
    "seresnext101_32x4d": [-6.874755, 8.09886, 3.260284, 5.517115, 2.363847, -1.581359],
}
SMALL_NAMES = [f"{width} {squeeze}" for width, squeeze in KINDS]


def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def list_tensors(architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes of timm's state dict."""
    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    channels = 64
    for stage, depth in enumerate(architecture.depths):
        width, out = 32 * architecture.group_width * 2**stage, 256 * 2**stage
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            yield f"{name}.conv1.weight", (width, channels, 1, 1)
            yield from norm(f"{name}.bn1", width)
            yield f"{name}.conv2.weight", (width, width // 32, 3, 3)
            yield from norm(f"{name}.bn2", width)
            yield f"{name}.conv3.weight", (out, width, 1, 1)
            yield from norm(f"{name}.bn3", out)
            if architecture.squeeze:
                for layer, ends in (("fc1", (out // 16, out)), ("fc2", (out, out // 16))):
                    yield f"{name}.se.{layer}.weight", (*ends, 1, 1)
                    yield f"{name}.se.{layer}.bias", ends[:1]
            if block == 0:
                yield f"{name}.downsample.0.weight", (out, channels, 1, 1)
                yield from norm(f"{name}.downsample.1", out)
            channels = out
    yield "fc.weight", (1000, channels)
    yield "fc.bias", (1000,)


def make_tensors(architecture: Architecture) -> dict[str, Any]:
    return {name: make_tensor(name, shape) for name, shape in list_tensors(architecture)}


def write_state_dict(path: Path, architecture: Architecture) -> str:
    save_file(make_tensors(architecture), path)
    return str(path)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Architecture]:
    """Networks of five blocks, by the names in `FEATURES`, and one of two."""
    kinds = zip(SMALL_NAMES, KINDS, strict=True)
    found = {name: Architecture(SMALL, *kind) for name, kind in kinds}
    found["seresnext50_32x4d"] = Architecture((1, 1), squeeze=True)
    monkeypatch.setattr(backbones, "ARCHITECTURES", found)
    monkeypatch.setattr(backbones, "BACKBONES", dict.fromkeys(found))
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "4 True" else pytest.mark.full) for n in SMALL_NAMES]
)
def test_small_networks_have_timms_features(
    name: str, small: dict[str, Architecture], tmp_path: Path
) -> None:
    path = write_state_dict(tmp_path / "timm.safetensors", small[name])
    network = build_backbone(name, SIZE, 3, path)
    features = network.predict_on_batch(make_images())
    assert features.shape == (2, 3, 3, 2048)
    np.testing.assert_allclose(project(features), FEATURES[name], rtol=1e-4, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whole_networks_have_timms_features(name: str, tmp_path: Path) -> None:
    path = write_state_dict(tmp_path / "timm.safetensors", ARCHITECTURES[name])
    features = build_backbone(name, SIZE, 3, path).predict_on_batch(make_images())
    np.testing.assert_allclose(project(features), FEATURES[name], rtol=1e-4, atol=1e-4)


def test_state_dicts_of_other_networks_are_refused(tmp_path: Path) -> None:
    architecture = Architecture((1,), squeeze=True)
    network = build_resnext(architecture, (32, 32, 3))
    tensors = make_tensors(architecture)
    load_state_dict(network, tensors)
    for changes, message in (
        ({"layer1.0.se.fc1.bias": None}, "no tensor layer1.0.se.fc1.bias; want a state dict of"),
        ({"layer9.0.conv1.weight": np.zeros(1)}, "layer9.0.conv1.weight is a tensor of another"),
        ({"bn1.bias": np.zeros(3)}, "shape"),
        ({"layer1.0.conv2.weight": np.zeros((8, 4, 3, 3))}, "shape"),
    ):
        changed = {k: v for k, v in (tensors | changes).items() if v is not None}
        with pytest.raises(ValueError, match=message):
            load_state_dict(network, changed)
    save_file({"layer0.conv1.weight": np.zeros(1)}, tmp_path / "old.safetensors")
    (tmp_path / "resnext.pth").write_bytes(b"PK pickled")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    for name, message in (
        ("old.safetensors", "no tensor conv1.weight; want a state dict of torchvision or timm"),
        ("resnext.pth", r"want .safetensors; of a pickle: safetensors.torch.save_file\("),
        ("cut.safetensors", "header"),
    ):
        with pytest.raises(Exception, match=message):
            read_state_dict(str(tmp_path / name))


@pytest.mark.parametrize(("stride", "size"), [(1, (5, 6)), (2, (5, 6))])
def test_a_grouped_convolution_by_loops(stride: int, size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    images = random.normal(size=(2, *size, 64)).astype(np.float32)
    inputs = keras.layers.Input(images.shape[1:])
    model = keras.Model(inputs, grouped_convolution(inputs, stride, "conv"))
    kernel = random.normal(size=model.weights[0].shape)
    model.set_weights([kernel])
    found = model.predict_on_batch(images)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros(found.shape)
    assert found.shape == (2, -(-size[0] // stride), -(-size[1] // stride), 64)
    for row, column, group in np.ndindex(*found.shape[1:3], 32):
        channels = slice(2 * group, 2 * group + 2)
        seen = padded[:, stride * row :, stride * column :, channels][:, :3, :3]
        weights = kernel[group].reshape(3, 3, 2, 2)
        expected[:, row, column, channels] = np.einsum("byxi,yxio->bo", seen, weights)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["keras", pytest.param("onnx", marks=pytest.mark.full)])
def test_it_trains_and_is_exported_in_keras_own_layers(
    name: str, small: dict[str, Architecture], tmp_path: Path
) -> None:
    options = {"model": "seresnext50_32x4d", "weights": "none", "image_size": 32}
    given = TrainOptions(shards="s", run=Path("r"), **options)
    image = ImageSpec(32, 32, 2, "uint8", 0)
    model = build_classifier(given, image, (0.1, 0.5), "mixed_bfloat16").model
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 2), "uint8")
    before = copy_values(model.trainable_weights)
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    for _ in range(2):  # the head's kernel is zero before the first step
        model.train_on_batch(images, np.float32([[0, 1], [1, 1], [0, 0], [1, 0]]))
    for weight, value in zip(copy_values(model.trainable_weights), before, strict=True):
        assert not np.array_equal(weight, value)
    exact = in_float32(model)
    path = tmp_path / f"model.{name}"
    write_format(probability_model(exact, Calibration.none(2)), name, path)
    expected = 1 / (1 + np.exp(-np.asarray(exact.predict_on_batch(images))))
    np.testing.assert_allclose(answer(name, path, images), expected, atol=1e-4)
