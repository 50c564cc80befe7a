import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from headct.manifest import ImageSpec
from trainer.evaluation.measured import Measured, read_predictions
from trainer.networks.model import build_classifier
from trainer.options import ReportOptions, TrainOptions
from trainer.report import slices
from trainer.report.slices import (
    activation_maps,
    best_hits,
    gray_levels,
    lack_of_map,
    picture_slices,
    worst_mistakes,
)
from trainer.runs.evaluation_setup import prepare_report


def test_equals_the_gradients_of_the_logit() -> None:
    options = TrainOptions(
        shards=Path("s"), run=Path("r"), model="smallresnet", weights="none", image_size=64
    )
    keras.utils.set_random_seed(0)
    image = ImageSpec(64, 64, 3, "uint8", 0)
    classifier = build_classifier(options, image, (0.5, 0.5), "float32").model
    random = np.random.default_rng(0)
    kernel = classifier.get_layer("core").get_layer("head").kernel
    kernel.assign(random.normal(size=kernel.shape))
    images = random.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    label = np.array([0, 1, 1])
    maps = activation_maps(classifier, images, label)

    core = classifier.get_layer("core")
    resized = classifier.get_layer("resize")(images)
    network = keras.Model(core.inputs, [core.get_layer("pool").input, core.output])
    with tf.GradientTape() as tape:
        features, logits = network(resized)
        tape.watch(features)
        # Again from the features on, so that the tape sees them.
        logits = core.get_layer("head")(core.get_layer("pool")(features))
        chosen = tf.reduce_sum(tf.gather(logits, label, batch_dims=1))
    alpha = tf.reduce_mean(tape.gradient(chosen, features), axis=(1, 2), keepdims=True)
    expected = tf.nn.relu(tf.reduce_sum(alpha * features, axis=-1)).numpy()
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(maps, expected, atol=1e-4)
    assert maps.max() == 1


def test_a_label_that_nothing_speaks_for_has_an_empty_map() -> None:
    options = TrainOptions(
        shards=Path("s"), run=Path("r"), model="smallresnet", weights="none", image_size=64
    )
    image = ImageSpec(64, 64, 3, "uint8", 0)
    classifier = build_classifier(options, image, (0.5, 0.5), "float32").model
    kernel = classifier.get_layer("core").get_layer("head").kernel
    # Features behind a ReLU are not negative: negative weights speak against a label everywhere.
    weights = np.abs(np.random.default_rng(0).normal(size=kernel.shape))
    kernel.assign(weights * [1, -1])
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for_first, for_second = activation_maps(classifier, images, np.array([0, 1]))
    assert lack_of_map(for_first) is None
    assert "speaks for the label" in (lack_of_map(for_second) or "")


def test_an_even_map_is_no_map() -> None:
    assert "1 x 1" in (lack_of_map(np.ones((1, 1), np.float32)) or "")


def test_the_worst_mistakes_by_hand() -> None:
    labels = np.array([[1, 0], [0, 1], [0, 0]])
    predicted = np.array([[0.5, 0.1], [0.2, 0.01], [0.9, 0.3]])
    found = worst_mistakes(labels, predicted, 2)
    assert found == [(1, 1), (2, 0)]


def test_hounsfield_units_are_shown_in_the_brain_window() -> None:
    image = np.array([[[1024], [1064], [1104]]], np.uint16)
    spec = ImageSpec(1, 3, 1, "uint16", -1024)
    assert gray_levels(image, spec).tolist() == [[0, 127.5, 255]]


def test_hits_take_turns_among_the_labels() -> None:
    labels = np.array([[1, 1], [1, 0], [0, 1], [0, 0]])
    predicted = np.array([[0.9, 0.9], [0.8, 0.9], [0.9, 0.7], [0.9, 0.9]])
    found = best_hits(labels, predicted, 4)
    # Row 0 is the best of both labels, and is shown once; row 3 has none.
    assert found == [(0, 0), (2, 1), (1, 0)]


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
