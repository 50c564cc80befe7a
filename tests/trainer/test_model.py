from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from headct.errors import UsageError
from headct.manifest import ImageSpec
from trainer.networks.model import Classifier, build_classifier
from trainer.networks.saved_models import load_classifier
from trainer.options import TrainOptions

PREVALENCE = (0.1, 0.0, 0.5)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)


def make(policy: str = "float32", image: ImageSpec | None = None, **changes: Any) -> Classifier:
    given = {"model": "smallresnet", "weights": "none", "image_size": 32} | changes
    options = TrainOptions(shards=Path("s"), run=Path("r"), **given)
    keras.utils.set_random_seed(0)
    return build_classifier(options, image or ImageSpec(48, 48, 3, "uint8", 0), PREVALENCE, policy)


def make_trained(*arguments: Any, **changes: Any) -> Classifier:
    """One whose answers depend on the image."""
    classifier = make(*arguments, **changes)
    kernel = classifier.core.get_layer("head").kernel
    kernel.assign(np.random.default_rng(0).normal(size=kernel.shape) * 0.1)
    return classifier


def test_stored_images_in_float32_logits_out() -> None:
    model = make().model
    assert model.input_shape == (None, 48, 48, 3)
    assert model.inputs[0].dtype == "uint8"
    logits = np.asarray(model(IMAGES))
    assert logits.shape == (2, 3)
    assert logits.dtype == np.float32


def test_half_precision_ends_in_float32_and_leaves_the_policy() -> None:
    classifier = make_trained(policy="mixed_bfloat16")
    assert classifier.model.output.dtype == "float32"
    assert classifier.backbone.output.dtype == "bfloat16"
    assert all(each.dtype == "float32" for each in classifier.model.weights)
    assert keras.config.dtype_policy().name == "float32"
    full = make_trained()
    full.model.set_weights(classifier.model.get_weights())
    np.testing.assert_allclose(
        np.asarray(classifier.model(IMAGES)), np.asarray(full.model(IMAGES)), atol=0.1
    )


def test_untrained_it_predicts_the_prevalence() -> None:
    for policy in ("float32", "mixed_bfloat16"):
        logits = np.asarray(make(policy).model(IMAGES))
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), [[0.1, 1e-4, 0.5]] * 2, rtol=1e-5)


def test_resized_images_take_the_same_layers() -> None:
    classifier = make_trained()
    resized = np.asarray(classifier.model.get_layer("resize")(IMAGES))
    np.testing.assert_allclose(
        np.asarray(classifier.core(resized)), np.asarray(classifier.model(IMAGES)), atol=1e-5
    )


def test_the_seed_makes_the_weights() -> None:
    for one, other in zip(make().model.get_weights(), make().model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_hounsfield_images_are_windowed_within() -> None:
    image = ImageSpec(32, 32, 1, "uint16", -1024)
    classifier = make_trained(image=image, windows="brain,stroke:32:8")
    assert classifier.backbone.input_shape == (None, 32, 32, 2)
    dark = np.zeros((1, 32, 32, 1), np.uint16)
    np.testing.assert_allclose(
        np.asarray(classifier.model(dark)), np.asarray(classifier.model(dark + 1000)), atol=1e-5
    )
    assert not np.allclose(
        np.asarray(classifier.model(dark)), np.asarray(classifier.model(dark + 1056))
    )


def test_a_saved_model_gives_the_same_logits(tmp_path: Path) -> None:
    model = make_trained().model
    model.save(tmp_path / "model.keras")
    loaded = load_classifier(tmp_path / "model.keras")
    np.testing.assert_allclose(np.asarray(loaded(IMAGES)), np.asarray(model(IMAGES)), atol=1e-6)


def test_no_model_and_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model"):
        load_classifier(tmp_path / "model.keras")
    (tmp_path / "model.keras").write_text("nothing")
    with pytest.raises(UsageError, match="no saved model"):
        load_classifier(tmp_path / "model.keras")


def test_a_model_with_code_in_it_is_not_loaded(tmp_path: Path) -> None:
    inputs = keras.layers.Input((4,))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs))
    model.save(tmp_path / "model.keras")
    with pytest.raises(UsageError, match="no saved model") as raised:
        load_classifier(tmp_path / "model.keras")
    assert "\n" not in str(raised.value)
