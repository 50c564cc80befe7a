from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headct.manifest import ImageSpec
from trainer.evaluation.export import probability_model
from trainer.evaluation.metrics import probabilities
from trainer.networks.model import build_classifier
from trainer.options import TrainOptions
from trainer.runs.evaluation_setup import Calibration


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (ImageSpec(40, 48, 3, "uint8", 0), {"model": "vgg16"}),  # blue first, resized
        (ImageSpec(32, 32, 3, "uint8", 0), {"model": "smallresnet", "mixup": 0.2}),
        pytest.param(
            ImageSpec(48, 32, 2, "uint8", 0), {"model": "densenet121"}, marks=pytest.mark.full
        ),
        (
            ImageSpec(48, 48, 1, "uint16", -1024),
            {"model": "smallresnet", "windows": "brain,bone", "neighbors": 1},
        ),
        (
            ImageSpec(48, 48, 1, "uint16", -1024),
            {"model": "smallresnet", "windows": "brain,bone", "crop_head": True},
        ),
    ],
)
def test_keras_own_layers_do_the_same(image: ImageSpec, options: dict[str, Any]) -> None:
    given = {"weights": "none", "image_size": 32, "window_jitter": 0.1} | options
    classifier = build_classifier(
        TrainOptions(shards=Path("s"), run=Path("r"), **given), image, (0.1, 0.5), "float32"
    ).model
    random = np.random.default_rng(0)
    kernel = classifier.get_layer("core").get_layer("head").kernel
    kernel.assign(random.normal(size=kernel.shape))
    shape = classifier.input_shape[1:]
    model = probability_model(classifier, Calibration.none(2))
    highest = 255 if image.dtype == "uint8" else 1200
    images = random.integers(0, highest, (3, *shape), image.dtype)
    expected = probabilities(np.asarray(classifier(images)))
    np.testing.assert_allclose(np.asarray(model(images)), expected, atol=1e-3)
    assert np.ptp(expected, axis=0).min() > 0
    modules = {type(each).__module__.split(".")[0] for each in model._flatten_layers()}
    assert modules == {"keras"}
