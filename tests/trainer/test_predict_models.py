from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from pyarrow.parquet import read_schema

from headct.errors import UsageError
from trainer.data.shards import Split, read_shard_directory
from trainer.errors import Diverged
from trainer.evaluation.predict import write_parquet
from trainer.evaluation.predict_models import (
    Predictions,
    _ScanAnswers,
    check_finite,
    predict_batch,
    predict_models,
)
from trainer.networks import scan_model
from trainer.networks.scan_model import ScanNetwork
from trainer.runs.run import Calibration


class Brightness:
    """A model whose three logits are the mean of the left half, of the right, and of all."""

    jit_compile = False

    def __call__(self, images: Any, training: bool) -> Any:
        assert not training
        images = keras.ops.cast(images, "float32")
        half = images.shape[2] // 2
        parts = (images[:, :, :half], images[:, :, half:], images)
        return keras.ops.stack([keras.ops.mean(part, (1, 2, 3)) for part in parts], axis=1)


@pytest.mark.parametrize("batch_size", [1, 8, 21, 64])
def test_every_slice_is_predicted_with_its_own_ids(shards: Path, batch_size: int) -> None:
    data = read_shard_directory(shards)
    split = data.split("fold0")
    heard: list[int] = []
    (found,) = predict_models([Brightness()], data, split, data.labels, batch_size, heard.append)
    assert found.logits.shape == (21, 3)
    assert heard == [*range(batch_size, 21, batch_size), 21]
    frame = found.frame().set_index("image_id")
    assert sorted(frame.index) == [f"ID_0_{i:04d}" for i in range(21)]
    assert frame.loc["ID_0_0005", "patient_id"] == "P0_001"
    assert frame.loc["ID_0_0005", "position_z"] == 5
    assert set(frame["split"]) == {"fold0"}
    bright = frame["label_any"] == 1
    assert frame.loc[bright, "probability_any"].min() >= frame.loc[~bright, "probability_any"].max()


def test_the_mirror_image_is_averaged_in() -> None:
    images = np.zeros((1, 2, 2, 1), np.uint8)
    images[:, :, 0] = 100
    assert predict_batch(Brightness(), images, flip=False).tolist() == [[100, 0, 50]]
    assert predict_batch(Brightness(), images, flip=True).tolist() == [[50, 50, 50]]


def test_more_examples_than_the_manifest_says(shards: Path) -> None:
    data = read_shard_directory(shards)
    first, second = data.split("fold0").shards
    split = Split("fold0", (replace(first, examples=10), second))
    with pytest.raises(UsageError, match="split fold0: 21 examples where the manifest has 20"):
        predict_models([Brightness()], data, split, data.labels, 8)


def test_a_slice_without_numbers_is_counted_once() -> None:
    logits = np.zeros((4, 3), np.float32)
    check_finite(logits, "fold0")
    logits[1] = np.nan
    logits[2, 1] = np.inf
    with pytest.raises(Diverged) as raised:
        check_finite(logits, "fold0")
    assert str(raised.value) == (
        "the model gives 2 of 4 slices of fold0 a logit that is not finite; try a lower"
        " --learning_rate, --clip_norm 1 or --precision float32 in a new run directory"
    )


def test_a_row_an_example(tmp_path: Path) -> None:
    rows = pd.DataFrame({"image_id": ["i", "j"], "patient_id": ["p", "p"], "position_z": [2.5, 5]})
    logits = np.log(np.float32([[1, 3], [1 / 3, 9]]))
    labels = np.array([[0, 1], [-1, -1]])
    found = Predictions(("a", "any"), rows, labels, logits)
    write_parquet(tmp_path / "p.parquet", found.frame())
    frame = pd.read_parquet(tmp_path / "p.parquet")
    # As other readers see them, who know of no index.
    assert read_schema(tmp_path / "p.parquet").names == [
        "image_id", "patient_id", "position_z",
        "probability_a", "probability_any", "label_a", "label_any",
    ]  # fmt: skip
    expected = [["i", "p", 2.5, 0.5, 0.75, 0, 1], ["j", "p", 5, 0.25, 0.9, -1, -1]]
    for row, values in zip(frame.itertuples(index=False), expected, strict=True):
        assert list(row[:3]) == values[:3]
        assert list(row[3:]) == pytest.approx(values[3:])
    # The logits 0 and log 3, halved and moved by -1.
    calibrated = found.frame(Calibration((1.0, 2.0), (0.0, -1.0)))
    assert calibrated["probability_any"][0] == pytest.approx(1 / (1 + np.e / 3**0.5))


