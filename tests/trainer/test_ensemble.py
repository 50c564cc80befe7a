"""Several runs as one: invented predictions of trainings, and two real networks."""

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
from trainer.__main__ import main
from trainer.data.shards import read_shard_directory
from trainer.networks.saved_models import load_classifier
from trainer.runs.ensemble import Ensemble, EnsembleRecord
from trainer.runs.trained_on import hash_examples

pytestmark = pytest.mark.usefixtures("without_curves")
LABELS = ("upper", "lower", "any")
PROBABILITIES = [f"probability_{name}" for name in LABELS]
Make = Callable[..., Path]


def sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-logits))


@pytest.fixture
def make(finished: Path, shards: Path, split_rows: dict[str, list[Any]], tmp_path: Path) -> Make:
    """Makes a complete run whose training wrote random predictions; its model is an empty file."""
    opened = read_shard_directory(shards)

    def run(name: str, seed: int, fold: int = 0, skill: float = 2.0, **trained: Any) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        described = json.loads((finished / "run.json").read_text())
        described["options"] |= {"fold": fold, "seed": seed}
        described["shards"] |= trained
        (path / "run.json").write_text(json.dumps(described))
        rows = split_rows[f"fold{fold}"]
        labels = np.array([row["label"] for row in rows])
        noise = np.random.default_rng(seed).normal(size=labels.shape)
        frame = pd.DataFrame({k: [row[k] for row in rows] for k in rows[0] if k not in HIDDEN})
        frame = frame.assign(split=f"fold{fold}")
        frame[PROBABILITIES] = sigmoid(skill * (labels - 0.5) + noise)
        frame[[f"label_{name}" for name in LABELS]] = labels
        # in another order, as if shards had been interleaved otherwise
        frame.sample(frac=1, random_state=seed).to_parquet(path / f"predictions-fold{fold}.parquet")
        training, _ = opened.training_and_validation(fold)
        hash_examples(opened, training).to_parquet(path / "trained_on.parquet")
        (path / "model.keras").touch()
        (path / "metrics.json").write_text("{}")
        return path

    return run


HIDDEN = ("image", "label")


