import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from tests.browser import LIGHT_PHONE, VIEWS, faults_of_page
from tests.trainer.made_runs import make_run
from trainer.__main__ import main
from trainer.report.compare import verdict


def compare(*runs: Path) -> int:
    output = runs[0].parent / "compare.html"
    return main(["compare", "--runs", *map(str, runs), "--output", str(output)])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    make_run(tmp_path / "weak", skill=1.0, seed=1, learning_rate=0.1)
    make_run(tmp_path / "strong", skill=4.0, seed=2, learning_rate=0.2)
    return tmp_path / "weak", tmp_path / "strong"


def test_figures_and_differences(pair: tuple[Path, Path]) -> None:
    assert compare(*pair) == 0
    page = (pair[0].parent / "compare.html").read_text()
    found = []
    for run in pair:
        frame = pd.read_parquet(run / "predictions-fold0.parquet")
        found.append(average_precision_score(frame["label_upper"], frame["probability_upper"]))
        assert f"{found[-1]:.3f} <small>" in page
    assert f"{found[1] - found[0]:+.3f} <small>+" in page
    assert "better" in page
    assert "undecided" not in page
    assert "SECRET" not in page


def test_scans_are_drawn_with_a_curve_per_run_and_without_images(pair: tuple[Path, Path]) -> None:
    for run in pair:
        path = run / "predictions-fold0.parquet"
        frame = pd.read_parquet(path)
        z = 5.0 * np.arange(len(frame))
        frame.assign(position_z=z).to_parquet(path)
    assert compare(*pair) == 0
    page = (pair[0].parent / "compare.html").read_text()
    assert "Mended by strong" in page
    assert re.search(r"From weak to strong, the loss of \d+ of 30 scans falls", page)
    assert "upper, strong: highest" in page
    assert "data:image" not in page
    for identifier in ("SECRET", "STUDY_", "SERIES_", "ID_0"):
        assert identifier not in page


def test_only_the_options_that_differ(pair: tuple[Path, Path]) -> None:
    compare(*pair)
    page = (pair[0].parent / "compare.html").read_text()
    assert re.search(r"learning_rate</span></th><td>0.1</td><td>0.2</td>", page)
    assert "label_weights</span>" not in page


def test_losses_of_different_weights_are_not_drawn_together(tmp_path: Path) -> None:
    names = ("upper", "lower", "any")
    make_run(tmp_path / "two", names=names)
    make_run(tmp_path / "too", names=names)
    make_run(tmp_path / "six", names=names, label_weights="any=6")
    assert compare(tmp_path / "two", tmp_path / "six", tmp_path / "too") == 0
    page = (tmp_path / "compare.html").read_text()
    drawn = re.findall(r"Validation loss, weights: (.*?), by epoch; ([^\"<]*)", page)
    assert [(weights, re.findall(r"\w+(?=: )", last)) for weights, last in drawn] == [
        ("any 2, others 1", ["two", "too"]),
        ("any 6, others 1", ["six"]),
    ]
    assert "no scale in common" in page
    assert "Mean, weights: any 2, others 1" in page
    assert compare(tmp_path / "two", tmp_path / "too") == 0
    assert "no scale in common" not in (tmp_path / "compare.html").read_text()


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name)
    # The order of the rows is the order of the shards, which tells nothing of the slices.
    path = tmp_path / "b" / "predictions-fold0.parquet"
    pd.read_parquet(path).sample(frac=1, random_state=0).to_parquet(path)
    assert compare(tmp_path / "a", tmp_path / "b") == 0
    page = (tmp_path / "compare.html").read_text()
    assert page.count("<td>undecided</td>") == 3 * 3
    assert '<td class="number">+0.000</td>' in page
    assert "better</td>" not in page


def other_digest(path: Path) -> None:
    make_run(path, digest="e" * 64)


def other_slices(path: Path) -> None:
    make_run(path, patients=29)


