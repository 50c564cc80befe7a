"""An inspection counts, numbers and places files as the run does, and writes nothing but a page."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydicom.uid import MRImageStorage

import beam_pipeline
from beam_pipeline.command_line import complete_options
from beam_pipeline.finish import finish_directory
from beam_pipeline.inspection import __main__ as inspect_command
from beam_pipeline.inspection.__main__ import main
from beam_pipeline.progress import describe_time
from beam_pipeline.runners.choose import LOCAL
from headct.commands import STARTED_BY, STEP
from headct.errors import UsageError
from headct.layout import REJECT_COLUMNS
from tests.beam_pipeline.card_page import Page
from tests.beam_pipeline.conftest import WriteSlice
from tests.beam_pipeline.steps import write_shards
from tests.browser import VIEWS, faults_of_page

CORONAL = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, write_slice: WriteSlice) -> Path:
    """`in/`: 24 slices of 8 patients, and files of each kind that is not used; `labels.csv`."""
    folder = tmp_path_factory.mktemp("export")
    rows = ["image,bleed,fracture"]
    for number in range(24):
        patient, row = number // 3, number % 3
        write_slice(
            folder / "in" / f"study {patient}" / f"slice{number:02d}.dcm",
            PatientID=f"secret-{patient}",
            StudyInstanceUID=f"1.2.{patient}",
            SeriesInstanceUID=f"1.2.{patient}.1",
            ImagePositionPatient=[0.0, 0.0, 5.0 * row],
            SliceThickness=[5.0, 1.25][patient % 2],
            ConvolutionKernel=["H30s", "BONE"][patient % 2],
            Manufacturer="MAKER",
            BodyPartExamined="HEAD",
        )
        rows.append(f"slice{number:02d},{number % 2},{int(number % 5 == 0)}")
    used = {"StudyInstanceUID": "1.2.0", "SeriesInstanceUID": "1.2.0.2", "PatientID": "secret-0"}
    other = folder / "in" / "other"
    small = np.random.default_rng(0).integers(0, 1200, (16, 20)).astype(np.int16)
    write_slice(other / "small.dcm", small, PixelSpacing=[0.5, 0.25], **used)
    write_slice(other / "nobody.dcm", StudyInstanceUID="1.2.9", PatientID="")
    rows += ["small,1,0", "nobody,0,0", "coronal,0,0", "absent,1,1"]
    write_slice(other / "coronal.dcm", ImageOrientationPatient=CORONAL, **used)
    write_slice(other / "scout.dcm", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice(other / "mr.dcm", SOPClassUID=MRImageStorage, Modality="MR")
    write_slice(other / "unlabeled.dcm", **used)
    write_slice(folder / "in" / "zcopy" / "slice00.dcm", SOPInstanceUID="slice00")
    (other / "notes.txt").write_text("no image")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


SETS: list[dict[str, Any]] = [
    {"labels": "labels.csv", "folds": 2},
    {
        "labels": "labels.csv",
        "folds": 2,
        "max_patients": 5,
        "unlabeled": "skip",
        "where": "SliceThickness<=5",
        "image_id": "ordinal",
        "identifiers": "keep",
        "examples_per_shard": 4,
        "holdout": 0.2,
    },
    {"orientation": "any", "hu": True, "min_slices": 2, "one_series_per_study": True},
]


@pytest.mark.parametrize("given", SETS, ids=["default", "sample", "unlabeled"])
def test_it_counts_what_the_run_counts(
    given: dict[str, Any], export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"image_size": 32, "workers": 1, "max_reject_fraction": 0.3, **given}
    if "labels" in given:
        options["labels"] = export / "labels.csv"
    found = beam_pipeline.inspect(export / "in", **options)
    monkeypatch.setenv(STARTED_BY, STEP)  # no card
    run = complete_options(
        {"input": export / "in", "output": tmp_path / "shards", **options}, LOCAL
    )
    finish_directory(write_shards(run), run)
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    summary = found.summary
    assert manifest["counts"].pop("repaired") == {}
    for name, split in manifest["splits"].items():
        assert sum(shard["bytes"] for shard in split["shards"]) > 0
        for own in (split, summary["splits"][name]):
            own["shards"] = [(each["file"], each["examples"]) for each in own["shards"]]
    origin = ("created", "files", "digest", "run")
    wanted = {name: value for name, value in manifest.items() if name not in origin}
    assert {name: summary[name] for name in wanted} == wanted
    assert summary["refusal"] is None
    assert summary["not_ct"] == {"MR Image Storage": 1}

    index = pd.read_parquet(tmp_path / "shards" / "index.parquet").sort_values("source")
    files = found.files.sort_values("source")
    assert len(files) == summary["input"]["files"] == 32
    written = files[files["outcome"] == "written"]
    same = [name for name in index if name in written]
    assert {"image_id", "patient_id", "series_id", "split", "row_spacing", "rows"} < {*same}
    pd.testing.assert_frame_equal(
        written[same].reset_index(drop=True).astype(index[same].dtypes),
        index[same].reset_index(drop=True),
    )
    rejects = pd.read_json(tmp_path / "shards" / "rejects.jsonl", lines=True, dtype=str)
    listed = files.loc[files["reason"] != "", [*REJECT_COLUMNS]].astype(str).to_numpy()
    assert sorted(map(tuple, listed)) == sorted(map(tuple, rejects[[*REJECT_COLUMNS]].to_numpy()))
    outcomes = files["outcome"].value_counts()
    assert outcomes.get("not_sampled", 0) == manifest["counts"]["not_sampled"]
    assert outcomes.get("skipped", 0) == manifest["counts"]["unlabeled_skipped"]
    # All slices were converted to measure them.
    assert summary["estimate"]["slices_measured"] == len(index)
    assert summary["estimate"]["bytes"] == index["bytes"].sum()


def test_a_page_and_a_line(
    export: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [f"{export}/in", f"{export}/labels.csv", "--folds=2", "--workers=1", "--image_size=32"]
    assert main([*argv, "--where=SliceThickness<3"]) == 0
    shown, error = capsys.readouterr()
    assert error == ""
    for line in (
        "32 files; their usable slices are of 4 patients, 4 studies and 4 series",
        "images of other modalities: 1 MR Image Storage",
        "excluded      1  localizer",
        "More: inspect.html",
        f"Next: python -m beam_pipeline --input {export}/in --labels {export}/labels.csv --output "
        "out/shards --folds=2 --workers=1 --image_size=32 '--where=SliceThickness<3'",
    ):
        assert line in shown.splitlines()
    text = Path("inspect.html").read_text()
    page = Page(text)
    assert page.title.startswith("Inspection: 12 of 32 files")
    excluded = page.tables["Files that were excluded"].column("files")
    assert excluded == {"not_selected": "14", "not_ct": "1", "localizer": "1"} | excluded
    assert page.tables["Convolution kernels"].column("slices") == {"BONE": "12"}
    assert page.tables["Splits"].rows["all"][3] == "12"
    for hidden in ("secret", str(export)):
        assert hidden not in text
    assert not page.references

    assert main([*argv, "--json"]) == 0  # its own page is no obstacle, and stays
    summary = json.loads(capsys.readouterr().out)
    assert summary["counts"]["written"] == 26
    assert Path("inspect.html").read_text() == text
    Path("inspect.html").write_text("mine")
    assert main(argv) == 2
    assert capsys.readouterr().err == (
        "inspect: error: --output inspect.html exists and is no page of this command; choose "
        "another file, or --overwrite it\n"
    )


@pytest.mark.system
def test_the_page_in_a_browser(export: Path, tmp_path: Path) -> None:
    page = tmp_path / "inspect.html"
    argv = [f"{export}/in", f"{export}/labels.csv", "--folds=2", "--workers=1", "--image_size=32"]
    assert main([*argv, f"--output={page}"]) == 0
    assert faults_of_page(page, views=VIEWS[:1], visible=[".tiles"]) == []


def test_mistakes_end_as_in_a_run(
    export: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.csv").write_text("image,bleed\nelsewhere,1\n")
    data = f"{export}/in"
    for argv, message in (
        (["empty"], "input empty holds no files"),
        ([data, "labels.csv"], "no label of labels.csv is of a slice"),
        ([data, f"{export}/labels.csv", "--folds", "60", "--workers=1"], "fold"),
        ([data, "--fold", "3"], "unknown option --fold (did you mean --folds?)"),
        ([data, "--output", "empty"], "--output empty is a folder; want a file"),
        ([], "--input"),
    ):
        assert main(argv) == 2
        shown = capsys.readouterr()
        assert message in shown.err
        assert len(shown.err.splitlines()) == 1
    assert main([data, "--output", "labels.csv/page.html"]) == 5
    shown = capsys.readouterr()
    assert shown.out == ""  # found before the files are read
    assert "--output labels.csv/page.html cannot be written: Not a directory" in shown.err
    monkeypatch.setattr(tempfile, "tempdir", data)
    assert main([data]) == 2
    assert "set TMPDIR to a folder outside of it" in capsys.readouterr().err
    assert not Path("inspect.html").exists()


def test_no_usable_file_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.txt").write_text("no image")
    found = beam_pipeline.inspect(tmp_path / "in", workers=1)
    assert found.summary["counts"]["rejected_by_reason"] == {"not_dicom": 3}
    assert found.summary["refusal"] == (
        "3 of 3 files would be rejected, more than --max_reject_fraction 0.05 allows"
    )
    assert "preprocess would fail: 3 of 3" in str(found)
    assert "preprocess would fail: 3 of 3" in Page(found.page()).text
    monkeypatch.setattr(inspect_command, "inspect_input", lambda *_: found)
    assert main(["in"]) == 0
    assert capsys.readouterr().out.endswith("\nMore: inspect.html\n")  # there is nothing to write
    with pytest.raises(UsageError, match="there is no option 'fold'"):
        beam_pipeline.inspect(tmp_path / "in", fold=3)


def test_durations() -> None:
    assert [*map(describe_time, (0.4, 99, 101, 6001, 1e5))] == [
        *("0 s", "99 s", "1.7 min", "1.7 h", "28 h")
    ]
