"""The trainer from Python; also an example of its use."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import trainer
from beam_pipeline.__main__ import main as preprocess
from examples.sample import write_sample
from trainer.data.dicom import pipeline_flags
from trainer.errors import BadInput
from trainer.evaluation.metrics import probabilities

ROOT = Path(__file__).parents[2]


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
        with pytest.raises(BadInput, match=r"must be of shape \[N, 32, 32, 3\] and type uint8"):
            run.predict(images)


@pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")  # Beam's own
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning")  # RSNA's UIDs
def test_from_dicom_files_to_a_model_and_back(tmp_path: Path) -> None:
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
    table, rejects = trained.predict_dicom(sample / "slices")
    known = trained.predict_split(trainer.open_shards(shards), "fold0").set_index("image_id")
    both = table.set_index("image_id").loc[known.index]
    columns = [f"probability_{label}" for label in trained.labels]
    np.testing.assert_allclose(both[columns], known[columns], atol=1e-6)
    assert (table.filter(like="label_") == -1).all(axis=None)
    manifest = json.loads((shards / "manifest.json").read_text())
    assert len(table) + len(rejects) == manifest["counts"]["files_seen"]
    assert "not_dicom" in set(rejects["reason"])
    with pytest.raises(BadInput, match=r"^input .*nowhere does not exist"):
        trained.predict_dicom(tmp_path / "nowhere")


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
    assert pipeline_flags([], options | {"image_id": "ordinal", "hu": True})[-1] == "--hu"
    with pytest.raises(BadInput, match="is not known: no image_id"):
        pipeline_flags(windows, options)
