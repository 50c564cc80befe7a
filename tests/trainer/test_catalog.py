from pathlib import Path

import keras
import pytest

from headct.errors import UsageError
from trainer.networks.catalog import BACKBONES, find_backbone
from trainer.networks.image_layers import NORMALIZATIONS
from trainer.networks.resnext import ARCHITECTURES


def test_keras_has_every_network() -> None:
    makers = [each.maker for each in BACKBONES.values() if each.maker]
    assert all(hasattr(keras.applications, maker) for maker in makers)


def test_names_are_kerass_in_lower_case() -> None:
    makers = {name: each.maker for name, each in BACKBONES.items() if each.maker}
    assert makers
    assert all(name == maker.lower() for name, maker in makers.items())
    assert BACKBONES.keys() - makers == {"smallresnet", *ARCHITECTURES}


def test_the_smallest_images_are_taken() -> None:
    assert find_backbone("resnet50", 32, "none").maker == "ResNet50"
    assert find_backbone("smallresnet", 16, "none").normalization in NORMALIZATIONS
    with pytest.raises(UsageError, match="--image_size 15: smallresnet takes 16 or more"):
        find_backbone("smallresnet", 15, "none")


def test_bad_names_sizes_and_weights() -> None:
    with pytest.raises(UsageError) as raised:
        find_backbone("resnet5", 224, "none")
    assert str(raised.value).startswith("--model resnet5: want one of resnet50, resnet101, ")
    assert str(raised.value).endswith(", smallresnet (did you mean resnet50?)")
    with pytest.raises(UsageError, match="--image_size 31: resnet50 takes 32 or more"):
        find_backbone("resnet50", 31, "none")
    with pytest.raises(UsageError, match="--weights imagenet: smallresnet has none"):
        find_backbone("smallresnet", 32, "imagenet")
    with pytest.raises(UsageError, match=r"--weights lost\.h5: no such file"):
        find_backbone("resnet50", 32, "lost.h5")


def test_good_weights(tmp_path: Path) -> None:
    (tmp_path / "w.weights.h5").touch()
    for weights in ("none", "imagenet", str(tmp_path / "w.weights.h5")):
        find_backbone("resnet50", 32, weights)
