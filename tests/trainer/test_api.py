"""The trainer from Python; also an example of its use."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pydicom
import pytest

import trainer
from beam_pipeline.__main__ import main as preprocess
from examples.sample import write_sample
from headct.errors import UsageError
from trainer.__main__ import main as trainer_main
from trainer.data.dicom import pipeline_flags
from trainer.evaluation.metrics import probabilities

ROOT = Path(__file__).parents[2]
NUMPY = ("clip", "exp", "floor", "maximum")  # of the formulas in description.json


def test_importing_it_loads_nothing() -> None:
    code = "import sys, trainer; assert not {'tensorflow', 'keras', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_what_is_offered_is_there() -> None:
    for name in trainer.__all__:
        assert getattr(trainer, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'flie'"):
        trainer.flie  # noqa: B018


def test_batches_are_an_epoch(shards: Path) -> None:
    opened = trainer.open_shards(shards)
    epochs = [
        list(trainer.batches(opened, ["fold1", "fold2"], 8, seed=0, epoch=e).as_numpy_iterator())
        for e in (0, 0, 1)
    ]
    for images, labels in epochs[0]:
        assert (images.shape, images.dtype) == ((8, 32, 32, 3), np.uint8)
        assert (labels.shape, labels.dtype) == ((8, 3), np.float32)
    keys = [[image.tobytes() for images, _ in epoch for image in images] for epoch in epochs]
    assert keys[0] == keys[1] != keys[2]
    assert sorted(keys[0]) == sorted(keys[2])
    assert len(set(keys[0])) == 40


def test_examples_are_a_split(shards: Path, split_rows: dict[str, list[dict[str, Any]]]) -> None:
    opened = trainer.open_shards(shards, ["fold0"])
    found = list(trainer.examples(opened, "fold0", 8))
    assert [len(batch["label"]) for batch in found] == [8, 8, 5]
    ids = [each.decode() for batch in found for each in batch["image_id"]]
    images = dict(zip(ids, np.concatenate([batch["image"] for batch in found]), strict=True))
    for row in split_rows["fold0"]:
        np.testing.assert_array_equal(images[row["image_id"]], row["image"])


def test_a_model_begins_with_the_prevalence(shards: Path) -> None:
    opened = trainer.open_shards(shards, [])
    model = trainer.build_model(opened, model="smallresnet", weights="none", image_size=32)
    logits = np.asarray(model(np.zeros((2, 32, 32, 3), np.uint8)))
    np.testing.assert_allclose(probabilities(logits), [opened.prevalence(0)] * 2, rtol=1e-4)


def test_a_run_predicts_what_its_training_wrote(finished: Path, shards: Path) -> None:
    run = trainer.load_run(finished)
    assert run.labels == ("upper", "lower", "any")
    table = run.predict_split(trainer.open_shards(shards), "fold0")
    written = pd.read_parquet(finished / "predictions-fold0.parquet")
    pd.testing.assert_frame_equal(table, written, check_exact=False, atol=1e-5)
    found = [
        run.predict(b["image"], 5) for b in trainer.examples(trainer.open_shards(shards), "fold0")
    ]
    columns = [f"probability_{label}" for label in run.labels]
    np.testing.assert_allclose(np.concatenate(found), written[columns], atol=1e-5)


def test_other_images_are_refused(finished: Path) -> None:
    run = trainer.load_run(finished)
    for images in (np.zeros((1, 32, 32, 1), np.uint8), np.zeros((1, 32, 32, 3), np.float32)):
        with pytest.raises(UsageError, match=r"must be of shape \[N, 32, 32, 3\] and type uint8"):
            run.predict(images)


@pytest.mark.system
@pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")  # Beam's own
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning")  # RSNA's UIDs
def test_from_dicom_files_to_a_model_and_back(tmp_path: Path, full: bool) -> None:
    """The pipeline's images, whichever way they come."""
    sample, shards, run = tmp_path / "sample", tmp_path / "shards", tmp_path / "run"
    write_sample(sample, patients=4, slices=4)
    options = {"image_size": 64, "folds": 2, "windows": "brain,stroke:32:8", "voi": "linear"}
    given = {"input": sample / "slices", "labels": sample / "labels.csv", "output": shards}
    given |= options | {"max_reject_fraction": 0.5}
    assert preprocess([f"--{name}={value}" for name, value in given.items()]) == 0
    metrics = trainer.train_run(
        shards=str(shards),
        run=run,
        model="smallresnet",
        weights="none",
        image_size=32,
        batch_size=4,
        epochs=1,
        report=False,
    )
    assert metrics["weighted_log_loss"] > 0
    assert trainer.train_run(shards=str(shards), run=run, **options_of(run)) == metrics
    trained = trainer.load_run(run)
    # One epoch leaves it answering all slices alike.
    head = trained.network.get_layer("core").get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(size=head.kernel.shape))
    trained.network.save(run / "model.keras")
    table, rejects = trained.predict_dicom(sample / "slices")
    known = trained.predict_split(trainer.open_shards(shards), "fold0").set_index("image_id")
    both = table.set_index("image_id").loc[known.index]
    columns = [f"probability_{label}" for label in trained.labels]
    np.testing.assert_allclose(both[columns], known[columns], atol=1e-6)
    assert (table.filter(like="label_") == -1).all(axis=None)
    manifest = json.loads((shards / "manifest.json").read_text())
    assert len(table) + len(rejects) == manifest["counts"]["files_seen"]
    assert "not_dicom" in set(rejects["reason"])
    if full:  # as in test_data_dicom.py, which starts no pipeline
        with pytest.raises(UsageError, match=r"^input .*nowhere does not exist"):
            trained.predict_dicom(tmp_path / "nowhere")
    check_export_by_its_description(run, sample / "slices", table, tmp_path / "export")