def test_mirror_images_are_looked_at_where_that_is_asked_for(shards: Path) -> None:
    data, model = read_shard_directory(shards), Brightness()
    plain, mirrored = (
        predict_models([model], data, data.split("fold0"), data.labels, 8, flip=flip)[0].logits
        for flip in (False, True)
    )
    assert not np.allclose(plain[:, 0], plain[:, 1])
    np.testing.assert_allclose(mirrored[:, 0], mirrored[:, 1])
    (default,) = predict_models([model], data, data.split("fold0"), data.labels, 8)
    np.testing.assert_array_equal(default.logits, plain)


class MeanOfScan:
    """A scan model: a slice's logits plus the mean feature of its scan, times the first gap."""

    def predict_on_batch(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        mask = inputs["mask"]
        mean = (inputs["features"] * mask).sum(1, keepdims=True) / mask.sum(1, keepdims=True)
        slices = inputs["logits"] + mean * inputs["gaps"][:, :1, 1:]
        return {"slices": slices, "scan": slices[:, 0]}


class Features(Brightness):
    """`Brightness`, and how bright the right half is."""

    def __call__(self, images: Any, training: bool) -> Any:
        logits = super().__call__(images, training) / 100
        return keras.ops.concatenate([logits, logits[:, 1:2]], axis=1)


@pytest.mark.parametrize("batch_size", [2, 8, 64])
def test_scans_are_answered_while_others_are_read(
    shards: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices of one scan, 5 mm apart, lie in several records and batches."""
    monkeypatch.setattr(scan_model, "_SLICES_AT_ONCE", 32)
    data, network = read_shard_directory(shards), Features()
    waiting: list[int] = []
    add = _ScanAnswers.add

    def note(answers: _ScanAnswers, outputs: np.ndarray) -> None:
        add(answers, outputs)
        waiting.append(len(answers.waiting[0][0]))

    monkeypatch.setattr(_ScanAnswers, "add", note)
    models = [ScanNetwork(network, MeanOfScan(), False), Brightness()]
    found, plain = predict_models(models, data, data.split("fold0"), data.labels, batch_size)
    assert max(waiting) < 4, "whole scans do not wait"
    assert plain.pooled is None
    np.testing.assert_allclose(found.alone, plain.logits / 100, rtol=1e-6)
    features = pd.Series(plain.logits[:, 1] / 100).astype(np.float16).astype(np.float64)
    series = plain.rows["series_id"]
    gap = np.where(series.map(series.value_counts()) > 1, 5.0, 0.0)
    expected = found.alone + (features.groupby(series).transform("mean") * gap).to_numpy()[:, None]
    np.testing.assert_allclose(found.logits, expected, rtol=1e-4)
    first = plain.rows["position_z"] == 0
    pooled = pd.DataFrame(found.pooled).groupby(series).agg(["min", "max"])
    assert (pooled.xs("min", axis=1, level=1) == pooled.xs("max", axis=1, level=1)).all(axis=None)
    np.testing.assert_allclose(found.pooled[first], found.logits[first])
    columns = found.frame().columns
    assert [name for name in columns if "any" in name] == [
        "alone_any", "pooled_any", "probability_any", "label_any",
    ]  # fmt: skip
