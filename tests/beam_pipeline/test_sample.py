"""The synthetic sample: its bytes, its anatomy, its labels and its bad files."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import FileDataset

from examples.sample import SampleError, SampleSummary, write_sample
from examples.sample.__main__ import main
from examples.sample.anatomy import Tissues, slice_tissues, vault
from examples.sample.encoding import BADLY_ENCODED, ENCODINGS, stored_values
from examples.sample.fields import Points, Waves, capsule, ellipsoid, enlarge
from examples.sample.hemorrhage import KINDS, MIN_VISIBLE_MM2, SCENARIOS, Bleed, displacement
from examples.sample.scanner import Patient, scan_slice, with_artifacts
from examples.sample.writer import LABELS, PATIENTS, VERSION, Parameters, bad_files, image_id
from tests.processes import run_python

# RSNA's UIDs are no valid UIDs, and pydicom says so of each.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning")

SMALL = {"patients": 2, "slices": 4, "seed": 7, "test_patients": 1}
# Small enough for a test, large enough that every kind of blood is there.
DOZEN = Parameters(patients=12, slices=28, test_patients=1)


OLDER = {"patients": 3, "slices": 5, "seed": 1, "test_patients": 1}
CopySample = Callable[..., SampleSummary]


@pytest.fixture(scope="session")
def dozen(made_once: Callable[..., Path]) -> SampleSummary:
    """A sample that no test changes."""
    given = {"patients": 12, "slices": 28, "test_patients": 1}
    return write_sample(made_once("dozen", lambda folder: write_sample(folder, **given)), **given)


@pytest.fixture(scope="session")
def copy_sample(made_once: Callable[..., Path]) -> CopySample:
    """Puts a sample of some parameters, written once, where a test may change it."""

    def copy(folder: Path, **given: int) -> SampleSummary:
        name = "-".join(["sample", *map(str, given.values())])
        made = made_once(name, lambda new: write_sample(new, **given))
        shutil.copytree(made, folder, dirs_exist_ok=True)
        return write_sample(folder, **given)

    return copy


def read(path: Path) -> FileDataset:
    return pydicom.dcmread(path)


def hounsfield(dataset: FileDataset) -> npt.NDArray[np.float64]:
    pixels = np.frombuffer(dataset.PixelData, "<i2" if dataset.PixelRepresentation else "<u2")
    return pixels.reshape(dataset.Rows, dataset.Columns) + float(dataset.RescaleIntercept)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def label_table(summary: SampleSummary) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    with summary.labels.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name, label = row["ID"].rsplit("_", 1)
            table.setdefault(name, {})[label] = int(row["Label"])
    return table


def patient(number: int, slices: int = 28) -> Patient:
    return Patient.random(number, slices, np.random.SeedSequence(0, spawn_key=(number,)))


def tissues_of(subject: Patient, index: int) -> Tissues:
    points = subject.head.points(subject.geometry.plane(index, 128))
    return slice_tissues(subject.head, points, displacement(subject.bleeds, points))


# Bytes


def test_same_parameters_same_bytes_whatever_the_processes(tmp_path: Path) -> None:
    one = write_sample(tmp_path / "one", **SMALL)
    two = write_sample(tmp_path / "two", **SMALL, workers=2)
    assert digest(one.output) == digest(two.output)


def test_another_seed_shares_no_file(tmp_path: Path) -> None:
    one = write_sample(tmp_path / "one", patients=1, slices=4, seed=1)
    two = write_sample(tmp_path / "two", patients=1, slices=4, seed=2)
    assert not set(digest(one.slices)) & set(digest(two.slices))


def test_more_patients_leave_the_first_ones_as_they_are() -> None:
    one, two = patient(2).geometry, patient(2).geometry
    assert one == two
    few, many = Parameters(3, 5, 7), Parameters(30, 50, 7)
    assert image_id(few, 2, 4) == image_id(many, 2, 4)


def test_identifiers_are_all_different(dozen: SampleSummary) -> None:
    names = {image_id(DOZEN, p, i) for p in range(12) for i in range(-3, 30)}
    assert len(names) == 12 * 33


# Whole or not at all


def test_a_whole_sample_is_reused_untouched(tmp_path: Path) -> None:
    first = write_sample(tmp_path, **SMALL)
    times = {path: path.stat().st_mtime_ns for path in first.slices.rglob("*.dcm")}
    second = write_sample(tmp_path, **SMALL)
    assert (first.reused, second.reused) == (False, True)
    assert replace(second, reused=False) == first
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize("lost", ["labels.csv", "slice"])
def test_an_unfinished_sample_is_finished(
    tmp_path: Path, lost: str, copy_sample: CopySample
) -> None:
    summary = copy_sample(tmp_path, **SMALL)
    whole = digest(tmp_path)
    (summary.labels if lost == "labels.csv" else next(summary.slices.glob("*.dcm"))).unlink()
    assert not write_sample(tmp_path, **SMALL).reused
    assert digest(tmp_path) == whole


def make_older(folder: Path) -> None:
    """Turn a sample into one as version 1 wrote it: other patients, no slices to predict."""
    marker = {"patients": 12, "slices": 28, "seed": 0, "version": 1}
    (folder / "sample.json").write_text(json.dumps(marker))
    for path in (folder / "test_slices").iterdir():
        path.rename(folder / "slices" / path.name)
    (folder / "test_slices").rmdir()


def test_a_sample_of_an_older_version_is_replaced(
    tmp_path: Path, copy_sample: CopySample, capsys: pytest.CaptureFixture[str]
) -> None:
    new = copy_sample(tmp_path / "new", **SMALL)
    old = copy_sample(tmp_path / "old", **OLDER)
    make_older(old.output)
    arguments = [f"--{name}={value}" for name, value in SMALL.items()]
    assert main(["--output", str(old.output), *arguments]) == 0
    assert digest(old.output) == digest(new.output)
    assert "older sample; remove shards and runs" in capsys.readouterr().out
    assert write_sample(old.output, **SMALL).reused


def test_a_replacement_that_was_interrupted_is_finished(
    tmp_path: Path, copy_sample: CopySample, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = copy_sample(tmp_path / "new", **SMALL)
    old = copy_sample(tmp_path / "old", **OLDER)
    make_older(old.output)
    unlink, calls = Path.unlink, iter(range(9))

    def stop(path: Path, missing_ok: bool = False) -> None:
        if next(calls) == 8:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            write_sample(old.output, **SMALL)
    assert write_sample(old.output, **SMALL).replaced
    assert digest(old.output) == digest(new.output)


def test_a_replacement_keeps_files_that_are_not_its_own(
    tmp_path: Path, copy_sample: CopySample
) -> None:
    summary = copy_sample(tmp_path, **SMALL)
    make_older(tmp_path)
    (summary.slices / "notes.txt").write_text("mine")
    assert write_sample(tmp_path, **SMALL).replaced
    assert (summary.slices / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON", '{"version": "1"}'])
def test_a_marker_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "sample.json").write_text(content)
    with pytest.raises(SampleError, match=r"sample\.json is not a sample's"):
        write_sample(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["sample.json"]


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} is not empty and holds no sample; choose another --output\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_sample_of_other_parameters_is_left_alone(
    tmp_path: Path, copy_sample: CopySample, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_sample(tmp_path, **SMALL)
    before = digest(tmp_path)
    assert main(["--output", str(tmp_path), "--seed", "8"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert digest(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--output", str(tmp_path / "file" / "sample")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "wrong",
    [{"patients": 0}, {"slices": 3}, {"slices": 401}, {"seed": -1}, {"test_patients": -1}],
    ids=str,
)
def test_parameters_out_of_range_name_the_value(tmp_path: Path, wrong: dict[str, int]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(SampleError, match=rf"--{name} {value}: want"):
        write_sample(tmp_path / "none", **wrong)
    assert not (tmp_path / "none").exists()


def test_the_command_says_two_lines_and_no_warning(tmp_path: Path) -> None:
    command = ("-m", "examples.sample", "--output", tmp_path / "new")
    done = run_python(*command, "--patients", "1", "--slices", "4", "--test_patients", "2")
    assert done.stderr == ""
    assert done.stdout.count("\n") == 2
    assert (
        "9 files of 1 patients (7 bad on purpose), and 8 of 2 others without labels, written."
    ) in done.stdout


# The data set


def test_series_are_complete_and_lie_in_order(dozen: SampleSummary) -> None:
    for number in range(12):
        series = [
            read(dozen.slices / f"{image_id(dozen.parameters, number, i)}.dcm") for i in range(28)
        ]
        for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
            assert len({str(d[name].value) for d in series}) == 1
        positions = np.array([d.ImagePositionPatient for d in series], float)
        # Equal steps along z; the cropped slice begins further in, in its own plane.
        down = np.array(series[0].ImageOrientationPatient[3:], float)
        whole = np.array([d.Rows == 512 for d in series])
        assert np.ptp(np.diff(positions[whole], axis=0), axis=0)[:2] == pytest.approx(0, abs=1e-5)
        steps = np.diff(positions[:, 2][whole])
        assert steps.min() > 4
        assert down @ down == pytest.approx(1, abs=1e-5)


def test_headers_hold_what_rsnas_hold_and_no_more(dozen: SampleSummary) -> None:
    first = read(dozen.slices / f"{image_id(dozen.parameters, 0, 0)}.dcm")
    assert [element.keyword for element in first] == [
        *("SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
        *("StudyID", "ImagePositionPatient", "ImageOrientationPatient", "SamplesPerPixel"),
        *("PhotometricInterpretation", "Rows", "Columns", "PixelSpacing", "BitsAllocated"),
        *("BitsStored", "HighBit", "PixelRepresentation", "WindowCenter", "WindowWidth"),
        *("RescaleIntercept", "RescaleSlope", "PixelData"),
    ]
    assert first.SOPInstanceUID == image_id(dozen.parameters, 0, 0)
    assert (first.StudyID, len(first.PatientID)) == ("", 11)


def test_all_encodings_of_the_real_files_occur(dozen: SampleSummary) -> None:
    seen = set()
    for number in range(4):
        d = read(dozen.slices / f"{image_id(dozen.parameters, number, 0)}.dcm")
        syntax = d.file_meta.TransferSyntaxUID.is_implicit_VR
        padded = bool((np.frombuffer(d.PixelData, "<i2") == -2000).any())
        center = d.WindowCenter if d["WindowCenter"].VM == 1 else tuple(d.WindowCenter)
        intercept = d.RescaleIntercept.original_string
        seen.add((syntax, d.BitsStored, d.PixelRepresentation, padded, intercept, center))
    assert seen == {
        (False, 16, 1, True, "-1024", 30),
        (True, 12, 0, False, "-1024", (36, 36)),
        (False, 16, 1, False, "-1024.000000", 35),
        (False, 12, 0, False, "-1024", (40, 40)),
    }


def test_labels_are_long_in_order_and_any_is_the_or(dozen: SampleSummary) -> None:
    lines = dozen.labels.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "ID,Label"
    assert [line.split(",")[0].rsplit("_", 1)[1] for line in lines[1:7]] == list(LABELS)
    assert len(lines) - 1 - len(set(lines[1:])) == 24  # identical rows, as in Kaggle's file
    for row in label_table(dozen).values():
        assert row["any"] == max(row[kind] for kind in KINDS)


def test_every_kind_occurs_in_two_patients_and_a_third_have_none(dozen: SampleSummary) -> None:
    table = label_table(dozen)
    patients: Counter[str] = Counter()
    for number in range(12):
        rows = [table[image_id(dozen.parameters, number, i)] for i in range(28)]
        patients.update(label for label in LABELS if any(row[label] for row in rows))
    assert min(patients[kind] for kind in KINDS) >= 2
    assert 6 <= patients["any"] <= 9
    assert min(dozen.label_counts.values()) >= 12


def test_slices_to_predict_are_of_other_patients_and_have_no_labels(dozen: SampleSummary) -> None:
    found = [read(path) for path in sorted(dozen.test_slices.iterdir())]
    patients = {str(each.PatientID) for each in found}
    known = {
        str(read(dozen.slices / f"{image_id(DOZEN, number, 0)}.dcm").PatientID)
        for number in range(12)
    }
    assert len(found) == dozen.test_files == 28
    assert len(patients) == 1
    assert len(known) == 12
    assert not patients & known
    assert not {path.stem for path in dozen.test_slices.iterdir()} & set(label_table(dozen))


def test_each_of_five_folds_can_have_three_patients_of_every_kind() -> None:
    patients = Counter(
        kind for number in range(PATIENTS) for kind in SCENARIOS[number % len(SCENARIOS)]
    )
    assert min(patients[kind] for kind in KINDS) >= 3 * 5


def test_second_dozen_has_kinds_alone() -> None:
    assert {kinds[0] for kinds in SCENARIOS if len(kinds) == 1} == set(KINDS)


# Scans


def test_with_scans_series_are_thin_or_thick_and_the_sample_is_whole(tmp_path: Path) -> None:
    given = {"patients": 1, "slices": 4, "test_patients": 1, "seed": 1, "scans": True}
    summary = write_sample(tmp_path, **given)
    sizes = [summary.parameters.slices_of(number) for number in range(2)]
    assert sizes == [4, 8]
    assert (summary.files, summary.test_files) == (4 + 5, 8)
    assert write_sample(tmp_path, **given).reused
    assert {*label_table(summary)} >= {image_id(summary.parameters, 0, i) for i in range(4)}
    assert {path.stem for path in summary.test_slices.iterdir()} == {
        image_id(summary.parameters, 1, i) for i in range(8)
    }
    with pytest.raises(SampleError, match="other parameters"):
        write_sample(tmp_path, **{**given, "scans": False})


def test_an_artifact_is_on_one_slice_like_a_clot_and_not_labeled() -> None:
    healthy = patient(0)
    subject = with_artifacts(healthy, 28, np.random.default_rng(1))
    numbers = sorted(subject.artifacts)
    assert 1 <= len(numbers) <= 8
    assert min(np.diff(numbers), default=2) > 1
    index = next(number for number in numbers if 8 < number < 20)
    for near in (index - 1, index, index + 1):
        scan, plain = scan_slice(subject, near), scan_slice(healthy, near)
        assert scan.labels == plain.labels
        risen = scan.hu - plain.hu > 8
        area = float(risen.sum()) * subject.geometry.pixel_mm**2
        if near == index:
            assert area > 5 * MIN_VISIBLE_MM2
            assert 45 < np.median(scan.hu[risen]) < 80
        else:
            assert area == 0


# Bad files


def bad(summary: SampleSummary, fault: str) -> Path:
    return summary.output / summary.bad_files[fault]


def test_bad_files_are_few_at_any_size(dozen: SampleSummary, tmp_path: Path) -> None:
    small = write_sample(tmp_path, patients=1, slices=4)
    assert len(small.bad_files) == len(dozen.bad_files) == 7
    assert len(set(small.bad_files.values())) == 7
    assert dozen.files == 12 * 28 + 5
    assert len(dozen.bad_files) < 0.05 * dozen.files
    places = [(b.patient, b.index) for b in bad_files(DOZEN)]
    assert len(set(places)) == 7


def test_truncated_has_a_part_of_its_pixels(dozen: SampleSummary) -> None:
    content = bad(dozen, "truncated").read_bytes()
    start = content.index(b"\xe0\x7f\x10\x00OW\x00\x00") + 12
    assert len(content) - start == 153_710
    assert bad(dozen, "truncated").stem in label_table(dozen)


def test_not_dicom_is_not(dozen: SampleSummary) -> None:
    with pytest.raises(pydicom.errors.InvalidDicomError):
        pydicom.dcmread(bad(dozen, "not_dicom"))


def test_unlabelled_is_a_good_file_without_rows(dozen: SampleSummary) -> None:
    path = bad(dozen, "unlabelled")
    assert hounsfield(read(path)).shape == (512, 512)
    assert path.stem not in dozen.labels.read_text(encoding="utf-8")


def test_constant_has_one_value(dozen: SampleSummary) -> None:
    assert np.unique(hounsfield(read(bad(dozen, "constant")))).tolist() == [-1024]


def test_duplicate_is_a_copy_in_a_subfolder(dozen: SampleSummary) -> None:
    copy = bad(dozen, "duplicate")
    assert copy.parent.name == "duplicate"
    assert copy.read_bytes() == (dozen.slices / copy.name).read_bytes()


def test_cropped_keeps_its_place_and_labels(dozen: SampleSummary) -> None:
    path = bad(dozen, "cropped")
    dataset = read(path)
    fault = next(b for b in bad_files(DOZEN) if b.fault == "cropped")
    scan = scan_slice(patient(fault.patient), fault.index)
    assert (dataset.Rows, dataset.Columns) == (472, 424)
    expected = np.clip(np.rint(scan.hu), -1024, 3071)[20:492, 44:468]
    assert np.array_equal(hounsfield(dataset), expected)
    assert {k: bool(v) for k, v in label_table(dozen)[path.stem].items()} == scan.labels
    assert scan.labels["any"]


def test_badly_encoded_is_undone_by_the_known_repair(dozen: SampleSummary) -> None:
    path = bad(dozen, "badly_encoded")
    dataset = read(path)
    assert (dataset.BitsStored, dataset.PixelRepresentation) == (12, 0)
    assert float(dataset.RescaleIntercept) > -100
    raw = np.frombuffer(dataset.PixelData, "<u2").reshape(512, 512).astype(np.int32)
    assert Counter(raw[:20].ravel().tolist()).most_common(1)[0][0] in range(3096, 3102)
    moved = raw + 1000
    repaired = np.where(moved >= 4096, moved - 4096, moved) - 1000
    fault = next(b for b in bad_files(DOZEN) if b.fault == "badly_encoded")
    scan = scan_slice(patient(fault.patient), fault.index)
    assert np.array_equal(repaired, np.clip(np.rint(scan.hu), -1000, 3095))
    assert {k: bool(v) for k, v in label_table(dozen)[path.stem].items()} == scan.labels


# Hounsfield units


def test_stored_values_by_hand() -> None:
    hu = np.array([[-1000.4, 0.0, 40.6, 5000.0]], np.float32)
    assert stored_values(hu, ENCODINGS[1]).tolist() == [[24, 1024, 1065, 4095]]
    assert stored_values(hu, BADLY_ENCODED).tolist() == [[3096, 0, 41, 3095]]


def test_both_encodings_read_back_by_pydicom_to_the_scanned_hu(dozen: SampleSummary) -> None:
    for number in (0, 1):
        dataset = read(dozen.slices / f"{image_id(dozen.parameters, number, 12)}.dcm")
        hu = dataset.pixel_array + float(dataset.RescaleIntercept)
        scanned = scan_slice(patient(number), 12).hu
        inside = hu > -2000
        assert np.abs(hu - np.clip(scanned, -1024, 3071))[inside].max() <= 0.5
        # Outside the circle: 1 - pi / 4 of the image, padded in the 16-bit kind alone.
        assert np.mean(~inside) == pytest.approx(0.2146 if number == 0 else 0, abs=0.001)
        assert (hu[~inside] == -3024).all()


def test_tissues_have_the_hu_they_should() -> None:
    subject = patient(0)
    tissues, hu = tissues_of(subject, 15), scan_slice(subject, 15).hu
    inner, outer, skin = (enlarge(f) for f in (tissues.inner, tissues.outer, tissues.skin))
    deep = (enlarge(vault(tissues.points)) < -25) & (enlarge(tissues.ventricles) > 3)
    assert -1010 < hu[skin > 3].mean() < -990
    assert 0 < hu[enlarge(tissues.ventricles) < -1.5].mean() < 15
    assert 24 < hu[deep].mean() < 40
    assert 600 < hu[(inner > 1) & (outer < -1)].mean() < 1500
    assert hu[(inner > 0.7) & (outer < -0.7)].max() > 1200
    assert -100 < hu[(outer > 2) & (skin < -3.5)].mean() < 0


def test_gray_matter_is_brighter_than_white() -> None:
    subject = patient(0)
    tissues, hu = tissues_of(subject, 17), scan_slice(subject, 17).hu
    depth, sulcus = -enlarge(tissues.inner), np.abs(enlarge(tissues.sulcus))
    away = enlarge(tissues.ventricles) > 6
    cortex = hu[(depth > 4) & (depth < 15) & (sulcus > 2) & (sulcus < 3.5) & away]
    white = hu[(depth > 6) & (sulcus > 8) & away]
    assert 3 < cortex.mean() - white.mean() < 10


def test_noise_is_as_strong_and_as_smooth_as_a_real_slices() -> None:
    subject = patient(0)
    noise = scan_slice(subject, 12).hu[:40, 200:300]  # air above the forehead
    noise = noise - noise.mean()
    assert noise.std() == pytest.approx(subject.noise_hu, rel=0.15)
    # Measured over 8 real series: 0.62 to 0.76 at one pixel, 0.13 to 0.40 at two.
    assert 0.55 < (noise[:, 1:] * noise[:, :-1]).mean() / noise.var() < 0.8
    assert 0.1 < (noise[:, 2:] * noise[:, :-2]).mean() / noise.var() < 0.4


# Blood


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (1, "epidural"),
        (2, "intraparenchymal"),
        (18, "intraventricular"),
        (17, "subarachnoid"),
        (3, "subdural"),
    ],
)
def test_labels_say_what_a_slice_shows(
    number: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Against the same slice without that blood, nothing being pushed aside by it.
    still = np.zeros((128, 128), np.float32)
    monkeypatch.setattr(Bleed, "push", lambda bleed, points: (still, still))
    subject = patient(number)
    healthy = replace(subject, bleeds=tuple(b for b in subject.bleeds if b.kind != kind))
    shown = []
    for index in range(4, 26, 3):
        scan, plain = scan_slice(subject, index), scan_slice(healthy, index)
        risen = scan.hu - plain.hu > 8
        area = float(risen.sum()) * subject.geometry.pixel_mm**2
        if not 0.4 * MIN_VISIBLE_MM2 < area < 2.5 * MIN_VISIBLE_MM2:
            assert scan.labels[kind] == (area > MIN_VISIBLE_MM2), index
        if area > 5 * MIN_VISIBLE_MM2:
            shown.append(float(np.median(scan.hu[risen])))
    assert shown
    assert min(shown) > 35
    assert max(shown) < 80


def test_epidural_is_outermost_and_on_one_side() -> None:
    subject = patient(1)
    (bleed,) = subject.bleeds
    tissues = tissues_of(subject, 13)
    blood = bleed.distance(tissues, enlarge(tissues.cisterns)) < 0
    x = enlarge(tissues.points.x)[blood] * bleed.side
    assert x.min() > 10
    assert enlarge(tissues.inner)[blood].max() > -1.5


# Fields


def test_distances_by_hand() -> None:
    points = Points(*(np.array(v, np.float32) for v in ([0, 3, 10], [0, 4, 0], [0, 0, 0])))
    assert ellipsoid(points, (0, 0, 0), (5, 5, 5)).tolist() == pytest.approx([-5, 0, 5])
    assert capsule(points, (-9, 0, 0), (0, 0, 0), (1, 2)).tolist() == pytest.approx([-2, 3, 8])


def test_waves_have_mean_0_and_deviation_1() -> None:
    grid = np.meshgrid(*[np.linspace(-400, 400, 60, dtype=np.float32)] * 2)
    values = Waves.random(np.random.default_rng(3), 20, count=40).at(
        Points(grid[0], grid[1], np.full_like(grid[0], 5))
    )
    assert values.mean() == pytest.approx(0, abs=0.1)
    assert values.std() == pytest.approx(1, abs=0.15)


def test_everything_stays_float32() -> None:
    scan, tissues = scan_slice(patient(10), 14), tissues_of(patient(10), 14)
    assert scan.hu.dtype == np.float32
    assert {f.dtype for f in (tissues.brain_hu, tissues.inner, tissues.sulcus)} == {scan.hu.dtype}


def test_marker_tells_the_parameters(dozen: SampleSummary) -> None:
    marker = json.loads((dozen.output / "sample.json").read_text(encoding="utf-8"))
    assert marker == {
        "patients": 12,
        "slices": 28,
        "seed": 0,
        "test_patients": 1,
        "version": VERSION,
    }