def check_export_by_its_description(
    run: Path, slices: Path, table: pd.DataFrame, output: Path
) -> None:
    """Answers DICOM files with ONNX Runtime and what description.json says, and nothing else."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    argv = ["export", "--run", str(run), "--output", str(output), "--formats", "onnx"]
    assert trainer_main(argv) == 0
    described = json.loads((output / "description.json").read_text())
    session = onnxruntime.InferenceSession(str(output / described["files"]["onnx"]))
    names = [f"probability_{label}" for label in described["labels"]]
    compared = 0
    for _, row in table.iterrows():
        paths = sorted(slices.rglob(f"{row['image_id']}.dcm"))
        file = pydicom.dcmread(paths[0])
        if len(paths) > 1 or file.RescaleIntercept > -100:  # a duplicate, or repaired (hu_repair)
            continue
        image = prepare_as_described(file, described)
        answered = session.run([described["output"]["name"]], {described["input"]["name"]: image})
        np.testing.assert_allclose(answered[0][0], row[names].astype(float), atol=1e-5)
        compared += 1
    assert compared > len(table) / 2
    assert np.ptp(table[names], axis=0).max() > 1e-3


def prepare_as_described(file: pydicom.Dataset, described: dict[str, Any]) -> npt.NDArray[Any]:
    """One stored image of a DICOM file, [1, H, W, C]."""
    preparation, functions = described["preparation"], {name: getattr(np, name) for name in NUMPY}
    hounsfield = file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept)
    padding, size = np.float64(preparation["padding_hu"]), preparation["size"]
    if "PixelPaddingValue" in file:
        hounsfield[file.pixel_array == file.PixelPaddingValue] = padding

    def channels(hu: Any) -> npt.NDArray[Any]:
        values = [
            eval(preparation["formula"], functions, each | {"hu": hu})
            for each in described["channels"]
        ]
        return np.stack(values, axis=-1).astype(described["input"]["dtype"])

    pixels = channels(hounsfield)
    height, width = pixels.shape[:2]
    scale = size / max(height, width)
    if pixels.shape[:2] != (size, size):
        inner = (round(width * scale), round(height * scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        scaled = cv2.resize(pixels, inner, interpolation=method).reshape(*inner[::-1], -1)
        pixels = np.empty((size, size, scaled.shape[-1]), pixels.dtype)
        pixels[:] = channels(padding)
        top, left = (size - inner[1]) // 2, (size - inner[0]) // 2
        pixels[top : top + inner[1], left : left + inner[0]] = scaled
    assert [None, *pixels.shape] == described["input"]["shape"]
    return pixels[None]


def options_of(run: Path) -> dict[str, Any]:
    """Those of the run, and what is no part of it."""
    return json.loads((run / "run.json").read_text())["options"] | {"report": False}


def test_flags_say_what_a_manifest_says() -> None:
    options = {"voi": "linear", "hu": False, "image_size": 64, "hu_repair": "off"}
    windows = [
        {"name": "a", "center": 40.0, "width": 80.0},
        {"name": "dicom", "center": None, "width": None},
    ]
    flags = pipeline_flags(windows, options | {"image_id": "ordinal"})
    assert flags[-1] == "--windows=a:40.0:80.0,dicom"
    assert "--voi=linear" in flags
    earlier = pipeline_flags([], options | {"image_id": "ordinal", "hu": True})
    assert earlier == ["--image_size=64", "--hu_repair=off", "--image_id=ordinal", "--hu"]
    now = pipeline_flags([], options | {"image_id": "auto", "hu": True, "orientation": "any"})
    assert now[-2:] == ["--orientation=any", "--hu"]
    with pytest.raises(UsageError, match="is not known: no image_id"):
        pipeline_flags(windows, options)