@pytest.fixture
def without_page(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the ensemble's page away, which another test reads: half of an evaluation's time."""
    if not full:
        monkeypatch.setattr("trainer.report.report.write_ensemble_report", lambda _: None)


def read(run: Path, split: str = "fold0") -> pd.DataFrame:
    return pd.read_parquet(run / f"predictions-{split}.parquet").set_index("image_id").sort_index()


def logits_of(frame: pd.DataFrame) -> Any:
    p = frame[PROBABILITIES].to_numpy()
    return np.log(p / (1 - p))


def losses(frame: pd.DataFrame) -> list[float]:
    return [log_loss(frame[f"label_{n}"], frame[f"probability_{n}"], labels=[0, 1]) for n in LABELS]


def evaluate(output: Path, *words: Any) -> int:
    return main(["evaluate", "--run", *map(str, words), "--output", str(output)])


@pytest.mark.parametrize("mean", ["logits", pytest.param("probabilities", marks=pytest.mark.full)])
def test_an_ensemble_is_measured_by_the_mean_of_its_runs(
    make: Make, tmp_path: Path, mean: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make(name, seed) for seed, name in enumerate("abc")]
    output = tmp_path / "ensemble"
    assert evaluate(output, *runs, "--ensemble_mean", mean) == 0
    frames = [read(run) for run in runs]
    if mean == "logits":
        expected = sigmoid(np.mean([logits_of(frame) for frame in frames], axis=0))
    else:
        expected = np.mean([frame[PROBABILITIES] for frame in frames], axis=0)
    found = read(output)
    np.testing.assert_allclose(found[PROBABILITIES], expected, rtol=1e-9)
    figures = json.loads((output / "evaluation-fold0.json").read_text())
    loss = np.average(losses(found), weights=[1, 1, 2])
    assert figures["weighted_log_loss"] == pytest.approx(loss)
    assert (figures["trained_on"], figures["patients"]) == (False, 6)
    described = figures["ensemble"]
    assert (described["mean"], described["weights"]) == (mean, "equal")
    for member, frame in zip(described["members"], frames, strict=True):
        alone = np.average(losses(frame), weights=[1, 1, 2])
        assert member["weighted_log_loss"] == pytest.approx(alone)
        against = member["ensemble_minus_alone"]
        assert against["value"] == pytest.approx(loss - alone)
        assert against["ends"][0] <= against["value"] <= against["ends"][1]
        assert member["weight"] == pytest.approx(1 / 3)
    first = described["members"][0]
    others = frames[1].copy()
    if mean == "logits":
        others[PROBABILITIES] = sigmoid((logits_of(frames[1]) + logits_of(frames[2])) / 2)
    else:
        others[PROBABILITIES] = (frames[1][PROBABILITIES] + frames[2][PROBABILITIES]) / 2
    without = np.average(losses(others), weights=[1, 1, 2])
    assert first["ensemble_minus_without"]["value"] == pytest.approx(loss - without)
    shown = " ".join(capsys.readouterr().out.split())
    assert described["weights"] == "equal"
    assert "weights were fitted" not in shown
    best = min(described["members"], key=lambda each: each["weighted_log_loss"])
    assert f"than that of {best['name']}, its best member" in shown


@pytest.mark.usefixtures("without_page")
def test_weights_are_fitted_kept_and_used(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make("one", 0), make("bad", 1, skill=-1), make("two", 2)]
    output = tmp_path / "ensemble"
    assert evaluate(output, *runs, "--fit_weights") == 0
    kept = json.loads((output / "ensemble.json").read_text())
    assert kept["runs"] == [*map(str, runs)]
    assert sum(kept["weights"]) == pytest.approx(1)
    assert kept["weights"][1] == 0
    assert min(kept["weights"][0], kept["weights"][2]) > 0.1
    crossed = json.loads((output / "evaluation-fold0.json").read_text())
    assert crossed["ensemble"]["weights"] == "cross-fitted by patient"
    assert [each["weight"] for each in crossed["ensemble"]["members"]] == kept["weights"]
    capsys.readouterr()
    assert main(["evaluate", "--run", str(output)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "weights were fitted on these slices" in shown
    assert "Next: " not in shown  # one model cannot be exported for several
    again = json.loads((output / "evaluation-fold0.json").read_text())
    assert again["weighted_log_loss"] < crossed["weighted_log_loss"]
    expected = sigmoid(np.tensordot(kept["weights"], [logits_of(read(run)) for run in runs], 1))
    np.testing.assert_allclose(read(output)[PROBABILITIES], expected, rtol=1e-6)
    (output / "temperatures.json").touch()
    assert evaluate(output, *runs, "--fit_weights") == 2
    assert "has a calibration for its present weights" in capsys.readouterr().err


@pytest.fixture
def cv(make: Make) -> Callable[[str, int], Path]:
    """Makes a cross-validation of three folds."""

    def crossval(name: str, seed: int) -> Path:
        folds = [make(f"{name}/fold{fold}", seed + fold, fold) for fold in range(3)]
        (folds[0].parent / "crossval.json").write_text("{}")
        return folds[0].parent

    return crossval


def test_a_cross_validation_answers_every_slice_by_the_run_that_left_it_out(
    cv: Callable[[str, int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = cv("cv", 0)
    assert main(["evaluate", "--run", str(one)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Out of fold: every slice by the network that was not trained on its fold" in shown
    figures = json.loads((one / "evaluation-folds.json").read_text())
    assert (figures["examples"], figures["trained_on"]) == (61, False)
    assert "not trained on its fold" in (one / "report.html").read_text()
    found = read(one, "folds")
    folds = pd.concat([read(one / f"fold{i}", f"fold{i}") for i in range(3)]).sort_index()
    np.testing.assert_allclose(found[PROBABILITIES], folds[PROBABILITIES], rtol=1e-9)
    assert found["split"].tolist() == folds["split"].tolist()
    # Two of them: the mean of two answers for each slice.
    two, output = cv("other", 10), tmp_path / "both"
    assert evaluate(output, one, two) == 0
    page = (output / "report.html").read_text()
    assert "Ensemble less ensemble without it" in page
    assert "<h1>both, measured on folds</h1>" in page
    assert "Course of the training" not in page
    others = pd.concat([read(two / f"fold{i}", f"fold{i}") for i in range(3)]).sort_index()
    expected = sigmoid((logits_of(folds) + logits_of(others)) / 2)
    np.testing.assert_allclose(read(output, "folds")[PROBABILITIES], expected, rtol=1e-9)


@pytest.mark.usefixtures("without_page")
def test_no_run_answers_for_whom_it_was_trained_on(
    make: Make, cv: Callable[[str, int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = make("a", 0), make("b", 1), make("c", 2, fold=1)
    half = cv("half", 5)
    (half / "crossval.json").unlink()
    folds = [half / f"fold{i}" for i in range(3)]
    output = tmp_path / "ensemble"
    brain = [{"name": "brain", "center": 35, "width": 80}] * 3
    labels = ["lower", "upper", "any"]
    made = {"voi": "linear", "hu_repair": "auto", "image_id": "auto"}
    x, y = make("x", 3, preprocessing=made), make("y", 4, preprocessing=made | {"voi": "sigmoid"})
    z = make("z", 5, preprocessing=made | {"image_id": "file_name"})
    whole, others = cv("whole", 20), cv("others", 30)
    for path in others.glob("fold*/run.json"):
        described = json.loads(path.read_text())
        described["shards"]["digest"] = "e" * 64
        path.write_text(json.dumps(described))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    cases: list[tuple[str, list[Any]]] = [
        ("left out different folds (fold1 of", [a, c]),
        ("--run: c was trained on fold0; want slices that no run", [a, c, "--split", "fold0"]),
        ("--run: a was trained on fold1; want", [a, b, "--split", "all"]),
        ("left out different folds", folds),
        ("half: the cross-validation is not complete", [a, half]),
        ("whole and others are cross-validations of different shards", [whole, others]),
        ("a was trained on", [whole, a]),
        ("names a run twice", [a, a]),
        ("no run.json, so no run directory", [a, tmp_path / "nowhere"]),
        ("was trained on windows brain 35 80, brain 35 80", [a, make("w", 6, windows=brain)]),
        ("was trained on labels lower, upper, any,", [a, make("l", 7, labels=labels)]),
        ('y: was trained on --voi "sigmoid"', [x, y]),
        ("--fit_weights and --fit_temperature: ", [a, b, "--fit_weights", "--fit_temperature"]),
    ]
    for message, words in cases:
        assert evaluate(output, *words) == 2, message
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not output.exists()
    assert evaluate(output, x, z) == 0
    for message, folder, words in (
        ("is another ensemble's; choose another folder", output, [a, b]),
        ("exists and is not an ensemble's folder", tmp_path / "full", [a, b]),
        ("--output", output, [a]),
        ("--fit_weights: ", a, [a, "--fit_weights"]),
        ("--temperature: ", output, [x, z, "--temperature"]),
    ):
        assert evaluate(folder, *words) == 2, message
        assert message in capsys.readouterr().err
    assert main(["evaluate", "--run", str(output), "--ensemble_mean", "probabilities"]) == 2
    assert "was written with logits" in capsys.readouterr().err
    (output / "ensemble.json").write_text(json.dumps({"runs": [str(a), str(b)], "weights": [1, 1]}))
    assert main(["evaluate", "--run", str(output)]) == 2
    assert "weights: must be one per run, with the sum 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("paths", "titles"),
    [
        (["/a/one", "/b/two"], ("one", "two")),
        (["/a/b/cv/fold0", "/a/c/cv/fold0"], ("b/cv/fold0", "c/cv/fold0")),
        (["/a/cv", "/a/cv/x/cv"], ("cv", "cv/x/cv")),
    ],
)
def test_members_have_short_names(paths: list[str], titles: tuple[str, ...]) -> None:
    assert Ensemble(Path("e"), (), EnsembleRecord(paths)).titles == titles


def test_ensembles_side_by_side_and_what_cannot_be_done_with_one(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make(name, seed) for seed, name in enumerate("abc")]
    one, two, page = tmp_path / "one", tmp_path / "two", tmp_path / "compare.html"
    assert evaluate(one, *runs[:2]) == evaluate(two, *runs[1:]) == 0
    assert main(["report", "--run", str(one)]) == 0
    assert "Ensemble less ensemble without it" in (one / "report.html").read_text()
    assert main(["compare", "--runs", str(one), str(two), "--output", str(page)]) == 0
    written = page.read_text()
    assert "Verdict on two" in written
    assert "a, b" in written
    assert "Training" not in written
    figures = json.loads((two / "evaluation-fold0.json").read_text())
    assert f"{figures['weighted_log_loss']:.4f}" in written
    (one / "evaluation-fold0.json").unlink()
    for name, words in (
        ("report", ["--run", str(one)]),
        ("compare", ["--runs", str(one), str(two), "--output", str(page)]),
        ("export", ["--run", str(two), "--output", f"{tmp_path}/e"]),
        ("train_scans", ["--run", str(two)]),
    ):
        capsys.readouterr()
        assert main([name, *words]) == 2, name
        error = capsys.readouterr().err
        wanted = {"export": f"such as {runs[1]}", "train_scans": "want one of its runs"}
        assert wanted.get(name, "`evaluate --run") in error
        assert error.count("\n") == 1


@pytest.mark.usefixtures("without_page")
def test_two_networks_end_to_end(
    finished: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables, the page and Python give the mean of what each run alone gives."""
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    model = load_classifier(other / "model.keras")
    head = model.get_layer("core").get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(size=head.kernel.shape))
    model.save(other / "model.keras")
    (other / "metrics.json").unlink()  # so that its predictions are computed
    opened, runs = trainer.open_shards(shards), [finished, other]
    alone = [trainer.load_run(run).predict_split(opened, "fold1") for run in runs]
    expected = sigmoid(np.mean([logits_of(frame) for frame in alone], axis=0))
    both = trainer.load_run(runs)
    images = next(trainer.examples(opened, "fold1"))["image"]
    np.testing.assert_allclose(both.predict(images), expected, rtol=1e-5)
    predict = ["predict", *map(str, runs), str(shards), "--split", "fold1", "--output"]
    assert main([*predict, str(tmp_path / "u.csv"), "--temperature"]) == 2
    assert "--temperature: is kept in an ensemble's folder" in capsys.readouterr().err
    assert main([*predict, str(tmp_path / "folder")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "fold1: finished, other was trained on all of its patients" in told
    found = pd.read_csv(tmp_path / "folder" / "slices.csv").set_index("image_id")
    found = found.loc[alone[0]["image_id"]]
    np.testing.assert_allclose(found[PROBABILITIES], expected, rtol=1e-5)
    page = (tmp_path / "folder" / "report.html").read_text()
    assert "mean of logits of 2 networks" in page
    assert page.count('<img src="data:image/jpeg;') == 5
    # One run's predictions are read, the other's computed.
    assert evaluate(tmp_path / "ensemble", *runs) == 0
    answers = both.predict_split(opened, "fold0").set_index("image_id").sort_index()
    found = read(tmp_path / "ensemble")
    np.testing.assert_allclose(found[PROBABILITIES], answers[PROBABILITIES], rtol=1e-4)
