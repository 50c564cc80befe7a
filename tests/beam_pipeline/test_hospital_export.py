"""An export as a hospital gives it: 40 studies with several series each, and labels per scan."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from beam_pipeline import pipeline
from beam_pipeline.options import Options
from beam_pipeline.planning.duplicates import ALONE
from beam_pipeline.planning.folds_from import Earlier
from beam_pipeline.planning.join_labels import (
    BY_HEADER,
    NOT_SAMPLED,
    SKIPPED,
    USED,
    VERDICTS,
    Inventory,
    JoinedFiles,
    judge,
)
from beam_pipeline.planning.labels import read_labels
from beam_pipeline.planning.plan_shards import deal, sample_patients
from beam_pipeline.verify.verification import verify_directory
from tests.beam_pipeline.dicom_files import make_dicom
from tests.beam_pipeline.steps import inspect_all

STUDIES = 40
# Maker, soft kernel and bone kernel of a study's scanner.
SCANNERS = (
    ("GE MEDICAL SYSTEMS", "STANDARD", "BONEPLUS"),
    ("SIEMENS", ["J40s", "3"], ["H70h", "3"]),
    ("Philips", "UB", "YD"),
    ("TOSHIBA", "FC26", "FC30"),
)
AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]
DOSE_REPORT = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67",
    "Modality": "SR",
    **dict.fromkeys(("PixelData", "Rows", "Columns", "BitsAllocated")),
}
LABELS = ("ich", "fracture")


@dataclass(frozen=True)
class Series:
    """A series of the export."""

    name: str
    slices: int
    mm: float | None = None
    kernel: Any = None
    attributes: dict[str, Any] = field(default_factory=dict)
    folders: int = 1


def series_of(study: int) -> Iterator[Series]:
    """What a study has."""
    _, soft, bone = SCANNERS[study % len(SCANNERS)]
    yield Series("scout", 1, attributes={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    yield Series("dose", 1, attributes=DOSE_REPORT)
    if study != 1:
        yield Series("soft", 1 if study == 7 else 4, 5, None if study == 4 else soft, folders=2)
    yield Series("bone", 6, 1, bone)
    if study == 2:
        yield Series("coronal", 5, 5, soft, {"ImageOrientationPatient": CORONAL})
    if study == 5:
        yield Series("medium", 8, 2.5, soft)
    if study == 6:
        yield Series("again", 5, 5, soft)
    if study == 8:
        yield Series("picture", 1, 5, soft, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"})


def patient_of(study: int) -> str:
    """A PatientID; the last four patients have two studies."""
    return f"MRN{study - (study >= 36) * 4:05d}"


def body_part(study: int) -> str:
    return "CHEST" if study % 10 == 3 else "HEAD"


def labels_of(study: int) -> tuple[int, int]:
    return int(study % 3 == 0), int(study % 5 == 0)


Kinds = dict[str, tuple[int, str]]  # study and series of each file


@pytest.fixture(scope="session")
def export(made_once: Callable[[str, Callable[[Path], object]], Path]) -> tuple[Path, Kinds]:
    """The folder, with labels per series, study and patient; and what its files are."""
    files: dict[str, tuple[int, str, dict[str, Any]]] = {}
    for study in range(STUDIES):
        for series in series_of(study):
            for number in range(series.slices):
                folder = f"{study:02d}/{series.name}{number % series.folders}"
                files[f"{folder}/IM{number:04d}"] = (study, series.name, {
                    "SOPInstanceUID": f"1.2.826.0.2.{study}.{len(files)}",
                    "PatientID": patient_of(study),
                    "StudyInstanceUID": f"1.2.826.0.3.{study}",
                    "SeriesInstanceUID": f"1.2.826.0.4.{study}.{series.name.encode().hex()}",
                    "Manufacturer": SCANNERS[study % len(SCANNERS)][0],
                    "BodyPartExamined": body_part(study),
                    "ConvolutionKernel": series.kernel,
                    "SliceThickness": series.mm,
                    "ImageOrientationPatient": AXIAL,
                    "ImagePositionPatient": [0.0, 0.0, (series.mm or 0) * number],
                    **series.attributes,
                })  # fmt: skip

    def write(folder: Path) -> None:
        rng = np.random.default_rng(0)
        for path, (_, _, attributes) in files.items():
            (folder / "in" / path).parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 1200, (64, 64)).astype(np.int16)
            (folder / "in" / path).write_bytes(make_dicom(pixels, **attributes))
        scans = pd.DataFrame(
            (attributes["SeriesInstanceUID"], attributes["StudyInstanceUID"], study)
            for study, _, attributes in files.values()
        )
        scans.columns = pd.Index(["SeriesInstanceUID", "StudyInstanceUID", "study"])
        scans["Patient ID"] = scans["study"].map(patient_of)
        scans[[*LABELS]] = [*map(labels_of, scans["study"])]
        for column in ("SeriesInstanceUID", "StudyInstanceUID", "Patient ID"):
            rows = scans.groupby(column, as_index=False)[[*LABELS]].max()
            rows.to_csv(folder / f"{column}.csv", index=False)

    return made_once("hospital_export", write), {
        path: (study, name) for path, (study, name, _) in files.items()
    }


def options_of(export: Path, output: Path, **changes: Any) -> Options:
    labels = changes.pop("labels", None)
    return Options.of(
        input=str(export / "in"),
        output=str(output),
        labels=labels and str(export / f"{labels}.csv"),
        image_size=32,
        folds=2,
        **changes,
    )


Decide = Callable[..., tuple[JoinedFiles, dict[str, str]]]


@pytest.fixture(scope="module")
def decide(export: tuple[Path, Kinds], tmp_path_factory: pytest.TempPathFactory) -> Decide:
    """Joins the files with labels by some options, and says what became of each file."""
    output = tmp_path_factory.mktemp("decided")
    options = options_of(export[0], output, labels="Patient ID")
    parts = inspect_all(options)

    def decided(
        labeled: Callable[[str], bool] = bool, **changes: Any
    ) -> tuple[JoinedFiles, dict[str, str]]:
        own, labels = options_of(export[0], output, **changes), None
        if own.files.labels:
            labels = read_labels(own.files.labels, own.labels)
            some = np.array([labeled(id_) for id_ in labels.ids.to_pylist()])
            labels = replace(labels, ids=labels.ids.filter(some), values=labels.values[some])
        joined = judge(Inventory.load(parts, own), labels, own)
        joined = sample_patients(joined, own)
        every = np.ones(len(joined.verdicts), np.bool_)
        rows = [
            row
            for _, table in joined.inventory.read(every, ["source", "reason"])
            for row in table.to_pylist()
        ]
        known = {USED: "used", NOT_SAMPLED: "not_sampled", SKIPPED: "skipped"}
        return joined, {
            row["source"].decode(): row["reason"]
            if verdict == BY_HEADER
            else known.get(verdict) or str(VERDICTS[verdict][0])
            for row, verdict in zip(rows, joined.verdicts.tolist(), strict=True)
        }

    return decided


HEADERS = {
    "scout": "localizer",
    "dose": "no_pixels",
    "coronal": "not_axial",
    "picture": "secondary_capture",
}


def test_without_options_all_axial_slices_are_written(
    export: tuple[Path, Kinds], decide: Decide
) -> None:
    _, reasons = decide()
    assert reasons == {path: HEADERS.get(name, "used") for path, (_, name) in export[1].items()}
    assert Counter(reasons.values()) == {
        "used": 39 * 4 - 3 + 40 * 6 + 8 + 5,
        "localizer": 40,
        "no_pixels": 40,
        "not_axial": 5,
        "secondary_capture": 1,
    }


@pytest.mark.parametrize(
    ("changes", "chosen", "note"),
    [
        # Study 1 has a bone kernel alone, study 4 an unknown kernel; in study 6, the longer of two.
        (
            {"one_series_per_study": True},
            {1: "bone", 6: "again"},
            "40 of 81 series, by kernel 38 soft, 1 unknown, 1 bone.",
        ),
        # The only soft slice of study 7 is too short a series; study 5 has a series of 2.5 mm.
        (
            {"one_series_per_study": True, "min_slices": 2, "slice_thickness": 3},
            {1: "bone", 5: "medium", 6: "again", 7: "bone"},
            "40 of 80 series, by kernel 37 soft, 1 unknown, 2 bone.",
        ),
        (
            {"one_series_per_study": True, "min_slices": 6},
            dict.fromkeys(range(STUDIES), "bone") | {5: "medium"},
            "40 of 41 series, by kernel 1 soft, 39 bone.",
        ),
    ],
)
def test_one_series_of_each_study_is_chosen(
    export: tuple[Path, Kinds],
    decide: Decide,
    changes: dict[str, Any],
    chosen: dict[int, str],
    note: str,
) -> None:
    joined, reasons = decide(**changes)
    sizes = Counter(export[1].values())
    few = changes.get("min_slices", 1)
    for path, (study, name) in export[1].items():
        expected = "used" if name == chosen.get(study, "soft") else "other_series"
        if sizes[study, name] < few:
            expected = "too_few_slices"
        assert reasons[path] == HEADERS.get(name, expected), path
    assert joined.notes[-1] == f"--one_series_per_study: {note}"


@pytest.mark.parametrize("unlabeled", ["skip", "reject"])
def test_series_without_labels_are_skipped_before_one_is_taken(
    export: tuple[Path, Kinds], decide: Decide, unlabeled: str
) -> None:
    _, reasons = decide(
        lambda uid: uid.endswith(b"bone".hex()),
        labels="SeriesInstanceUID",
        one_series_per_study=True,
        unlabeled=unlabeled,
    )
    of_bone = Counter(reasons[path] for path, (_, name) in export[1].items() if name == "bone")
    if unlabeled == "skip":
        assert of_bone == {"used": 6 * STUDIES}
    else:  # a soft series is taken, and has no label
        assert of_bone == {"used": 6, "other_series": 6 * (STUDIES - 1)}
        assert Counter(reasons.values())["label_missing"] == 38 * 4 - 3 + 5


def test_series_are_only_counted_without_the_choice(
    export: tuple[Path, Kinds], decide: Decide
) -> None:
    _, reasons = decide(min_slices=5)
    sizes = Counter(export[1].values())
    for path, (study, name) in export[1].items():
        expected = "used" if sizes[study, name] >= 5 else "too_few_slices"
        assert reasons[path] == HEADERS.get(name, expected)


@pytest.mark.parametrize(
    ("column", "level", "without_file"),
    [
        ("SeriesInstanceUID", "series", 40 + 40 + 1 + 1),  # scouts, reports and so on
        ("StudyInstanceUID", "study", 0),
        ("Patient ID", "patient", 0),
    ],
)
def test_each_slice_has_the_labels_of_its_scan(
    export: tuple[Path, Kinds], decide: Decide, column: str, level: str, without_file: int
) -> None:
    _, kinds = export
    joined, reasons = decide(labels=column, one_series_per_study=True)
    assert joined.labels_joined_by is not None
    assert (joined.labels_joined_by.level, joined.names) == (level, LABELS)
    assert joined.labels_without_file == without_file
    used = [kinds[path][0] for path, reason in sorted(reasons.items()) if reason == "used"]
    expected = [*map(labels_of, used)]
    if level == "patient":  # the last four patients have the labels of either study
        firsts = {patient_of(study): study for study in range(36)}
        expected = [
            tuple(np.maximum(labels_of(study), labels_of(firsts[patient_of(study)])))
            if study >= 36
            else tuple(np.maximum(labels_of(study), labels_of(study + 4)))
            if study >= 32
            else labels_of(study)
            for study in used
        ]
    assert [*map(tuple, joined.labels.tolist())] == expected
    sample, reasons = decide(labels=column, one_series_per_study=True, max_patients=12)
    studies = {kinds[path][0] for path, reason in reasons.items() if reason == "used"}
    assert len({*map(patient_of, studies)}) == 12
    assert sample.labels.mean(axis=0) == pytest.approx(joined.labels.mean(axis=0), abs=0.03)
    assert set(sample.slices.index) <= set(joined.slices.index)


def test_a_sample_keeps_the_folds_of_the_whole(
    export: tuple[Path, Kinds], decide: Decide, tmp_path: Path
) -> None:
    whole, _ = decide(labels="StudyInstanceUID")

    def splits(joined: JoinedFiles, options: Options, known: Any = None) -> dict[int, str]:
        alone = np.full(len(joined.slices), ALONE)
        dealt = deal(joined, alone, options.splits, known).items()
        return {int(joined.slices.index[row]): shard.split for shard, rows in dealt for row in rows}

    options = options_of(export[0], whole.inventory.unfinished.folder.url)
    expected = splits(whole, options)
    hashes = whole.slices["patient_id"].map(dict(enumerate(whole.inventory.texts["patient_id"])))
    table = pd.DataFrame({"patient_id": hashes, "split": pd.Series(expected)})
    table.to_csv(tmp_path / "folds.csv", index=False)
    sample, _ = decide(labels="StudyInstanceUID", max_patients=10)
    options = options.changed(folds_from=str(tmp_path / "folds.csv"))
    known, note = Earlier.read(options).find(sample)
    assert note == "--folds_from: 10 of 10 patients keep their split, found by patient_id."
    kept = splits(sample, options, known)
    assert kept == {row: expected[row] for row in kept}
    assert len(kept) == len(sample.slices)


def test_a_run_of_the_export(export: tuple[Path, Kinds], tmp_path: Path) -> None:
    folder, kinds = export
    options = options_of(
        folder,
        tmp_path / "out",
        labels="StudyInstanceUID",
        where=["BodyPartExamined=HEAD"],
        one_series_per_study=True,
        min_slices=2,
        max_patients=20,
        identifiers="keep",
    )
    pipeline.run_here(options)
    result = verify_directory(str(tmp_path / "out"))
    assert [str(finding) for finding in result.findings.kept] == []
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    index = pq.read_table(tmp_path / "out" / "index.parquet").to_pandas()
    studies = {f"1.2.826.0.3.{study}": study for study in range(STUDIES)}
    assert index["patient_id"].nunique() == 20
    assert (index.groupby("study_id")["series_id"].nunique() == 1).all()
    for _, row in index.iterrows():
        study, name = kinds[row["source"]]
        assert name == {1: "bone", 6: "again", 7: "bone"}.get(study, "soft")
        assert (body_part(study), study) == ("HEAD", studies[row["study_id"]])
        assert (row["label_ich"], row["label_fracture"]) == labels_of(study)
    heads = [kind for kind in kinds.values() if body_part(kind[0]) == "HEAD"]
    counts = manifest["counts"]
    assert counts["rejected"] == 0
    assert counts["excluded_by_reason"] == {
        "localizer": 40,
        "no_pixels": 40,
        "not_axial": 5,
        "not_selected": 4 * 10,
        "other_series": sum(
            (study, name) in {(5, "medium"), (6, "soft")}
            or (name == "bone" and study not in (1, 7))
            for study, name in heads
        ),
        "secondary_capture": 1,
        "too_few_slices": 1,
    }
    assert counts["not_sampled"] + counts["written"] + counts["excluded"] == len(kinds)
    assert (manifest["label_level"], counts["labels_without_file"]) == ("study", 4)
    assert manifest["acquisition"]["kernel"].keys() <= {
        *("STANDARD", "J40s\\3", "UB", "FC26", "absent"),
        *("BONEPLUS", "H70h\\3", "YD", "FC30"),
    }
