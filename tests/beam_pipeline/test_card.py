"""The data card: what it tells of a directory, as its HTML has it."""

import base64
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from beam_pipeline import pipeline
from beam_pipeline.card import card
from beam_pipeline.card.__main__ import main
from beam_pipeline.card.card import SAMPLED, add_card
from beam_pipeline.card.pictures import (
    BIN,
    LOWEST,
    View,
    ViewTask,
    source_pictures,
    view_slices,
)
from beam_pipeline.dicom.hounsfield import Repair
from beam_pipeline.dicom.slices import read_slice
from beam_pipeline.images.convert import convert_slice
from beam_pipeline.options import ImageId, ImageOptions, Options
from beam_pipeline.shards.manifest import count_rejects
from beam_pipeline.shards.output import record_start
from beam_pipeline.verify.verification import verify_directory
from beam_pipeline.workers import Watch
from headct.errors import StoreError, UsageError
from headct.reasons import EXCLUSIONS, Reason
from headct.stores import Folder, InputFiles
from headct.windows import parse_window
from tests.beam_pipeline.card_page import Page
from tests.beam_pipeline.conftest import WriteSlice
from tests.beam_pipeline.dicom_files import make_dicom
from tests.browser import LIGHT_PHONE, VIEWS, faults_of_page

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")

ROOT = Path(__file__).parents[2]
LABELS = [f"finding {number}" for number in range(14)]
SIDE = 32


def ramp(lowest: int, step: float = 30) -> np.ndarray:
    """Stored values that grow from the left to the right."""
    row = lowest + step * np.arange(SIDE)
    return np.broadcast_to(row, (SIDE, SIDE)).round().astype(np.int16)


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory, write_slice: WriteSlice) -> Path:
    """`in/` with 40 slices of 20 patients, one of them wrapped; `labels.csv` with 14 classes."""
    folder = tmp_path_factory.mktemp("card")
    rows = [",".join(["id", *LABELS])]
    for number in range(40):
        image_id = f"name-{number:02d}"
        values = {
            "PatientID": f"secret-{number // 2}",
            "StudyInstanceUID": f"secret-study-{number // 2}",
            "SeriesInstanceUID": f"secret-series-{number // 2}",
            "ImagePositionPatient": [0.0, 0.0, 2.5 * (number % 2)],
            "WindowCenter": "40",
            "WindowWidth": "100",
        }
        path = folder / "in" / f"part {number % 3}" / f"{image_id}.dcm"
        write_slice(path, ramp(900 + number), **values)
        has = [int(number % (place + 2) == 0 and place != 13) for place in range(14)]
        rows.append(",".join([image_id, *map(str, has)]))
    wrapped = (ramp(-1000, 80).astype(int) % 4096).astype(np.uint16)
    encoding = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "RescaleIntercept": "0"}
    write_slice(folder / "in" / "part 0" / "name-00.dcm", wrapped, PatientID="secret-0", **encoding)
    (folder / "in" / "note.txt").write_text("not DICOM")
    (folder / "in" / "name-40.dcm").write_bytes(b"")
    write_slice(folder / "in" / "part 1" / "unlabeled.dcm", ramp(800))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def shards(slices: Path) -> Path:
    """Shards of 14 labels in 10 folds."""
    options = Options.of(
        input=str(slices / "in"),
        labels=str(slices / "labels.csv"),
        output=str(slices / "shards"),
        image_size=SIDE,
        folds=10,
        examples_per_shard=2,
        max_reject_fraction=0.1,
    )
    record_start(Folder(options.files.output), "local")
    pipeline.run_here(options)
    return slices / "shards"


@pytest.fixture(scope="module")
def page(shards: Path) -> Page:
    return Page.read(shards / "report.html")


