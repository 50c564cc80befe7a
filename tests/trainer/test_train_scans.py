"""`train_scans`: from a finished run to a run of a scan model that the other commands take."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn.metrics import log_loss

import trainer
from headct.errors import UsageError
from headct.scans import Scans
from trainer.__main__ import main
from trainer.data.shards import read_shard_directory
from trainer.runs import checkpoint
from trainer.runs.trained_on import hash_examples
from trainer.training import train_scans
from trainer.training.scan_features import ScanFeatures
from trainer.training.train_scans import Batches

# TensorFlow says of `eagerly` that its data sets are not meant.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")

LABELS, WEIGHTS = ("upper", "lower", "any"), (1, 1, 2)
FEW = ["--epochs", "2", "--units", "8", "--scans_a_step", "2", "--crop", "4", "--no-report"]


@pytest.fixture(scope="module", autouse=True)
def eagerly() -> Iterator[None]:
    """Compiling takes longer than all steps of this file."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def trained(
    finished: Path, eagerly: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A slice run with features, and the metrics of its scan model in RUN/scans."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("scans") / "run"))
    assert main(["train_scans", str(run), *FEW]) == 0
    return run, json.loads((run / "scans" / "metrics.json").read_text())


def test_it_begins_as_the_slice_network_and_is_a_run(
    trained: tuple[Path, dict[str, Any]],
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, metrics = trained
    slices = json.loads((run / "metrics.json").read_text())
    against = metrics["against_slices"]
    assert against["weighted_log_loss"] == pytest.approx(slices["weighted_log_loss"], rel=1e-4)
    # An epoch is only kept if it is better.
    assert metrics["weighted_log_loss"] <= against["weighted_log_loss"] + 1e-5
    assert metrics["scans"]["maximum"]["examples"] == metrics["patients"] == 6
    assert metrics["scans"]["pooled"]["intervals_95"]["weighted_log_loss"]
    assert main(["evaluate", "--run", f"{run}/scans"]) == 0
    found = json.loads((run / "scans" / "evaluation-fold0.json").read_text())
    for name in ("weighted_log_loss", "mean_roc_auc", "trained_on"):
        assert found[name] == pytest.approx(metrics[name], rel=1e-5)
    to_folder = ["--output", f"{tmp_path}/p", "--pictures", "0"]
    assert main(["predict", f"{run}/scans", str(shards), *to_folder]) == 0
    scans = pd.read_csv(tmp_path / "p" / "scans.csv")
    assert scans["pooled_any"].between(0, 1).all()
    table = pd.read_csv(tmp_path / "p" / "slices.csv").set_index("image_id")
    loaded = trainer.load_run(run / "scans")
    same = loaded.predict_split(trainer.open_shards(shards), "test").set_index("image_id")
    np.testing.assert_allclose(
        table["probability_any"], same["probability_any"][table.index], atol=1e-5
    )
    with pytest.raises(UsageError, match="a scan model takes whole scans"):
        loaded.predict(np.zeros((1, 32, 32, 3), np.uint8))
    to_keras = ["--output", f"{tmp_path}/e", "--formats", "keras"]
    assert main(["export", "--run", f"{run}/scans", *to_keras]) == 0
    assert (
        "float32 [slices]"
        in json.loads((tmp_path / "e" / "description.json").read_text())["scan"]["position_z"]
    )
    capsys.readouterr()
    assert main(["train_scans", str(run), *FEW]) == 0
    assert "this run is complete" in capsys.readouterr().out


@pytest.mark.system
def test_all_formats_answer_as_predict_does(
    trained: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("tf2onnx", reason="ONNX needs tf2onnx")
    run, _ = trained
    assert main(["export", "--run", f"{run}/scans", "--output", f"{tmp_path}/e"]) == 0
    told = capfd.readouterr()
    assert (told.err, caplog.text) == ("", "")
    for name in ("model.keras", "saved_model", "model.onnx"):
        assert (tmp_path / "e" / name).exists()
    (difference,) = re.findall(r"within (\S+) of", " ".join(told.out.split()))
    assert float(difference) < 1e-5


def test_a_stopped_training_resumes_with_the_same_figures(
    trained: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, metrics = trained
    again = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(again / "scans")
    # Of the features of fold1 only the first 8 are done.
    progress = again / "features" / "fold1.json"
    progress.write_text(json.dumps(json.loads(progress.read_text()) | {"done": 8}))
    expected = np.load(again / "features" / "fold1-features.npy")
    for name in ("features", "logits"):
        stored = np.lib.format.open_memmap(again / "features" / f"fold1-{name}.npy", "r+")
        stored[8:] = 0
        stored.flush()
    save = checkpoint.save

    def stop(folder: Path, state: checkpoint.Checkpoint) -> None:
        save(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", stop)
        assert main(["train_scans", str(again), *FEW]) == 130
    np.testing.assert_allclose(
        np.load(again / "features" / "fold1-features.npy"), expected, atol=1e-2
    )
    assert "resumes" in capsys.readouterr().err
    assert main(["train_scans", str(again), *FEW]) == 0
    assert "resumes after epoch 1" in capsys.readouterr().out
    found = json.loads((again / "scans" / "metrics.json").read_text())
    assert found["weighted_log_loss"] == pytest.approx(metrics["weighted_log_loss"], rel=1e-4)
    one, two = (json.loads((path / "scans" / "history.json").read_text()) for path in (run, again))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)


@pytest.fixture(scope="module")
def crossval(
    trained: tuple[Path, dict[str, Any]],
    shards: Path,
    split_rows: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A cross-validation of three folds whose networks are one, with features and scan models."""
    folder, opened = tmp_path_factory.mktemp("scans") / "cv", read_shard_directory(shards)
    answers = trainer.load_run(trained[0])
    for fold in range(3):
        run = Path(shutil.copytree(trained[0], folder / f"fold{fold}"))
        shutil.rmtree(run / "scans")
        described = json.loads((run / "run.json").read_text())
        described["options"]["fold"] = fold
        (run / "run.json").write_text(json.dumps(described))
        training, _ = opened.training_and_validation(fold)
        hash_examples(opened, training).to_parquet(run / "trained_on.parquet")
        frame = answers.predict_split(opened, f"fold{fold}")
        frame.to_parquet(run / f"predictions-fold{fold}.parquet", index=False)
    (folder / "crossval.json").write_text("{}")
    assert main(["train_scans", str(folder), *FEW]) == 0
    return folder


def test_a_cross_validation_has_a_scan_model_per_fold(
    crossval: Path,
    split_rows: dict[str, Any],
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scans = crossval / "scans"
    frame = pd.read_parquet(scans / "out_of_fold.parquet")
    expected = {row["image_id"]: f"fold{i}" for i in range(3) for row in split_rows[f"fold{i}"]}
    assert dict(zip(frame["image_id"], frame["split"], strict=True)) == expected
    summary = json.loads((scans / "crossval.json").read_text())
    every = summary["out_of_fold"]
    losses = [
        np.average([log_loss(of[f"label_{n}"], of[f"{kind}_{n}"]) for n in LABELS], weights=WEIGHTS)
        for kind in ("probability", "alone")
        for of in [frame]
    ]
    assert every["weighted_log_loss"] == pytest.approx(losses[0])
    against = summary["against_slices"]
    assert against["weighted_log_loss"] == pytest.approx(losses[1])
    assert against["difference"] == pytest.approx(losses[0] - losses[1])
    ends = against["difference_interval_95"]
    assert ends[0] <= against["difference"] <= ends[1]
    assert every["scans"]["pooled"]["examples"] == every["intervals_95"]["patients"] == 16
    # A run that is killed between two folds: the same figures.
    again = Path(shutil.copytree(crossval, tmp_path / "again"))
    shutil.rmtree(again / "scans" / "fold2")
    for name in ("crossval.json", "out_of_fold.parquet"):
        (again / "scans" / name).unlink()
    before = (again / "scans" / "fold1" / "scan_model.keras").stat().st_mtime_ns
    assert main(["train_scans", str(again), *FEW]) == 0
    assert (again / "scans" / "fold1" / "scan_model.keras").stat().st_mtime_ns == before
    resumed = json.loads((again / "scans" / "crossval.json").read_text())
    assert resumed["out_of_fold"]["weighted_log_loss"] == pytest.approx(losses[0], rel=1e-5)


def test_what_cannot_be_trained(
    trained: tuple[Path, dict[str, Any]],
    split_rows: dict[str, Any],
    shards_writer: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, _ = trained
    unfinished = Path(shutil.copytree(run, tmp_path / "unfinished"))
    (unfinished / "metrics.json").unlink()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    other = shards_writer(
        tmp_path / "other", {f"fold{i}": split_rows[f"fold{2 - i}"] for i in range(3)}
    )
    cases = {
        (f"{run}/scans",): "is a run of train_scans; want the run of a slice network",
        (str(unfinished),): "training is not complete",
        (str(run), "--kind", "gru"): "--kind convolutions there, gru now",
        (str(run), "--output", str(run)): "is of other options: a run of `train`",
        (str(run), "--output", f"{tmp_path}/full"): "exists and is no run directory",
        (str(run), "--shards", str(other)): "are not the shards that",
        (str(tmp_path),): "no run.json, so no run directory",
    }
    for case, message in cases.items():
        assert main(["train_scans", *case, *FEW]) == 2
        shown = capsys.readouterr()
        assert message in shown.err
        assert shown.err.count("\n") == 1
    described = json.loads((run / "scans" / "run.json").read_text())
    shards = described["shards"]["path"]
    assert (
        main(
            [
                "train",
                "--shards",
                shards,
                "--run",
                f"{run}/scans",
                "--model",
                "smallresnet",
                "--weights",
                "none",
            ]
        )
        == 2
    )
    assert "is a run of train_scans, which resumes it" in capsys.readouterr().err


def test_crops_are_of_one_scan_thinned_and_reversed_with_their_labels() -> None:
    number = np.arange(60)
    features = number[:, None].astype(np.float16)
    labels = (number[:, None] % 7 == 0).astype(np.int64)
    scans = Scans(number, np.array([0, 40, 41, 60]), number * 2.5)
    one = ScanFeatures(labels, scans, features.astype(np.float32), features)
    batches = Batches([one], crop=8, size=4, seed=1)
    # 5, 1 and 3 crops.
    assert batches.steps == 3
    steps, backward, lengths = set(), set(), set()
    for epoch in range(20):
        for inputs, truth, weights in batches.epoch(epoch):
            for i in range(4):
                seen = inputs["features"][i, inputs["mask"][i, :, 0] > 0, 0].astype(int)
                lengths.add(len(seen))
                assert len({int(np.searchsorted([40, 41], each, "right")) for each in seen}) == 1
                steps |= {*np.abs(np.diff(seen)).tolist()}
                backward |= {*(np.diff(seen) < 0).tolist()}
                expected = (seen % 7 == 0).astype(int)
                assert truth[train_scans.SLICES][i, : len(seen), 0].tolist() == expected.tolist()
                assert truth[train_scans.SCAN][i, 0] == expected.max()
                gaps = inputs["gaps"][i, 1 : len(seen), 0]
                assert gaps == pytest.approx(np.abs(np.diff(seen)) * 2.5)
            assert weights[train_scans.SLICES].sum() == pytest.approx(inputs["mask"].size)
    assert (steps, backward, lengths) == ({1, 2}, {True, False}, {1, 8})
    first, second = (next(batches.epoch(3))[0]["features"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
