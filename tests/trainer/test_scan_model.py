"""Scan models: they begin as the slice network, and neither padding nor direction matters."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from headct.errors import UsageError
from headct.scans import Scans, find_scans
from trainer.networks import scan_model
from trainer.networks.scan_model import (
    KINDS,
    arrange,
    as_half,
    build_scan_model,
    correct,
    features_model,
    load_scan_model,
    scan_inputs,
)

FEATURES, LABELS = 12, 2
NAN = float("nan")


def invent() -> tuple[npt.NDArray[Any], npt.NDArray[np.float32], pd.DataFrame]:
    """Scans of 17, 5 and 1 slices, shuffled; one slice without a position."""
    random = np.random.default_rng(0)
    series = random.permutation(["a"] * 17 + ["b"] * 5 + ["c"])
    z = random.uniform(0, 100, len(series))
    z[3] = NAN
    ids = [f"{i:02d}" for i in range(len(series))]
    rows = pd.DataFrame({"image_id": ids, "series_id": series, "position_z": z})
    features = random.normal(size=(len(rows), FEATURES)).astype(np.float16)
    return features, random.normal(size=(len(rows), LABELS)).astype(np.float32), rows


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind == "convolutions" else pytest.param(kind, marks=pytest.mark.full)
        for kind in KINDS
    ],
)
def test_laws(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, logits, rows = invent()
    model = build_scan_model(kind, FEATURES, LABELS, 8, 0.5)
    model.run_eagerly = True  # every length would be compiled
    scans = find_scans(rows, "")
    of_slices, of_scan = correct(model, features, logits, scans, both_directions=False)
    # Untrained: the logits of the slices, and their maximum.
    np.testing.assert_array_equal(of_slices, logits)
    for scan in scans:
        np.testing.assert_array_equal(of_scan[scan], logits[scan].max(axis=0) + 0 * logits[scan])
    random = np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(random.normal(0, 0.3, weight.shape))
    of_slices, of_scan = correct(model, features, logits, scans, both_directions=False)
    assert np.abs(of_slices - logits).min(axis=1).mean() > 0.01
    # Saved and loaded, padded by 48 more, and one scan at a time: the same.
    path = tmp_path / "scan_model.keras"
    model.save(path)
    loaded = load_scan_model(path, LABELS)
    loaded.run_eagerly = True
    with pytest.raises(UsageError, match=r"scan_model\.keras: no scan model \(it has other labels"):
        load_scan_model(path, LABELS + 1)
    monkeypatch.setattr(scan_model, "_SHORTEST", 64)
    monkeypatch.setattr(scan_model, "_SLICES_AT_ONCE", 1)
    for found, expected in zip(
        correct(loaded, features, logits, scans, False), (of_slices, of_scan), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    # Other rows of other scans change nothing; the order of the slices does.
    other = np.where((rows["series_id"] == "a").to_numpy()[:, None], features, features[::-1])
    of_others, _ = correct(loaded, other, logits, scans, False)
    of_a = (rows["series_id"] == "a").to_numpy()
    np.testing.assert_allclose(of_others[of_a], of_slices[of_a], atol=1e-5)
    turned = find_scans(rows.assign(position_z=-rows["position_z"]), "")
    reverse, _ = correct(loaded, features, logits, turned, False)
    assert np.abs(reverse - of_slices)[of_a].max() > 1e-3
    # Both directions: the same for a reversed scan.
    known = rows["position_z"].notna().to_numpy()
    whole, also = (
        correct(loaded, features[known], logits[known], find_scans(of[known], ""), True)
        for of in (rows, rows.assign(position_z=-rows["position_z"]))
    )
    for one, two in zip(whole, also, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_is_seen_from_five_slices_away(kind: str) -> None:
    """Farther than the differences to both neighbors reach: `_ALONG_Z` does something."""
    model = build_scan_model(kind, FEATURES, LABELS, 8, 0.5)
    model.run_eagerly = True
    random = np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(random.normal(0, 0.3, weight.shape))
    features = random.normal(size=(12, FEATURES))
    changed = np.concatenate([features[:9], -features[9:]])
    logits, scans = (
        np.zeros((12, LABELS), np.float32),
        Scans(np.arange(12), np.array([0, 12]), np.arange(12) * 5.0),
    )
    before, after = (correct(model, each, logits, scans, False)[0] for each in (features, changed))
    assert np.abs(after - before)[4].max() > 1e-4


def test_features_are_the_mean_over_an_image_and_its_mirror_image() -> None:
    image = keras.Input((4, 4, 1))
    resize = keras.layers.Rescaling(1.0, name="resize")
    inner = keras.Input((4, 4, 1))
    pooled = keras.layers.Flatten(name="pool")(inner)
    core = keras.Model(inner, keras.layers.Dense(1, name="head")(pooled), name="core")
    classifier = keras.Model(image, core(resize(image)))
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
    plain, mirrored = (
        features_model(classifier, m).predict_on_batch(images) for m in (False, True)
    )
    flipped = features_model(classifier, False).predict_on_batch(images[:, :, ::-1])
    np.testing.assert_allclose(mirrored, (plain + flipped) / 2, atol=1e-6)
    assert plain.shape == (2, 17)


def test_inputs_by_hand() -> None:
    z = np.array([3.0, 8.0, NAN, 10.0])
    inputs = arrange(np.ones((4, 1)), np.ones((4, 1)), z, 6)
    assert inputs["mask"][:, 0].tolist() == [1, 1, 1, 1, 0, 0]
    assert inputs["gaps"].tolist() == [[0, 5], [5, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    assert inputs["neighbors"].tolist() == [[0, 1], [1, 1], [1, 1], [1, 0], [0, 0], [0, 0]]
    # The same as tensors, for exported models.
    z = np.array([9.0, 4.0, 1.0], np.float32)
    expected = arrange(np.ones((3, 5)), np.ones((3, 2)), z.astype(float), 3)
    tensors = scan_inputs(np.ones((3, 5), np.float32), np.ones((3, 2), np.float32), z)
    for name, array in expected.items():
        np.testing.assert_array_equal(np.asarray(tensors[name])[0], array)
    assert as_half(np.array([1e9, -1e9, 0.5], np.float32)).tolist() == [65504, -65504, 0.5]


def test_no_scan_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scan model yet"):
        load_scan_model(tmp_path / "none.keras", 1)
    (tmp_path / "text.keras").write_text("text")
    with pytest.raises(UsageError, match=r"text\.keras: no scan model \("):
        load_scan_model(tmp_path / "text.keras", 1)