@pytest.fixture(scope="module")
def hounsfield_shards(slices: Path) -> Path:
    """Shards of Hounsfield units without labels, of files that are shown by number."""
    options = Options.of(
        input=str(slices / "in"),
        output=str(slices / "hu"),
        windows=(),
        image_size=SIDE,
        image_id=ImageId.ORDINAL,
        max_reject_fraction=0.1,
    )
    pipeline.run_here(options)
    return slices / "hu"


def manifest_of(shards: Path) -> Any:
    return json.loads((shards / "manifest.json").read_text())


def index_of(shards: Path) -> pd.DataFrame:
    return pd.read_parquet(shards / "index.parquet")


def number(text: str) -> int:
    return int(text.split()[0].replace(",", ""))


# What it tells


def test_the_first_figures_are_those_of_the_manifest(page: Page) -> None:
    assert page.title == "Data card: 40 CT slices"
    facts = {name: page.facts[name] for name in ("files seen", "slices written", "rejected")}
    assert facts == {"files seen": "43", "slices written": "40", "rejected": "3"}
    assert (page.facts["repaired"], page.facts["patients"]) == ("1", "20")


def test_rejects_have_an_example_and_what_to_do(page: Page) -> None:
    rows = page.tables["Files that were rejected"].rows
    assert rows["label_missing"][:3] == ["1", "2.3 %", "part 1/unlabeled.dcm"]
    assert rows["not_dicom"][:3] == ["2", "4.7 %", "name-40.dcm"]
    assert rows["not_dicom"][-1] == Reason.NOT_DICOM.advice


def test_labels_are_counted_as_in_the_index(page: Page, shards: Path) -> None:
    index = index_of(shards)
    counted = page.tables["Slices with each label"]
    for label in LABELS:
        having = index[index[f"label_{label}"] == 1]
        slices, _, studies, patients = counted.rows[label]
        assert number(slices) == len(having)
        assert number(studies) == having["study_id"].nunique()
        assert number(patients) == having["patient_id"].nunique()
    none = (index[[f"label_{label}" for label in LABELS]] == 0).all(axis=1).sum()
    assert number(counted.rows["no label"][0]) == none


def test_labels_that_occur_together_are_counted(page: Page, shards: Path) -> None:
    index, table = index_of(shards), page.tables["Slices that have both labels"]
    for label in LABELS:
        for other in LABELS:
            both = ((index[f"label_{label}"] == 1) & (index[f"label_{other}"] == 1)).sum()
            place, row = str(LABELS.index(other) + 1), f"{LABELS.index(label) + 1} {label}"
            assert number(table.column(place)[row]) == both


def test_folds_are_compared_with_all_slices(page: Page, shards: Path) -> None:
    index, table = index_of(shards), page.tables["Slices with each label, by split"]
    assert table.columns == ["label", *(f"fold{fold}" for fold in range(10)), "all"]
    share = (index["label_finding 0"] == 1).mean()
    for fold, rows in index.groupby("split"):
        found = int((rows["label_finding 0"] == 1).sum())
        off = 100 * (found / len(rows) / share - 1)
        expected = f"{found} {off:+.0f} %" if abs(off) >= 10 else f"{found} {off:+.1f} %"
        assert table.column(str(fold))["finding 0"] == expected.replace("-", "\N{MINUS SIGN}")
    splits = page.tables["Splits"]
    assert splits.column("patients") == {
        **index.groupby("split")["patient_id"].nunique().astype(str).to_dict(),
        "all": "20",
    }


def test_the_shard_that_differs_most_from_its_split_is_found(page: Page, shards: Path) -> None:
    found = page.tables["Slices with each label, by split"]
    for split, description in manifest_of(shards)["splits"].items():
        most = 0.0
        for shard in description["shards"]:
            for label, all_of_it in description["label_counts"].items():
                expected = all_of_it * shard["examples"] / description["examples"]
                most = max(most, abs(shard["label_counts"][label] - expected))
        assert found.column(split)["a shard is off by"] == f"{most:.1f}"
        shards_of = page.tables["Splits"].column("shards")
        assert shards_of[split] == str(len(description["shards"]))


