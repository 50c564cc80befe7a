import base64
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from imagecodecs import jpeg8_decode

from headct.manifest import ImageSpec, Window
from headct.reader import Shards
from trainer.evaluation.measured import Measured, read_predictions
from trainer.networks.model import build_classifier
from trainer.options import ReportOptions, TrainOptions
from trainer.report import slices
from trainer.report.slices import (
    activation_maps,
    best_hits,
    embed,
    fit,
    gray_levels,
    lack_of_map,
    picture_slices,
    sheet_maker,
    worst_mistakes,
)
from trainer.runs.evaluation_setup import prepare_report

SPEC = ImageSpec(64, 64, 3, "uint8", 0)


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Compiling takes longer than a batch."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def make_classifier(policy: str = "float32", **changes: Any) -> Any:
    """A classifier with a head of random weights."""
    given = {"model": "smallresnet", "weights": "none", "image_size": 64, **changes}
    options = TrainOptions(shards=Path("s"), run=Path("r"), **given)
    keras.utils.set_random_seed(0)
    classifier = build_classifier(options, SPEC, (0.5, 0.2), policy).model
    kernel = classifier.get_layer("core").get_layer("head").kernel
    kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    return classifier


@pytest.mark.parametrize(
    ("policy", "changes", "tolerance"),
    [
        ("float32", {}, 1e-4),
        ("mixed_bfloat16", {"crop_head": True}, 5e-2),
        ("float32", {"neighbors": 1}, 1e-4),
        *(
            pytest.param("float32", {"model": name}, 1e-3, marks=pytest.mark.full)
            for name in ("resnet50", "resnet50v2", "vgg16", "densenet121", "efficientnetv2b0")
        ),
        *(
            pytest.param("float32", {"model": name}, 1e-3, marks=pytest.mark.full)
            for name in ("convnexttiny", "resnext50_32x4d", "seresnext50_32x4d")
        ),
    ],
)
@pytest.mark.usefixtures("eagerly")
def test_the_mean_of_a_map_and_the_bias_are_the_logit(
    policy: str, changes: dict[str, Any], tolerance: float
) -> None:
    classifier = make_classifier(policy, **changes)
    images = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    images[:, :8] = 0  # a part without a head
    seen = np.concatenate([images] * 3, axis=3) if "neighbors" in changes else images
    label = np.array([0, 1, 1])
    maps = activation_maps(classifier, seen, label)
    bias = np.asarray(classifier.get_layer("core").get_layer("head").bias)[label]
    logits = np.asarray(classifier.predict_on_batch(seen))[np.arange(3), label]
    np.testing.assert_allclose(maps.mean(axis=(1, 2)) + bias, logits, atol=tolerance)
    assert maps.min() < 0 < maps.max()


@pytest.mark.usefixtures("eagerly")
def test_features_that_overflowed_have_no_map() -> None:
    classifier = make_classifier()
    head = classifier.get_layer("core").get_layer("head")
    head.kernel.assign(np.full(head.kernel.shape, np.inf))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for heat in activation_maps(classifier, images, np.array([0, 0])):
        assert "speaks for or against" in (lack_of_map(heat) or "")


def test_colors_say_what_speaks_for_and_against() -> None:
    gray = np.full((60, 60), 100, np.float32)
    heat = np.array([[2, 0], [0, -1]], np.float32)
    encoded = embed(gray, heat).removeprefix("data:image/jpeg;base64,")
    pixels = jpeg8_decode(base64.b64decode(encoded)).astype(int)
    assert pixels.shape == (240, 484, 3)
    assert (np.abs(pixels[:, :236] - 100) < 8).all()  # the slice alone
    beside = pixels[:, 244:]
    red, blue = beside[..., 0], beside[..., 2]
    assert red[20, 20] > 200 > 60 > blue[20, 20]  # orange
    assert blue[220, 220] > red[220, 220] + 40  # blue, half as strong
    assert blue[220, 220] - 100 < 0.6 * 0.7 * 155


def test_an_even_map_is_no_map() -> None:
    assert "1 x 1" in (lack_of_map(np.ones((1, 1), np.float32)) or "")


def test_the_worst_mistakes_by_hand() -> None:
    labels = np.array([[1, 0], [0, 1], [0, 0]])
    predicted = np.array([[0.5, 0.1], [0.2, 0.01], [0.9, 0.3]])
    found = worst_mistakes(labels, predicted, 2)
    assert found == [(1, 1), (2, 0)]


@pytest.mark.parametrize(
    ("spec", "windows", "values", "expected"),
    [
        (ImageSpec(1, 3, 1, "uint16", -1024), (), [[1024], [1064], [1104]], [0, 127.5, 255]),
        (ImageSpec(1, 1, 2, "uint8", 0), ((80, 200), (40, 80)), [[7, 9]], [9]),
        (ImageSpec(1, 1, 2, "uint8", 0), ((80, 200), (600, 2800)), [[7, 9]], [7]),
    ],
)
def test_the_brain_window_is_shown(
    spec: ImageSpec, windows: Any, values: Any, expected: list[float]
) -> None:
    named = [Window(f"w{i}", *each) for i, each in enumerate(windows)]
    setup: Any = SimpleNamespace(shards=SimpleNamespace(image=spec, windows=named))
    image = np.array([[values]], spec.dtype)
    assert gray_levels(image, setup)[0].tolist() == [expected]


def test_hits_take_turns_among_the_labels() -> None:
    labels = np.array([[1, 1], [1, 0], [0, 1], [0, 0]])
    predicted = np.array([[0.9, 0.9], [0.8, 0.9], [0.9, 0.7], [0.9, 0.9]])
    found = best_hits(labels, predicted, 4)
    # Row 0 is the best of both labels, and is shown once; row 3 has none.
    assert found == [(0, 0), (2, 1), (1, 0)]


def test_thumbnails_are_read_by_the_index_alone(
    finished: Path, split_rows: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = prepare_report(ReportOptions(run=finished))
    read: list[int] = []
    pngs = Shards.pngs
    monkeypatch.setattr(Shards, "pngs", lambda self, at: read.extend(at) or pngs(self, at))
    rows = [split_rows["fold0"][i] for i in (17, 2, 9)]
    encoded = sheet_maker(setup)([row["image_id"] for row in rows])
    assert len(read) == 3
    sheet = jpeg8_decode(base64.b64decode(encoded.removeprefix("data:image/jpeg;base64,")))
    assert sheet.shape == (80, 240)
    for i, row in enumerate(rows):
        expected = fit(row["image"][..., 0], 80)
        assert np.abs(sheet[:, 80 * i : 80 * (i + 1)] - expected).mean() < 8


def test_a_mistake_is_shown_with_its_own_slice(
    finished: Path, split_rows: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions are in another order than the index where a split has several shards."""
    setup = prepare_report(ReportOptions(run=finished))
    names, images = setup.shards.labels, {r["image_id"]: r["image"] for r in split_rows["fold0"]}
    frame = read_predictions(setup.run.predictions("fold0"), names)
    drawn: list[Any] = []
    monkeypatch.setattr(slices, "embed", lambda gray, heat: drawn.append(gray) or "data:,")
    mistakes, _ = picture_slices(setup, Measured(frame, names, setup.weights), 12)
    shown = [re.search(r"row (\d+)", each.caption) for each in mistakes]
    ids = [frame["image_id"][int(row[1])] for row in shown if row]
    assert len(ids) == 12
    np.testing.assert_array_equal(drawn[:12], [images[each][..., 0] for each in ids])
