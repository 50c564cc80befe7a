"""`evaluate` and `predict` on a finished run."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

import trainer
from headct.errors import UsageError
from trainer.__main__ import main
from trainer.data.shards import read_shard_directory
from trainer.networks.saved_models import load_classifier


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_evaluate_gives_what_training_gave(run: Path, shards: Path) -> None:
    assert main(["evaluate", "--run", str(run), "--batch_size", "5"]) == 0
    found = json.loads((run / "evaluation-fold0.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    assert found["examples"] == 21
    assert found["weighted_log_loss"] == pytest.approx(metrics["weighted_log_loss"], rel=1e-5)


def test_evaluate_another_split(run: Path, shards: Path) -> None:
    argv = ["evaluate", "--run", str(run), "--shards", str(shards), "--split", "fold1"]
    assert main(argv) == 0
    assert json.loads((run / "evaluation-fold1.json").read_text())["examples"] == 20


def test_what_training_predicted_is_never_replaced(
    run: Path, split_rows: dict[str, Any], shards_writer: Callable[..., Path], tmp_path: Path
) -> None:
    written = (run / "predictions-fold0.parquet").stat().st_mtime_ns
    plain = pd.read_parquet(run / "predictions-fold0.parquet")
    other = shards_writer(tmp_path / "other", {"fold0": split_rows["fold2"]})
    evaluate = ["evaluate", "--run", str(run)]
    variants = {
        "fold0": [],
        "fold0-tta": ["--tta"],
        "fold0-temperature": ["--fit_temperature"],
        "fold0-tta-temperature": ["--tta", "--temperature"],
        f"fold0-{read_shard_directory(other).digest()[:8]}": ["--shards", str(other)],
    }
    for name, flags in variants.items():
        assert main([*evaluate, *flags]) == 0
        found = json.loads((run / f"evaluation-{name}.json").read_text())
        assert found["options"]["tta"] == ("--tta" in flags)
        assert (found["options"]["temperatures"] is not None) == ("temperature" in name)
        assert found["trained_on"] is ("--shards" in flags)
        frame = pd.read_parquet(run / f"predictions-{name}.parquet")
        assert len(frame) == found["examples"]
        if flags and len(frame) == len(plain):
            assert not np.allclose(frame["probability_any"], plain["probability_any"], atol=1e-6)
    assert (run / "predictions-fold0.parquet").stat().st_mtime_ns == written
    assert len(list(run.glob("predictions-*.parquet"))) == len(variants)


def test_other_shards_are_measured_by_their_own_slices(
    run: Path,
    shards: Path,
    split_rows: dict[str, Any],
    shards_writer: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    splits = {"fold0": "fold2", "fold1": "fold1", "holdout": "fold0", "test": "test"}
    rows = {k: split_rows[v] for k, v in splits.items()}
    other = shards_writer(tmp_path / "other", rows, label_level="study")
    digest = read_shard_directory(other).digest()[:8]
    sizes = {k: len(split_rows[v]) for k, v in splits.items()}
    labeled = sum(sizes.values()) - sizes["test"]
    evaluate = ["evaluate", "--run", str(run), "--shards", str(other)]
    assert main(evaluate) == 0
    found = json.loads((run / f"evaluation-fold0-{digest}.json").read_text())
    assert (found["examples"], found["options"]["shards"]) == (sizes["fold0"], str(other))
    line = f"{other}: measuring fold0, {sizes['fold0']} of {labeled} labeled slices; --split all"
    shown = capsys.readouterr().out
    assert line in shown
    assert found["label_level"] == "study"
    assert shown.count("Labels are per study: a slice is judged by the labels of its study") == 1
    assert main([*evaluate, "--split", "all"]) == 0
    found = json.loads((run / f"evaluation-all-{digest}.json").read_text())
    assert (found["split"], found["examples"]) == ("all", labeled)
    # Those of fold1 and fold2; not the six of fold0.
    assert (found["trained_on"], found["patients"]) == (10, 16)
    assert "measuring" not in capsys.readouterr().out
    frame = pd.read_parquet(run / f"predictions-all-{digest}.parquet")
    assert set(frame["image_id"]) == {
        row["image_id"] for k, v in splits.items() if k != "test" for row in split_rows[v]
    }
    assert main(["evaluate", "--run", str(run), "--split", "all"]) == 0
    assert json.loads((run / "evaluation-all.json").read_text())["trained_on"]
    shown = capsys.readouterr().out
    assert "all was trained on" in shown
    assert "Labels are per" not in shown


def test_a_split_that_was_trained_on_is_marked(
    run: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--run", str(run), "--split", "fold1"]) == 0
    shown = capsys.readouterr().out
    assert "fold1 was trained on" in shown
    assert "Fitted on patients of the training" not in shown
    assert json.loads((run / "evaluation-fold1.json").read_text())["trained_on"]
    assert main(["evaluate", "--run", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "was trained on" not in shown
    assert f"Next: python -m trainer export --run {run} " in shown


def test_a_label_without_positives_in_training_is_guessed_by_what_the_head_begins_with(
    run: Path,
) -> None:
    description = json.loads((run / "run.json").read_text())
    description["shards"]["prevalence"] = [0.0, 0.5, 1.0]
    (run / "run.json").write_text(json.dumps(description))
    assert main(["evaluate", "--run", str(run)]) == 0
    found = json.loads((run / "evaluation-fold0.json").read_text())
    share = [each["positives"] / found["examples"] for each in found["labels"].values()]
    prior = np.array([1e-4, 0.5, 1 - 1e-4])
    losses = -(share * np.log(prior) + (1 - np.array(share)) * np.log(1 - prior))
    assert found["prevalence_log_loss"] == pytest.approx(np.average(losses, weights=[1, 1, 2]))


def test_logits_that_are_no_numbers_end_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_classifier(run / "model.keras")
    head = model.get_layer("core").get_layer("head")
    head.bias.assign([0.0, np.nan, 0.0])
    model.save(run / "model.keras")
    assert main(["evaluate", "--run", str(run)]) == 3
    error = capsys.readouterr().err
    assert "21 of 21 slices of fold0 a logit that is not finite" in error
    assert error.count("\n") == 1


def test_a_submission_has_a_row_an_image_and_label(run: Path, shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "submission.csv"
    argv = ["predict", "--run", str(run), "--shards", str(shards), "--output", str(output)]
    assert main(argv) == 0
    with output.open() as file:
        rows = list(csv.DictReader(file))
    expected = {f"ID_9_{i:04d}_{label}" for i in range(7) for label in ("upper", "lower", "any")}
    assert {row["ID"] for row in rows} == expected
    assert len(rows) == 21
    assert all(0 <= float(row["Label"]) <= 1 for row in rows)
    table = tmp_path / "table.parquet"
    assert main([*argv[:-1], str(table)]) == 0
    assert [each.name for each in output.parent.iterdir()] == ["submission.csv"]  # one file
    frame = pd.read_parquet(table).set_index("image_id")
    assert len(frame) == 7
    for row in rows:
        image_id, _, label = row["ID"].rpartition("_")
        assert float(row["Label"]) == pytest.approx(frame.loc[image_id, f"probability_{label}"])


def test_a_sample_submission_gives_the_rows(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample, output = tmp_path / "sample.csv", tmp_path / "submission.csv"
    wanted = ["ID_rejected_any", *(f"ID_9_{i:04d}_any" for i in reversed(range(6)))]
    sample.write_text("ID,Label\n" + "".join(f"{each},0.5\n" for each in wanted))
    argv = ["predict", "--run", str(run), "--shards", str(shards), "--output", str(output)]
    assert main([*argv, "--sample_submission", str(sample)]) == 0
    told = capsys.readouterr().out
    assert "1 slices of" in told
    assert "they get the prevalence of the training data" in told
    assert "1 slices of the shards are not in the sample" in told.replace("\n", " ")
    rows = pd.read_csv(output)
    assert rows["ID"].tolist() == wanted
    prevalence = json.loads((run / "run.json").read_text())["shards"]["prevalence"]
    assert rows["Label"][0] == pytest.approx(prevalence[-1])
    assert main([*argv, "--sample_submission", str(run / "run.json")]) == 2


def test_figures_by_study_and_interval(run: Path) -> None:
    found = json.loads((run / "metrics.json").read_text())
    frame = pd.read_parquet(run / "predictions-fold0.parquet")
    names = ["upper", "lower", "any"]
    studies = frame.groupby("study_id")[
        [f"{kind}_{name}" for kind in ("label", "probability") for name in names]
    ].max()
    assert found["studies"]["examples"] == len(studies) == 6
    for name in names:
        expected = log_loss(studies[f"label_{name}"], studies[f"probability_{name}"], labels=[0, 1])
        assert found["studies"]["labels"][name]["log_loss"] == pytest.approx(expected)
    low, high = found["intervals_95"]["weighted_log_loss"]
    assert low <= found["weighted_log_loss"] <= high
    assert found["patients"] == 6
    assert found["prevalence_log_loss"] > 0
    assert 0 <= found["labels"]["any"]["calibration_error"] <= 1


def test_temperatures_are_kept_and_applied(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = ["evaluate", "--run", str(run)]
    assert "has none" in refusal([*evaluate, "--temperature"], capsys)
    assert "choose one" in refusal([*evaluate, "--temperature", "--fit_temperature"], capsys)
    before = json.loads((run / "metrics.json").read_text())["weighted_log_loss"]
    assert main([*evaluate, "--fit_temperature"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    crossed = json.loads((run / "evaluation-fold0-temperature.json").read_text())
    how = crossed["calibration"]
    assert (how["figures"], how["parts"]) == ("cross-fitted by patient", 6)
    assert how["log_loss_without"] == pytest.approx(before, rel=1e-5)
    assert how["log_loss_on_fitted_slices"] < before
    assert how["log_loss_on_fitted_slices"] < crossed["weighted_log_loss"]
    losses = (*list(how.values())[2:], crossed["weighted_log_loss"])
    assert all(f"{each:.4f}" in told for each in losses)
    assert "The losses and calibration errors here are cross-fitted." in told
    worse = crossed["weighted_log_loss"] > how["log_loss_without"]
    assert ("6 patients are too few to fit them by" in told) == worse
    metrics = json.loads((run / "metrics.json").read_text())
    for name, each in crossed["labels"].items():
        assert each["roc_auc"] == metrics["labels"][name]["roc_auc"]
        assert each["log_loss"] != pytest.approx(metrics["labels"][name]["log_loss"], rel=1e-3)
    assert set(json.loads((run / "temperatures.json").read_text())) == {"upper", "lower", "any"}
    # What is kept was fitted on all of these slices, which flatters their figures.
    assert main([*evaluate, "--temperature"]) == 0
    assert "were fitted on these slices, so the figures are too good" in capsys.readouterr().out
    again = json.loads((run / "evaluation-fold0-temperature.json").read_text())
    assert again["calibration"] == {"figures": "of slices that it was fitted on"}
    assert again["weighted_log_loss"] == pytest.approx(how["log_loss_on_fitted_slices"], rel=1e-5)
    for key in ("temperatures", "biases"):
        assert again["options"][key] == crossed["options"][key]
        assert again["options"][key].keys() == {"upper", "lower", "any"}
    frame = pd.read_parquet(run / "predictions-fold0-temperature.parquet")
    loaded = trainer.load_run(run, temperature=True)
    found = loaded.predict_split(trainer.open_shards(shards), "fold0")
    np.testing.assert_allclose(found["probability_any"], frame["probability_any"], rtol=1e-4)
    assert main([*evaluate, "--temperature", "--split", "fold1"]) == 0
    other = json.loads((run / "evaluation-fold1-temperature.json").read_text())
    assert other["calibration"] == {"figures": "of other slices"}
    assert main([*evaluate, "--fit_temperature", "--split", "fold1"]) == 0
    assert "make probabilities of other patients too extreme" in capsys.readouterr().out
    # An earlier version's file.
    (run / "temperatures.json").write_text('{"upper": 2, "lower": 1, "any": 0.5}')
    assert main([*evaluate, "--temperature", "--tta"]) == 0
    assert "slices that temperatures.json does not name" in capsys.readouterr().out
    old = json.loads((run / "evaluation-fold0-tta-temperature.json").read_text())
    assert old["calibration"] == {"figures": "unknown"}
    assert old["options"]["biases"] == {"upper": 0, "lower": 0, "any": 0}


def test_one_patient_cannot_be_cross_fitted(
    run: Path,
    split_rows: dict[str, Any],
    shards_writer: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = shards_writer(tmp_path / "one", {"fold0": split_rows["fold0"][:4]})
    argv = ["evaluate", "--run", str(run), "--shards", str(other), "--fit_temperature"]
    assert "fold0 has one patient; it takes two or more" in refusal(argv, capsys)
    assert not (run / "temperatures.json").exists()


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("trainer: ")
    return error


def test_what_cannot_be_answered(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = ["evaluate", "--run", str(run)]
    assert "no split 'test2'; there are fold0" in refusal([*evaluate, "--split", "test2"], capsys)
    assert "has no labels" in refusal([*evaluate, "--split", "test"], capsys)
    assert "no run.json" in refusal(["evaluate", "--run", str(tmp_path)], capsys)
    absent = ["predict", str(tmp_path / "absent"), str(shards)]
    assert "absent: no run.json, so no run directory" in refusal(absent, capsys)
    (tmp_path / "folder.csv").mkdir()
    predict = ["predict", "--run", str(run), "--shards", str(shards)]
    predict += ["--output", str(tmp_path / "folder.csv")]
    assert "is a folder" in refusal(predict, capsys)
    (run / "model.keras").unlink()
    assert "no model yet" in refusal(evaluate, capsys)


def test_no_test_split(
    run: Path, shards: Path, edit_manifest: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    folder = edit_manifest(splits={"fold0": splits["fold0"]})
    argv = ["predict", "--run", str(run), "--shards", str(folder), "--output", str(run / "s.csv")]
    assert "no split 'test'; there are fold0" in refusal(argv, capsys)
    assert not (run / "s.csv").exists()


def test_logits_are_smoothed_along_z(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = ["evaluate", "--run", str(run)]
    assert "`evaluate --fit_smooth_z` fits it" in refusal([*evaluate, "--smooth_z"], capsys)
    assert main([*evaluate, "--fit_smooth_z"]) == 0
    # The labels of this data are drawn for each slice.
    assert "No clear gain on 6 patients: leave --smooth_z off." in capsys.readouterr().out
    found = json.loads((run / "evaluation-fold0.json").read_text())
    assert found["smoothing"]["figures"] == "cross-fitted by patient"
    assert found["options"]["smooth_z_amount"] is None
    kept = {"width_mm": 5.0, "amount": 1.0, "split": "fold0", "digest": found["options"]["digest"]}
    (run / "smoothing.json").write_text(json.dumps(kept))
    assert main([*evaluate, "--smooth_z", "--fit_temperature"]) == 0
    assert "of slices that it was fitted on" in capsys.readouterr().out
    figures = json.loads((run / "evaluation-fold0-smooth_z-temperature.json").read_text())
    assert figures["options"]["smooth_z_width_mm"] == 5.0
    assert figures["smoothing"]["with"]["mean_roc_auc"] == pytest.approx(figures["mean_roc_auc"])
    table = tmp_path / "table.parquet"
    predict = ["predict", "--run", str(run), "--shards", str(shards), "--output", str(table)]
    predict += ["--split", "fold0"]
    both = ["--smooth_z", "--temperature"]
    assert "were fitted with --smooth_z" in refusal([*predict, "--temperature"], capsys)
    export = ["export", "--run", str(run), "--output", str(tmp_path / "e"), "--temperature"]
    assert "were fitted with --smooth_z" in refusal(export, capsys)
    assert main([*predict, *both]) == 0
    loaded = trainer.load_run(run, temperature=True, smooth_z=True)
    found = loaded.predict_split(trainer.open_shards(shards), "fold0")
    pd.testing.assert_frame_equal(found, pd.read_parquet(table))
    plain = pd.read_parquet(run / "predictions-fold0.parquet")
    of_one = (plain["series_id"] == plain["series_id"][0]).to_numpy()
    z = plain.loc[of_one, "position_z"].to_numpy(float)
    weights = np.exp(-(np.subtract.outer(z, z) ** 2) / 50)
    logit = np.log(plain["probability_any"] / (1 - plain["probability_any"]))[of_one]
    smoothed = weights / weights.sum(axis=1, keepdims=True) @ logit
    fitted = json.loads((run / "temperatures.json").read_text())["any"]
    expected = 1 / (1 + np.exp(-(smoothed / fitted["temperature"] + fitted["bias"])))
    np.testing.assert_allclose(found.loc[of_one, "probability_any"], expected, atol=1e-5)
    with pytest.raises(UsageError, match="images alone have no place along z"):
        loaded.predict(np.zeros((1, 32, 32, 3), np.uint8))


def test_a_labeled_holdout(
    run: Path, split_rows: dict[str, Any], shards_writer: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shards_writer(tmp_path / "more", {"holdout": split_rows["fold2"]})
    argv = ["evaluate", "--run", str(run), "--shards", str(folder), "--split", "holdout"]
    assert main(argv) == 0
    (found,) = run.glob("evaluation-holdout-*.json")
    assert json.loads(found.read_text())["examples"] == 20


RSNA = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]


@pytest.mark.parametrize("claimed", [[], RSNA], ids=["none", "those of earlier versions"])
def test_unlabeled_shards_take_the_labels_of_the_run(
    run: Path,
    rows_maker: Callable[..., Any],
    shards_writer: Callable[..., Path],
    tmp_path: Path,
    claimed: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [
        row | {"label": [-1] * len(claimed)} for row in rows_maker(5, 32, seed=9, labeled=False)
    ]
    folder = shards_writer(tmp_path / "unlabeled", {"test": rows}, labels=claimed)
    table = tmp_path / "table.parquet"
    argv = ["--run", str(run), "--shards", str(folder)]
    assert main(["predict", *argv, "--output", str(table)]) == 0
    frame = pd.read_parquet(table)
    assert set(frame["image_id"]) == {row["image_id"] for row in rows}
    labels = ["upper", "lower", "any"]
    assert frame.columns.tolist()[-6:] == [
        f"{kind}_{label}" for kind in ("probability", "label") for label in labels
    ]
    assert (frame[[f"label_{label}" for label in labels]] == -1).all(axis=None)
    same = trainer.load_run(run).predict_split(trainer.open_shards(folder), "test")
    pd.testing.assert_frame_equal(same, frame)
    assert main(["predict", *argv, "--output", str(tmp_path / "s.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "s.csv")) == 5 * 3
    capsys.readouterr()
    wanted = "trained on labels" if claimed else "has no labels to measure by"
    assert wanted in refusal(["evaluate", *argv, "--split", "test"], capsys)
    assert wanted in refusal(["evaluate", *argv], capsys)
    train = ["train", "--shards", str(folder), "--run", str(tmp_path / "new")]
    assert "no labeled folds, so nothing to train on" in refusal(train, capsys)


def test_labeled_shards_of_other_labels_windows_or_size_are_refused(
    run: Path,
    rows_maker: Callable[..., Any],
    shards_writer: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = {name: rows_maker(4, 32, seed=9) for name in ("fold0", "test")}
    windows = [{"name": "brain", "center": 35, "width": 80}] * 3
    others = {
        shards_writer(tmp_path / "labels", rows, labels=["lower", "upper", "any"]): (
            "labels ['upper', 'lower', 'any'], here: ['lower', 'upper', 'any']"
        ),
        shards_writer(tmp_path / "windows", rows, windows=windows): "windows ",
        shards_writer(tmp_path / "size", {"fold0": rows_maker(4, 16, seed=9)}): "image ",
    }
    for folder, message in others.items():
        argv = ["--run", str(run), "--shards", str(folder)]
        for command in (["evaluate"], ["predict", "--output", str(tmp_path / "s.csv")]):
            error = refusal([*command, *argv], capsys)
            assert f"{folder}: the run was trained on {message}" in error
            assert ", here: " in error


def test_images_that_were_made_otherwise_are_said(
    run: Path,
    split_rows: dict[str, Any],
    shards_writer: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    description = json.loads((run / "run.json").read_text())
    description["shards"]["preprocessing"] = {"voi": "linear", "hu_repair": "auto"}
    (run / "run.json").write_text(json.dumps(description))
    for voi, said in (("sigmoid", True), ("linear", False)):
        made = {"voi": voi, "hu_repair": "auto", "image_id": "file_name"}
        folder = shards_writer(tmp_path / voi, {"test": split_rows["test"]}, options=made)
        argv = ["predict", "--run", str(run), "--shards", str(folder)]
        assert main([*argv, "--output", str(tmp_path / "s.csv")]) == 0
        line = 'otherwise than the run\'s: --voi "sigmoid", not "linear"\n'
        assert (line in capsys.readouterr().out.replace("\n ", " ")) == said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("run/predictions-fold0.parquet", "would be among the files of a run"),
        ("run/predictions-other.parquet", "would be among the files of a run"),
        ("run/trained_on.parquet", "would be among the files of a run"),
        ("link/predictions-fold0.parquet", "would be among the files of a run"),
        ("shards/index.parquet", "would be among the files of a run or of shards"),
        ("crossval/out_of_fold.parquet", "would be among the files of a run"),
        ("file/table.parquet", "cannot be written (Not a directory)"),
        ("/proc/table.parquet", "cannot be written ("),
        (f"{'n' * 300}.csv", "cannot be written (File name too long)"),
        (f"{'n' * 245}.csv", "cannot be written (File name too long)"),
        (f"{'n' * 300}/s.csv", "cannot be written (File name too long)"),
        ("table.json", "want a name in .csv or .parquet"),
        ("table.txt", "want a name in .csv or .parquet"),
        ("table.CSV", "want a name in .csv or .parquet"),
    ],
)
def test_no_file_of_others_is_replaced_and_none_is_predicted_in_vain(
    run: Path,
    shards: Path,
    tmp_path: Path,
    name: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also in a folder that refuses everyone, the superuser too."""
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "shards").symlink_to(shards)
    (tmp_path / "crossval").mkdir()
    (tmp_path / "crossval" / "crossval.json").write_text("{}")
    (tmp_path / "file").write_text("")
    before = (run / "predictions-fold0.parquet").read_bytes()
    monkeypatch.setattr("trainer.evaluation.predict.predict", None)
    argv = ["predict", "--run", str(run), "--shards", str(shards)]
    assert message in refusal([*argv, "--output", str(tmp_path / name)], capsys)
    assert (run / "predictions-fold0.parquet").read_bytes() == before