def test_labels_without_a_slice_are_named(page: Page) -> None:
    assert "No slice has finding 13." in page.text
    assert "finding 12 in fold" in page.text


def test_geometry_and_encodings_are_told(page: Page) -> None:
    assert page.facts["slices per study"].startswith("median 2")
    assert page.tables["Matrix sizes of the files"].rows == {"32 x 32": ["40", "100 %"]}
    assert page.tables["Distances of slices"].rows == {"2.5 mm": ["19", "100 %"]}
    encodings = page.tables["Pixel encodings"].rows
    minus = "\N{MINUS SIGN}"
    assert set(encodings) == {
        "12 of 16 bits, unsigned, slope 1, intercept 0",
        f"16 of 16 bits, signed, slope 1, intercept {minus}1024",
    }


def test_the_run_is_told(page: Page, shards: Path) -> None:
    manifest = manifest_of(shards)
    assert page.facts["digest"] == manifest["digest"]
    assert page.facts["runner"] == "local"
    assert float(page.facts["files per second"]) > 0
    assert page.facts["pydicom"] == manifest["software"]["pydicom"]
    command = 'python -m beam_pipeline --output "$OUTPUT" --input "$INPUT" --labels "$LABELS"'
    assert f"{command} --image_size 32 --folds 10 --examples_per_shard 2" in page.text


# What it shows


def decode(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))


def test_every_label_is_shown_in_all_ways(page: Page, shards: Path) -> None:
    index = index_of(shards).set_index("image_id")
    labels = page.headings.index(LABELS[0])
    assert page.headings[labels : labels + 15] == [*LABELS[:13], "no label", "repair: shift"]
    shown = {alt.split(",")[0] for alt in page.pictures}
    for label in LABELS[:13]:
        assert any(index.loc[image_id, f"label_{label}"] == 1 for image_id in shown), label
    ways = {", ".join(alt.split(", ")[1:2]) for alt in page.pictures}
    assert ways == {
        "file: stored values",
        "file: Hounsfield",
        "file: file's own window",
        "shard: brain",
        "shard: subdural",
        "shard: bone",
    }
    assert len(page.pictures) == 6 * len(shown) - 1  # the wrapped one has no window of its own


def test_pictures_are_those_of_the_windows(page: Page) -> None:
    found = {alt: uri for alt, uri in page.pictures.items() if not alt.startswith("name-00")}
    for alt, uri in found.items():
        hounsfield = ramp(900 + int(alt[5:7])).astype(float) - 1024
        for way, low, width in (
            ("file: Hounsfield, L 0 W 2000", -1000, 2000),
            ("file: file's own window, L 40 W 100", -10, 99),
            ("shard: brain, L 40 W 80", 0, 80),
            ("shard: bone, L 600 W 2800", -800, 2800),
        ):
            if alt.endswith(way):
                expected = np.clip((hounsfield - low) / width, 0, 1) * 255
                assert np.abs(decode(uri) - expected).mean() < 4, alt


@pytest.mark.parametrize("function", ["", "LINEAR", "LINEAR_EXACT", "SIGMOID", "LOG"])
def test_a_file_is_shown_in_its_own_window_as_the_pipeline_stores_that(function: str) -> None:
    attributes = {"WindowCenter": "40", "WindowWidth": "100", "VOILUTFunction": function}
    source = read_slice(
        make_dicom(np.arange(900, 1156, dtype=np.int16).reshape(16, 16), **attributes)
    )
    pictures = {picture.kind: picture for picture in source_pictures(source, Repair.NONE)}
    if function == "LOG":  # not one of DICOM's
        assert "file's own window" not in pictures
        return
    picture = pictures["file's own window"]
    stored = convert_slice(source, ImageOptions(windows="dicom", voi="linear", image_size=16))
    assert np.abs(decode(picture.uri).astype(int) - stored.pixels[..., 0]).max() < 8  # of JPEG
    assert picture.note == f"L 40 W 100 {function.lower()}".rstrip()


