"""`train_scans`: from a finished run to a run of a scan model that the other commands take."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.metrics import log_loss

import trainer
from headct.errors import UsageError
from headct.reader import Shards
from trainer.__main__ import main
from trainer.data.shards import read_shard_directory
from trainer.networks.saved_models import load_classifier
from trainer.options import TrainScansOptions
from trainer.runs import checkpoint
from trainer.runs.scan_setup import prepare_scans
from trainer.runs.trained_on import hash_examples
from trainer.training import train_scans
from trainer.training.scan_crops import Batches

# TensorFlow says of `eagerly` that its data sets are not meant.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")

LABELS, WEIGHTS = ("upper", "lower", "any"), (1, 1, 2)
FEW = ["--epochs", "2", "--units", "8", "--scans_a_step", "2", "--crop", "4", "--no-report"]
FEWER = [*FEW, "--epochs", "1", "--scans_a_step", "16"]  # one step


@pytest.fixture(scope="module")
def trained(train_scans: Any) -> tuple[Path, dict[str, Any]]:
    """A slice run with features, and the metrics of its scan model in RUN/scans."""
    made: tuple[Path, dict[str, Any]] = train_scans("scans", FEW)
    return made


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
    assert main(["report", f"{run}/scans", "--mistakes", "0"]) == 0
    page = (run / "scans" / "report.html").read_text()
    assert "As pooled" in page
    assert "data:image/jpeg" not in page
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
    with monkeypatch.context() as patched:  # after the last epoch

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(train_scans, "predict_best", interrupt)
        assert main(["train_scans", str(again), *FEW]) == 130
    assert "resumes after epoch 1" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        # What is stored is not read from images again.
        patched.setattr(Shards, "images", interrupt)
        assert main(["train_scans", str(again), *FEW]) == 0
    assert "resumes after epoch 2" in capsys.readouterr().out
    found = json.loads((again / "scans" / "metrics.json").read_text())
    assert found["weighted_log_loss"] == pytest.approx(metrics["weighted_log_loss"], rel=1e-4)
    one, two = (json.loads((path / "scans" / "history.json").read_text()) for path in (run, again))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)


@pytest.fixture(scope="module")
def crossval(
    trained: tuple[Path, dict[str, Any]], shards: Path, tmp_path_factory: pytest.TempPathFactory
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
    assert main(["train_scans", str(folder), *FEWER]) == 0
    return folder


def test_a_cross_validation_has_a_scan_model_per_fold(
    crossval: Path, split_rows: dict[str, Any]
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


@pytest.mark.system
def test_a_cross_validation_that_was_stopped_between_folds_resumes_with_the_same_figures(
    crossval: Path, tmp_path: Path
) -> None:
    expected = json.loads((crossval / "scans" / "crossval.json").read_text())
    again = Path(shutil.copytree(crossval, tmp_path / "again"))
    shutil.rmtree(again / "scans" / "fold2")
    for name in ("crossval.json", "out_of_fold.parquet"):
        (again / "scans" / name).unlink()
    before = (again / "scans" / "fold1" / "scan_model.keras").stat().st_mtime_ns
    assert main(["train_scans", str(again), *FEWER]) == 0
    assert (again / "scans" / "fold1" / "scan_model.keras").stat().st_mtime_ns == before
    resumed = json.loads((again / "scans" / "crossval.json").read_text())
    for figures in ("out_of_fold", "over_folds", "against_slices"):
        one, other = (pd.json_normalize(each[figures]) for each in (expected, resumed))
        pd.testing.assert_frame_equal(one, other, rtol=1e-4)


@pytest.mark.usefixtures("without_curves")
def test_slices_and_scans_are_an_ensemble_in_each_fold(
    crossval: Path, shards: Path, tmp_path: Path
) -> None:
    scans, both = crossval / "scans", tmp_path / "both"
    assert main(["evaluate", "--run", str(scans)]) == 0
    found = json.loads((scans / "evaluation-folds.json").read_text())
    every = json.loads((scans / "crossval.json").read_text())["out_of_fold"]
    assert found["weighted_log_loss"] == pytest.approx(every["weighted_log_loss"])
    for kind in ("maximum", "pooled"):
        loss = every["scans"][kind]["weighted_log_loss"]
        assert found["scans"][kind]["weighted_log_loss"] == pytest.approx(loss)
    assert main(["evaluate", "--run", str(crossval), str(scans), "--output", str(both)]) == 0
    frame = pd.read_parquet(scans / "out_of_fold.parquet").set_index("image_id")
    mixed = pd.read_parquet(both / "predictions-folds.parquet").set_index("image_id")
    expected = expit((logit(frame["alone_any"]) + logit(frame["probability_any"])) / 2)
    np.testing.assert_allclose(mixed["probability_any"], expected[mixed.index], rtol=1e-4)
    figures = json.loads((both / "evaluation-folds.json").read_text())
    assert [each["name"] for each in figures["ensemble"]["members"]] == ["cv", "scans"]
    assert figures["ensemble"]["members"][1]["ensemble_minus_without"]["ends"]
    assert (figures["trained_on"], "scans" in figures) == (False, False)
    # New data: the mean over the folds, then over the members.
    table = tmp_path / "new.parquet"
    assert main(["predict", str(both), str(shards), "--output", str(table)]) == 0
    opened = trainer.open_shards(shards)
    runs = [scans / f"fold{i}" for i in range(3)]
    alone = [trainer.load_run(run).predict_split(opened, "test") for run in runs]
    logits = [logit(each[f"{k}_any"]) for k in ("alone", "probability") for each in alone]
    predicted = pd.read_parquet(table)
    assert predicted["image_id"].tolist() == alone[0]["image_id"].tolist()
    np.testing.assert_allclose(predicted["probability_any"], expit(np.mean(logits, 0)), rtol=1e-4)
    # Of scan models alone: the scan as a whole, too.
    whole = trainer.load_run(scans).predict_split(opened, "test")["pooled_any"]
    expected = expit(np.mean([logit(each["pooled_any"]) for each in alone], axis=0))
    np.testing.assert_allclose(whole, expected, rtol=1e-4)


@pytest.mark.system
@pytest.mark.parametrize("control", ["shuffled", "alone"])
def test_a_control_is_asked_as_it_was_trained(
    trained: tuple[Path, dict[str, Any]],
    control: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, _ = trained
    output = tmp_path / "control"
    to_control = ["--control", control, "--output", str(output), "--learning_rate", "0.02"]
    assert main(["train_scans", str(run), *FEWER, *to_control]) == 0
    history = json.loads((output / "history.json").read_text())
    found = json.loads((output / "metrics.json").read_text())
    best = min(row["val_loss"] for row in history)
    assert found["weighted_log_loss"] == pytest.approx(best, rel=1e-4)
    assert found["best_epoch"] > 0
    assert main(["evaluate", "--run", str(output)]) == 0  # from images
    again = json.loads((output / "evaluation-fold0.json").read_text())
    assert again["weighted_log_loss"] == pytest.approx(best, rel=1e-4)
    assert main(["export", "--run", str(output), "--output", f"{tmp_path}/e"]) == 2
    assert f"is a control ({control}), for figures alone" in capsys.readouterr().err


def test_with_labels_of_scans_the_loss_is_that_of_the_pooled_scan(
    trained: tuple[Path, dict[str, Any]],
    shards: Path,
    edit_manifest: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """The slices of a scan differ in their labels; the scan has the highest of each."""
    of_scans, output = edit_manifest(label_level="series"), tmp_path / "of_scans"
    words = [str(trained[0]), "--shards", str(of_scans), "--output", str(output), *FEWER]
    assert main(["train_scans", *words]) == 0
    frame = pd.read_parquet(output / "predictions-fold0.parquet")
    pooled, labels = (
        frame.groupby("series_id")[[f"{kind}_{name}" for name in LABELS]].max().to_numpy()
        for kind in ("pooled", "label")
    )
    losses = [log_loss(*each, labels=[0, 1]) for each in zip(labels.T, pooled.T, strict=True)]
    loss = np.average(losses, weights=WEIGHTS)
    found = json.loads((output / "metrics.json").read_text())
    assert found["scans"]["pooled"]["weighted_log_loss"] == pytest.approx(loss, rel=1e-4)
    best = min(row["val_loss"] for row in json.loads((output / "history.json").read_text()))
    assert found["best_epoch"] > 0
    assert best == pytest.approx(loss, rel=1e-4)
    # A step's loss, and so its gradients, by the labels of slices and of scans.
    setups = {}
    for level, folder in (("series", of_scans), ("image", shards)):
        options = TrainScansOptions(run=trained[0], shards=str(folder), output=f"{tmp_path}/other")
        (setups[level],) = prepare_scans(options)
    training, _ = train_scans.read_features(setups["series"])
    batches = Batches(training, crop=4, size=8, seed=0)
    inputs, truth, weights = next(batches.epoch(0))
    size, (slices, scan) = training[0].features.shape[1], (train_scans.SLICES, train_scans.SCAN)
    other = {slices: 1 - truth[slices], scan: 1 - truth[scan]}
    losses = {}
    for level, setup in setups.items():
        model = train_scans.build_scan_model("convolutions", size, 3, 8, 0.0)
        train_scans.compile_model(model, setup, batches.steps)
        for changed in ((), (slices,), (scan,)):
            labels = truth | {name: other[name] for name in changed}
            found = model.test_on_batch(inputs, labels, weights, return_dict=True)["loss"]
            losses[level, changed] = pytest.approx(float(found), rel=1e-6)
            model.reset_metrics()
    assert losses["series", ()].expected == losses["series", (slices,)]
    assert losses["series", ()].expected != losses["series", (scan,)]
    assert losses["image", ()].expected != losses["image", (slices,)]


def test_no_patient_who_is_left_out_changes_what_is_trained(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan model is trained as before if a patient of the validation fold is poisoned."""
    read, save = train_scans.read_features, checkpoint.save
    states: list[Any] = []

    def poisoned(part: int) -> Callable[[Any], Any]:
        def read_poisoned(setup: Any) -> Any:
            training, validation = read(setup)
            parts = [validation, *training]
            one = parts[part]
            hers = np.arange(len(one.labels)) < one.scans.starts[1]
            labels = np.where(hers[:, None], 1 - one.labels, one.labels)
            features = np.where(hers[:, None], 9, one.features).astype(np.float16)
            parts[part] = replace(one, labels=labels, features=features, logits=-one.logits)
            return parts[1:], parts[0]

        return read_poisoned

    def note(folder: Path, state: checkpoint.Checkpoint) -> None:
        save(folder, state)
        states.append({name: array.copy() for name, array in state.arrays.items()})

    monkeypatch.setattr(checkpoint, "save", note)
    monkeypatch.setattr(train_scans, "finish", lambda *_: None)
    for name, reader in (("a", read), ("b", poisoned(0)), ("c", poisoned(1))):
        monkeypatch.setattr(train_scans, "read_features", reader)
        words = [*FEWER, "--output", str(tmp_path / name)]
        assert main(["train_scans", str(trained[0]), *words]) == 0
    untouched, validation, training = states
    assert untouched.keys() == validation.keys() == training.keys()
    for name, array in untouched.items():
        np.testing.assert_array_equal(array, validation[name], err_msg=name)
    assert any((array != training[name]).any() for name, array in untouched.items())


