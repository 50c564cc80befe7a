"""`predict` into a folder: tables of slices and scans, and the page."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.browser import LIGHT_PHONE, faults_of_page
from tests.trainer.made_runs import make_run
from trainer.__main__ import main
from trainer.report import predictions
from trainer.report.predictions import common_folder, render_page, summarize

EVIL = '<script>"x"</script>'


def make_frame(rows: list[tuple[Any, ...]], **columns: Any) -> pd.DataFrame:
    """Unlabeled predictions of `a` and `any`: source, series, position, both probabilities."""
    names = ["source", "series_id", "position_z", "probability_a", "probability_any"]
    frame = pd.DataFrame(rows, columns=names)
    frame = frame.assign(patient_id="SECRET", split="test", label_a=-1, label_any=-1)
    ids = {"image_id": [f"1.{i}" for i in range(len(rows))], "study_id": "S"}
    return frame.assign(**ids | columns)


SCANS = make_frame(
    [
        ("x/two/9.dcm", "R2", np.nan, 0.5, 0.1),
        ("x/two/1.dcm", "R2", -5.0, 0.9, 0.3),
        ("x/one/b.dcm", "R1", 2.0, 0.25, 0.75),
        ("x/two/2.dcm", "R2", 0.0, 0.1, 0.2),
        ("x/one/sub/a.dcm", "R1", 1.0, 0.75, 0.75),
    ]
)


def test_scans_are_summed_up_as_by_hand() -> None:
    slices, scans = summarize(SCANS, ("a", "any"))
    columns = ["source", "image_id", "study_id", "series_id", "position_z"]
    assert [*slices] == [*columns, "probability_a", "probability_any"]  # no patient, no labels
    ordered = ["x/one/sub/a.dcm", "x/one/b.dcm", "x/two/1.dcm", "x/two/2.dcm", "x/two/9.dcm"]
    assert slices["source"].tolist() == ordered
    first, second = scans.to_dict("records")
    by_hand = {"folder": "x/one", "study_id": "S", "series_id": "R1", "slices": 2}
    by_hand |= {"maximum_a": 0.75, "mean_a": 0.5, "slice_a": ordered[0]}
    # of equal slices the first
    assert first == by_hand | {"maximum_any": 0.75, "mean_any": 0.75, "slice_any": ordered[0]}
    by_hand = {"folder": "x/two", "study_id": "S", "series_id": "R2", "slices": 3}
    by_hand |= {"maximum_a": 0.9, "mean_a": pytest.approx(0.5), "slice_a": ordered[2]}
    by_hand |= {"maximum_any": 0.3, "mean_any": pytest.approx(0.2), "slice_any": ordered[2]}
    assert second == by_hand


def test_scans_without_sources_any_or_series() -> None:
    frame = SCANS.drop(columns="source").assign(label_a=[0, 1, 0, 1, 1], series_id="")
    slices, scans = summarize(frame.assign(study_id=[*"TTSTS"]), ("a",))
    assert slices["label_a"].tolist() == [1, 1, 0, 1, 0]
    assert scans["study_id"].tolist() == ["T", "S"]  # by the highest of all labels
    assert scans["slice_a"].tolist() == ["1.1", "1.4"]
    assert "folder" not in scans


def test_the_folder_of_a_scan() -> None:
    assert common_folder(pd.Series(["a/b/1", "a/bc/2"])) == "a"
    assert common_folder(pd.Series(["1", "a/2"])) == ""


@pytest.mark.system
def test_the_page(tmp_path: Path) -> None:
    setup = make_run(tmp_path / "run", ("a", "any"))
    sources = SCANS["source"].str.replace("x/two", f"x/{EVIL}")
    _, scans = summarize(SCANS.assign(source=sources), ("a", "any"))
    reasons = ["localizer"] * 2 + ["not_dicom"] * 120
    files = [f"{i:03d}{EVIL}" for i in range(122)]
    rejects = pd.DataFrame({"source": files, "image_id": "", "reason": reasons, "detail": "PDF"})
    page = render_page(setup, "s3://user:secret@host/scans/", scans, rejects)
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "Predictions for scans" in text
    assert "120 rejected, 2 excluded" in text
    assert "5 of 127 files" in text
    assert "22 more are in rejects.jsonl" in text
    assert "1 0.750 x/one R1 sub/a.dcm 2 0.750 0.750" in text
    assert EVIL not in page
    assert "SECRET" not in page
    assert "secret" not in page
    path = tmp_path / "page.html"
    path.write_text(page)
    assert faults_of_page(path, views=LIGHT_PHONE) == []


def test_shards_are_predicted_into_a_folder(
    finished: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, argv = tmp_path / "new", ["predict", str(finished), str(shards)]
    assert main([*argv, "--output", str(output)]) == 0
    assert {path.name for path in output.iterdir()} == {"report.html", "scans.csv", "slices.csv"}
    assert main([*argv, "--output", str(tmp_path / "t.parquet")]) == 0
    table = pd.read_parquet(tmp_path / "t.parquet").set_index("image_id")
    slices = pd.read_csv(output / "slices.csv").set_index("image_id")
    columns = ["probability_upper", "probability_lower", "probability_any"]
    np.testing.assert_allclose(slices[columns], table.loc[slices.index, columns], rtol=1e-8)
    scans = pd.read_csv(output / "scans.csv")
    assert scans["slices"].sum() == len(slices) == 7
    page = (output / "report.html").read_text()
    assert page.count('<img src="data:image/jpeg;') == len(scans) == 2
    assert f"Rank 1:</strong> any {scans['maximum_any'][0]:.3f}" in page
    capsys.readouterr()
    assert main([*argv, "--output", str(output)]) == 2
    assert capsys.readouterr().err == f"trainer: --output {output}: exists and is not empty\n"


def test_an_interrupted_prediction_leaves_nothing(
    finished: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predictions, "render_page", interrupted)
    output = tmp_path / "new"
    assert main(["predict", str(finished), str(shards), "--output", str(output)]) == 130
    assert capsys.readouterr().err == "trainer: interrupted; nothing is written\n"
    assert not output.exists()