def test_a_repaired_slice_is_shown_repaired(page: Page) -> None:
    (picture,) = [
        uri for alt, uri in page.pictures.items() if alt.startswith("name-00, file: Hounsfield")
    ]
    expected = np.clip((ramp(-1000, 80) + 1000.0) / 2000, 0, 1) * 255
    assert np.abs(decode(picture) - expected).mean() < 4


def test_values_are_drawn_before_and_after_the_repair(page: Page) -> None:
    assert page.charts == [
        "Stored values of 10 slices",
        "Hounsfield units of 10 slices",
        f"Hounsfield units of {SAMPLED} slices drawn from the whole set, added up",
        "Hounsfield units of 1 of the 1 repaired files",
    ]
    assert "before repair" in page.text
    assert "after repair" in page.text


def test_a_set_of_hounsfield_units_without_labels(hounsfield_shards: Path) -> None:
    page = Page.read(hounsfield_shards / "report.html")
    assert "The set has no labels" in page.text
    assert "Slices with each label" not in page.tables
    ways = {", ".join(alt.split(", ")[1:]) for alt in page.pictures}
    assert {"shard: HU, L 0 W 2000", "shard: brain, L 40 W 80"} < ways
    assert "file: Hounsfield, L 0 W 2000" in ways  # so files are found whose names are not told
    assert "name-" not in page.text
    assert "file_0000" in page.text


def test_nothing_is_loaded_and_no_path_is_told(shards: Path, hounsfield_shards: Path) -> None:
    for folder in (shards, hounsfield_shards):
        html = (folder / "report.html").read_text()
        assert Page(html).references == []
        assert "@import" not in html
        assert "<script" not in html
        for secret in (str(folder.parent), "secret-"):
            assert secret not in html


def test_no_two_elements_have_the_same_id(shards: Path) -> None:
    ids = re.findall(r'\sid="([^"]+)"', (shards / "report.html").read_text())
    assert sorted(ids) == sorted(set(ids))


@pytest.mark.system
def test_a_browser_finds_nothing_wrong(shards: Path, full: bool) -> None:
    views = VIEWS if full else LIGHT_PHONE
    assert faults_of_page(shards / "report.html", views=views) == []