def other_labels(path: Path) -> None:
    job = make_run(path)
    frame = pd.read_parquet(job.run.predictions("fold0"))
    frame["label_upper"] = np.roll(frame["label_upper"], 1)
    frame.to_parquet(job.run.predictions("fold0"))


def other_split(path: Path) -> None:
    make_run(path)
    (path / "predictions-fold0.parquet").rename(path / "predictions-fold1.parquet")
    metrics = json.loads((path / "metrics.json").read_text())
    (path / "metrics.json").write_text(json.dumps(metrics | {"split": "fold1"}))


@pytest.mark.parametrize("make_other", [other_digest, other_slices, other_labels, other_split])
def test_other_slices_have_no_difference(tmp_path: Path, make_other) -> None:  # type: ignore[no-untyped-def]
    make_run(tmp_path / "a")
    make_other(tmp_path / "other")
    assert compare(tmp_path / "a", tmp_path / "other") == 0
    page = (tmp_path / "compare.html").read_text()
    assert "other: measured on other slices than" in page
    assert "Verdict on other" not in page


@pytest.mark.usefixtures("without_curves")
def test_cross_validations_are_compared_out_of_fold(tmp_path: Path) -> None:
    """Their runs answer the same slices here, each under the id of its fold."""
    for name, skill in (("weak", 1.0), ("strong", 4.0)):
        frames = []
        for fold in range(2):
            run = make_run(tmp_path / name / f"fold{fold}", skill=skill, seed=fold).run
            frame = pd.read_parquet(run.predictions("fold0"))
            frames.append(frame.assign(image_id=f"{fold}-" + frame["image_id"]))
        pd.concat(frames).to_parquet(tmp_path / name / "out_of_fold.parquet")
        (tmp_path / name / "crossval.json").write_text("{}")
    assert compare(tmp_path / "weak", tmp_path / "strong") == 0
    page = (tmp_path / "compare.html").read_text()
    assert "<td>folds</td>" in page
    assert "<td>better</td>" in page
    assert "4, 4 of 5" in page
    both = pd.read_parquet(tmp_path / "weak" / "out_of_fold.parquet")
    score = average_precision_score(both["label_upper"], both["probability_upper"])
    assert f"{score:.3f} <small>" in page
    # Alone: its runs.
    assert (
        main(["compare", "--runs", str(tmp_path / "weak"), "--output", f"{tmp_path}/c.html"]) == 0
    )
    assert "Verdict on fold1" in (tmp_path / "c.html").read_text()


def test_which_way_an_interval_points() -> None:
    assert verdict([0.1, 0.2], lower_is_better=False) == "better"
    assert verdict([0.1, 0.2], lower_is_better=True) == "worse"
    assert verdict([-0.2, -0.1], lower_is_better=True) == "better"
    assert verdict([-0.1, 0.1], lower_is_better=True) == "undecided"
    assert verdict(None, lower_is_better=True) == "no interval"


def test_what_cannot_be_compared_is_one_line(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "three", names=("a", "b", "c"))
    cases = {
        "2 to 6 run directories": [pair[0]],
        "no run.json": [pair[0], tmp_path / "nothing"],
        "has labels a, b, c": [pair[0], tmp_path / "three"],
    }
    for message, runs in cases.items():
        assert compare(*runs) == 2
        assert message in capsys.readouterr().err
    (pair[1] / "metrics.json").unlink()
    assert compare(*pair) == 2
    assert "training is not complete" in capsys.readouterr().err
    assert main(["compare", "--output", "x.html"]) == 2
    assert "--runs is missing" in capsys.readouterr().err


@pytest.mark.system
def test_the_page_in_a_browser(pair: tuple[Path, Path], full: bool) -> None:
    make_run(pair[0].parent / "third", digest="e" * 64)
    compare(*pair, pair[0].parent / "third")
    views = VIEWS if full else LIGHT_PHONE
    assert faults_of_page(pair[0].parent / "compare.html", views=views) == []