def test_a_table_has_no_rows_of_a_sample(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["predict", "--run", str(run), "--shards", str(shards), "--sample_submission", "s.csv"]
    error = refusal([*argv, "--output", str(tmp_path / "t.parquet")], capsys)
    assert "--sample_submission: want a submission, --output NAME.csv" in error
    assert "is --sample_submission, too" in refusal([*argv, "--output", "./s.csv"], capsys)


@pytest.mark.parametrize(
    ("trained", "flags", "expected"),
    [
        ("off", [], False),
        ("auto", [], True),
        ("auto", ["--xla", "off"], False),
        ("off", ["--xla", "on"], True),
    ],
)
def test_what_training_compiles_prediction_compiles(
    run: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trained: str,
    flags: list[str],
    expected: bool,
) -> None:
    """As on a GPU, where Keras would compile what nothing is said of."""
    description = json.loads((run / "run.json").read_text())
    description["options"]["xla"] = trained
    (run / "run.json").write_text(json.dumps(description))
    compiled = []

    def note(model: Any, images: Any, flip: bool) -> Any:
        compiled.append(model.jit_compile)
        return np.zeros((len(images), 3), np.float32)

    monkeypatch.setattr("trainer.networks.saved_models.compute_capability", lambda: (9, 0))
    monkeypatch.setattr("trainer.evaluation.predict_models.send", note)
    assert main(["evaluate", "--run", str(run), *flags]) == 0
    output = ["--shards", str(shards), "--output", str(tmp_path / "submission.csv")]
    assert main(["predict", "--run", str(run), *output, *flags]) == 0
    assert set(compiled) == {expected}


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_after_shards_have_moved_the_option_that_names_them_is_said(
    run: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    description = json.loads((run / "run.json").read_text())
    description["shards"]["path"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(description))
    assert main([command, "--run", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"if the shards of {run} have moved, --shards names them" in error
    assert error.count("\n") == 1
    assert main([command, "--run", str(run), "--shards", str(tmp_path / "gone")]) == 2
    assert "have moved" not in capsys.readouterr().err