def test_no_card_loads_matplotlib(shards: Path, tmp_path: Path) -> None:
    copy, _ = again(shards, tmp_path)
    code = (
        "import sys; from beam_pipeline.card.__main__ import main; "
        f"assert main([{str(copy)!r}]) == 0; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "False"
    assert (copy / "report.html").read_text().count("<svg") == 4


# All reasons, and inputs that are gone


def again(shards: Path, tmp_path: Path, **counts: Any) -> tuple[Path, Any]:
    """A copy of a directory, and its manifest with other counts."""
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    manifest = manifest_of(copy)
    manifest["counts"] |= counts
    return copy, manifest


def write(manifest: Any, rejects: Sequence[Any], folder: Path) -> Page:
    manifest = manifest | {"options": manifest["options"] | {"input": "/gone"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "rejects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rejects))
    add_card(Folder(str(folder)), 60.0)
    return Page.read(folder / "report.html")


def test_each_reason_has_its_row(shards: Path, tmp_path: Path) -> None:
    rejects = [
        {"source": f"{place}/{reason}.dcm", "image_id": "", "reason": reason, "detail": "<&>"}
        for place in ("b", "a")
        for reason in map(str, Reason)
    ]
    copy, manifest = again(shards, tmp_path, files_seen=1000, **count_rejects(rejects))
    page = write(manifest, rejects, copy)
    for caption, reasons in (
        ("Files that were rejected", {*Reason} - EXCLUSIONS),
        ("Files that were excluded", EXCLUSIONS),
    ):
        assert page.tables[caption].rows == {
            reason.value: ["2", "0.2 %", f"a/{reason}.dcm", "<&>", reason.advice]
            for reason in reasons
        }
    excluded = 2 * len(EXCLUSIONS)
    assert f"{excluded} excluded as not wanted" in page.text
    earlier = again(shards, tmp_path / "earlier", rejected_by_reason={"not_ct": 2}, files_seen=9)
    tables = write(earlier[1], rejects, earlier[0]).tables
    assert [*tables["Files that were rejected"].rows] == ["not_ct"]
    assert "Files that were excluded" not in tables


def test_what_the_data_decided_is_said(shards: Path, tmp_path: Path) -> None:
    copy, manifest = again(shards, tmp_path, unlabeled_skipped=1234)
    page = write(manifest | {"notes": ["Labels joined by <path>."]}, [], copy)
    assert "Labels joined by <path>." in page.text
    assert "in the input; 1,234 without a label skipped" in page.text
    del manifest["notes"], manifest["counts"]["unlabeled_skipped"]  # of an earlier version
    assert "skipped" not in write(manifest, [], copy).text


def test_without_its_input_a_card_shows_the_shards(shards: Path, tmp_path: Path) -> None:
    copy, manifest = again(shards, tmp_path)
    page = write(manifest, [], copy)
    assert {alt.split(", ")[1] for alt in page.pictures} == {
        "shard: brain",
        "shard: subdural",
        "shard: bone",
    }
    assert page.charts == []
    assert "The file is not shown: not looked at." in page.text


def task_of(shards: Path, **changes: Any) -> ViewTask:
    rows = tuple(index_of(shards).sort_values("image_id").head(3).to_dict("records"))
    files = tuple(row["source"].encode() for row in rows)
    windows = (parse_window("brain"), parse_window("subdural"), parse_window("bone"))
    source = InputFiles(str(shards.parent / "in"))
    task = ViewTask(str(shards), 60.0, windows, rows, (True,) * 3, files, source)
    return dataclasses.replace(task, **changes)


def problems(views: list[View]) -> list[str]:
    assert all(len(view.of_shard) == 3 for view in views)
    assert all(bool(view.problem) == (not view.of_source) for view in views)
    return [view.problem for view in views]


def test_a_file_that_cannot_be_read_any_more_costs_its_pictures(
    shards: Path, write_slice: WriteSlice, tmp_path: Path
) -> None:
    task = task_of(shards)
    assert problems(view_slices(task, Watch())) == ["", "", ""]
    copy = shutil.copytree(shards.parent / "in", tmp_path / "in")
    (copy / task.rows[0]["source"]).unlink()
    (copy / task.rows[1]["source"]).write_bytes(b"text")
    write_slice(copy / task.rows[2]["source"], ramp(0), ImagePositionPatient=[0.0, 0.0, 77.0])
    gone = dataclasses.replace(task, source=InputFiles(str(copy)))
    found = problems(view_slices(gone, Watch()))
    assert found == ["vanished", "not_dicom", "another slice than the shard was made of"]
    crashed = Watch({1: Reason.DECODER_CRASHED})
    assert problems(view_slices(task, crashed)) == ["", "decoder_crashed", ""]


@dataclasses.dataclass(frozen=True)
class FailingInput(InputFiles):
    """An input whose store fails after the first file."""

    def read(self, source: str, start: int = 0, length: int | None = None) -> bytes:
        if source == self.pattern:
            return InputFiles(self.root).read(source, start, length)
        raise StoreError(self.root, "access denied")


def test_an_input_whose_store_fails_costs_pictures(shards: Path) -> None:
    task = task_of(shards)
    first = task.rows[0]["source"]
    task = task_of(shards, source=FailingInput(str(shards.parent / "in"), pattern=first))
    failed = "the input's store failed"
    assert problems(view_slices(task, Watch())) == ["", failed, failed]


def test_a_shard_that_is_damaged_is_said(shards: Path, tmp_path: Path) -> None:
    copy, _ = again(shards, tmp_path)
    task = task_of(copy)
    shard = copy / task.rows[0]["shard"]
    shard.write_bytes(shard.read_bytes()[: task.rows[0]["image_offset"] + 50])
    with pytest.raises(UsageError, match="is missing or damaged: make verify says more"):
        view_slices(dataclasses.replace(task, source=None), Watch())


def test_a_bug_is_not_hidden(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> str:
        raise ZeroDivisionError

    copy, manifest = again(shards, tmp_path)
    monkeypatch.setattr(card, "value_charts", broken)
    with pytest.raises(ZeroDivisionError):
        write(manifest, [], copy)


def test_pixels_are_counted_by_value(shards: Path, tmp_path: Path, write_slice: WriteSlice) -> None:
    """Padding below, values of one bin, and one far above."""
    pixels = np.array([[-2000, 0, 15, 16], [1024, 1024, 1024, 32767]], np.int16)
    write_slice(tmp_path / "a.dcm", pixels, ImagePositionPatient=[0.0, 0.0, 0.0])
    row = task_of(shards).rows[0] | {"rows": 2, "columns": 4, "position_z": 0.0, "repair": "none"}
    task = task_of(
        shards,
        rows=(row,),
        pictured=(False,),
        files=(b"a.dcm",),
        source=InputFiles(str(tmp_path)),
    )
    (view,) = view_slices(task, Watch())
    assert view.histograms is not None

    def filled(histogram: np.ndarray) -> dict[int, int]:
        return {LOWEST + BIN * int(i): int(histogram[i]) for i in np.flatnonzero(histogram)}

    assert filled(view.histograms["stored"]) == {-2000: 1, 0: 2, 16: 1, 1024: 3, 32752: 1}
    assert filled(view.histograms["hounsfield"]) == {-3024: 1, -1024: 2, -1008: 1, 0: 3, 31728: 1}


# Around it


def test_a_card_is_no_part_of_what_has_to_be_the_same(shards: Path, tmp_path: Path) -> None:
    assert "report.html" not in manifest_of(shards)["files"]
    copy, manifest = again(shards, tmp_path)
    assert verify_directory(str(copy)).findings.ok
    (copy / "report.html").unlink()
    assert verify_directory(str(copy)).findings.ok
    assert manifest["run"]["runner"] == "local"


def test_the_command_makes_a_card_of_any_directory(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, _ = again(shards, tmp_path)
    before = (copy / "report.html").read_bytes()
    (copy / "report.html").unlink()
    assert main(["--shards", str(copy)]) == 0
    assert (copy / "report.html").read_bytes() == before
    moved = shutil.copytree(shards.parent / "in", tmp_path / "moved")
    (copy / "report.html").unlink()
    assert main(["--shards", str(copy), "--input", str(moved)]) == 0
    assert (copy / "report.html").read_bytes() == before
    assert capsys.readouterr().out == f"written: {copy}/report.html\n" * 2


def test_files_shown_by_number_are_found_in_the_input(
    hounsfield_shards: Path, tmp_path: Path
) -> None:
    copy, _ = again(hounsfield_shards, tmp_path)
    before = (copy / "report.html").read_bytes()
    assert main(["--shards", str(copy)]) == 0
    assert (copy / "report.html").read_bytes() == before
    moved = shutil.copytree(hounsfield_shards.parent / "in", tmp_path / "moved")
    (moved / "another.dcm").write_bytes(b"")
    assert main(["--shards", str(copy), "--input", str(moved)]) == 0
    assert "not looked at" in Page.read(copy / "report.html").text


@pytest.mark.parametrize("spoil", ["nothing", "manifest.json", "index.parquet", "input"])
def test_what_is_no_shard_directory_is_said_in_a_line(
    shards: Path, tmp_path: Path, spoil: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--shards", str(tmp_path / "copy")]
    if spoil != "nothing":
        copy, _ = again(shards, tmp_path)
        (copy / spoil).unlink(missing_ok=True)
    if spoil == "input":
        argv += ["--input", str(tmp_path / "none")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("card: error: ")
    assert error.count("\n") == 1