@pytest.mark.system
def test_a_patient_who_is_left_out_changes_nothing_from_images_to_scan_model(
    split_rows: dict[str, Any],
    shards: Path,
    shards_writer: Callable[..., Path],
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Her images and labels are poisoned; those of a training patient are, to see that it shows."""

    def poisoned(fold: str) -> Path:
        rows = dict(split_rows)
        hers = rows[fold][0]["patient_id"]
        rows[fold] = [
            row | {"image": 255 - row["image"], "label": [1 - each for each in row["label"]]}
            if row["patient_id"] == hers
            else row
            for row in rows[fold]
        ]
        return shards_writer(tmp_path / f"shards-{fold}", rows)

    save, state = checkpoint.save, {}

    def note(folder: Path, saved: checkpoint.Checkpoint) -> None:
        save(folder, saved)
        state.update({name: array.copy() for name, array in saved.arrays.items()})

    monkeypatch.setattr(checkpoint, "save", note)
    options = [f"--{name}={value}" for name, value in (tiny | {"epochs": 1}).items()]
    found = []
    for name, folder in (("a", shards), ("b", poisoned("fold0")), ("c", poisoned("fold1"))):
        run = tmp_path / name
        words = ["--shards", str(folder), "--run", str(run), "--deterministic", "--no-report"]
        assert main(["train", *options, *words]) == 0
        state.clear()
        assert main(["train_scans", str(run), *FEWER]) == 0
        arrays = {f"scans/{name}": array for name, array in state.items()}
        classifier = load_classifier(run / "model.keras")
        arrays |= {f"slices/{i}": array for i, array in enumerate(classifier.get_weights())}
        for split in ("fold1", "fold2"):
            arrays[split] = np.load(run / "features" / f"{split}-features.npy")
        left_out = np.load(run / "features" / "fold0-features.npy")
        found.append((arrays, left_out))
    (untouched, features), (hers, of_hers), (others, _) = found
    assert untouched.keys() == hers.keys()
    for name, array in untouched.items():
        np.testing.assert_array_equal(array, hers[name], err_msg=name)
    differs = (features != of_hers).any(axis=1)
    assert 0 < differs.sum() <= 4
    for name in ("fold2", "slices/0", "scans/weights/head/kernel"):
        assert (untouched[name] != others[name]).any(), name


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
    to_scans = ["--run", f"{run}/scans", "--model", "smallresnet", "--weights", "none"]
    assert main(["train", "--shards", described["shards"]["path"], *to_scans]) == 2
    assert "is a run of train_scans, which resumes it" in capsys.readouterr().err
