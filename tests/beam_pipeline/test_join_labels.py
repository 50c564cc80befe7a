"""Files and labels as archives and workstations export them: the same names in every folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from beam_pipeline import pipeline
from beam_pipeline.errors import TooManyRejects
from beam_pipeline.keys import hash_id
from beam_pipeline.options import Identifiers, ImageId, Options, Unlabeled
from beam_pipeline.planning.label_match import LabelForm, check_labels_fit
from beam_pipeline.planning.plan_shards import plan_shards
from beam_pipeline.shards.unfinished import Plan, Unfinished
from beam_pipeline.verify.verification import verify_directory
from headct.errors import UsageError
from headct.layout import REJECTS_TABLE, SHARDS_A_PART, plan_table
from headct.stores import Folder, InputFiles
from tests.beam_pipeline.steps import inspect_all

WriteSlice = Callable[..., Path]
KEY = "key-of-all-identifiers-0123456789"
# Two series of two patients each: the names say nothing.
FILES = {
    f"P{patient}/S{series}/IM000{number}.dcm": f"1.2.826.0.1.{patient}.{series}.{number}"
    for patient in range(4)
    for series in range(2)
    for number in range(2)
}


@pytest.fixture
def export(tmp_path: Path, write_slice: WriteSlice) -> Path:
    for path, uid in FILES.items():
        write_slice(
            tmp_path / "in" / path,
            SOPInstanceUID=uid,
            PatientID=path[:2],
            StudyInstanceUID=f"1.2.3.{path[1]}",
            SeriesInstanceUID=f"1.2.3.{path[1]}.{path[4]}",
        )
    return tmp_path


def options_for(folder: Path, ids: dict[str, str] | None = None, **changes: Any) -> Options:
    """Options of a run; `ids` are those in the label file, by path."""
    options = Options.of(
        input=str(folder / "in"),
        output=str(folder / "out"),
        image_size=32,
        folds=2,
        leak_check="off",
    )
    if ids is not None:
        lines = [f"{id_},{place % 2}" for place, id_ in enumerate(ids.values())]
        (folder / "labels.csv").write_text("\n".join(["image_id,any", *lines]))
        options = options.changed(labels=str(folder / "labels.csv"))
    return options.changed(**changes)


def plan(options: Options) -> tuple[Plan, pd.DataFrame, list[dict[str, str]]]:
    """A run's plan, its slices by source, and its rejects."""
    found = plan_shards(inspect_all(options), options)
    unfinished = Unfinished(Folder(options.files.output))
    tables = [
        unfinished.read_batch(plan_table(n // SHARDS_A_PART), n % SHARDS_A_PART).to_pandas()
        for n in range(len(found.shards))
    ]
    slices = pd.concat(tables)
    slices.index = pd.Index([source.decode() for source in slices["source"]])
    return found, slices.sort_index(), unfinished.read(REJECTS_TABLE).to_pylist()


FORMS = {
    "path": lambda path, uid: ".\\" + path.removesuffix(".dcm").replace("/", "\\"),
    "SOP Instance UID": lambda path, uid: uid,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_slice_has_its_own_label_whatever_it_is_called(export: Path, form: str) -> None:
    ids = {path: FORMS[form](path, uid) for path, uid in FILES.items()}
    found, slices, rejects = plan(options_for(export, ids))
    assert (found.image_id, found.labels_joined_by, rejects) == ("sop_instance_uid", form, [])
    assert slices["label_any"].to_dict() == {path: n % 2 for n, path in enumerate(FILES)}
    assert slices["image_id"].tolist() == [f"image_{n:06d}" for n in range(1, 17)]
    assert found.notes == (
        "16 files have the name of another slice, so slices are told apart by SOP Instance UID; "
        "image ids are ordinals.",
        f"Labels joined by {form}: 16 of 16 labels, 16 of 16 files.",
    )


@pytest.mark.parametrize("identifiers", [Identifiers.KEEP, Identifiers.HASH])
def test_uids_are_written_by_the_rule_of_other_ids(export: Path, identifiers: Identifiers) -> None:
    (export / "key").write_text(KEY)
    ids = dict(FILES)
    options = options_for(
        export, ids, identifiers=identifiers, identifier_key_file=str(export / "key")
    )
    found, slices, _ = plan(options)
    assert found.labels_joined_by == "SOP Instance UID"
    expected = {
        path: uid if identifiers is Identifiers.KEEP else hash_id(KEY.encode(), "image_id", uid)
        for path, uid in FILES.items()
    }
    assert slices["image_id"].to_dict() == expected


@pytest.mark.parametrize("image_id", ImageId)
def test_labels_are_joined_for_any_kind_of_image_id(export: Path, image_id: ImageId) -> None:
    options = options_for(export, {path: path for path in FILES}, image_id=image_id)
    if image_id is ImageId.FILE_NAME:
        with pytest.raises(TooManyRejects, match="duplicate_id 14"):
            plan(options)
        return
    found, slices, _ = plan(options)
    assert (found.labels_joined_by, len(slices)) == ("path", 16)


def test_a_name_of_several_slices_labels_none(export: Path) -> None:
    with pytest.raises(TooManyRejects, match="label_missing 16"):
        plan(options_for(export, {"a": "IM0000", "b": "IM0001"}))
    rejects = (export / "out" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(rejects[0])["detail"].startswith("its row fits several slices")


def test_copies_are_duplicates_and_files_without_a_uid_have_no_id(
    export: Path, write_slice: WriteSlice
) -> None:
    first, second = [*FILES][:2]
    (export / "in" / "copy.dcm").write_bytes((export / "in" / first).read_bytes())
    write_slice(export / "in" / "none.dcm", SOPInstanceUID=None)
    _, slices, rejects = plan(options_for(export, max_reject_fraction=0.5))
    reasons = {reject["source"]: (reject["reason"], reject["detail"]) for reject in rejects}
    assert reasons == {
        "copy.dcm": ("duplicate_id", ""),
        "none.dcm": ("missing_attribute", "SOPInstanceUID"),
    } or reasons == {
        first: ("duplicate_id", ""),
        "none.dcm": ("missing_attribute", "SOPInstanceUID"),
    }
    assert {reject["image_id"] for reject in rejects} == {""}
    assert len(slices) == 16
    assert second in slices.index


def test_labels_of_other_files_are_refused_after_the_headers_too(export: Path) -> None:
    ids = {path: f"9{uid}" for path, uid in FILES.items()}
    with pytest.raises(
        UsageError, match=r"ids have the form '00\.0\.000\.0\.0\.0\.0\.0', the files"
    ):
        plan(options_for(export, ids))
    with pytest.raises(UsageError) as refused:
        plan(options_for(export, ids, image_id=ImageId.ORDINAL))
    assert "IM000" not in str(refused.value)


# Ids of what a file of FILES is in.
SCANS: dict[str, Callable[[str], str]] = {
    "series": lambda path: f"1.2.3.{path[1]}.{path[4]}",
    "study": lambda path: f"1.2.3.{path[1]}",
    "patient": lambda path: path[:2],
}


@pytest.mark.parametrize("identifiers", Identifiers)
@pytest.mark.parametrize("level", SCANS)
def test_slices_have_the_labels_of_their_scan(
    export: Path, level: str, identifiers: Identifiers
) -> None:
    (export / "key").write_text(KEY)
    of_file = {path: SCANS[level](path) for path in FILES}
    scans = [*dict.fromkeys(of_file.values())]
    ids = {scan: scan for scan in [*scans[:-1], "of no file"]}
    options = options_for(
        export,
        ids,
        unlabeled=Unlabeled.SKIP,
        identifiers=identifiers,
        identifier_key_file=str(export / "key"),
    )
    files = InputFiles.parse(options.files.input)
    check_labels_fit(pa.array(ids), options, files, files.list())
    found, slices, rejects = plan(options)
    values = {scan: place % 2 for place, scan in enumerate(scans[:-1])}
    expected = {path: values[scan] for path, scan in of_file.items() if scan in values}
    assert slices["label_any"].to_dict() == expected
    assert (rejects, found.skipped, found.labels_without_file) == ([], 16 - len(expected), 1)
    form = LabelForm[level.upper()]
    assert (found.label_level, found.labels_joined_by) == (level, form)
    assert found.notes[-2:] == (
        f"Labels joined by {form}: {len(scans) - 1} of {len(scans)} labels, {len(expected)} of 16 "
        f"files, {16 - len(expected)} without a label skipped.",
        f"The labels are per {level}: each slice has those of its {level}.",
    )


@pytest.fixture
def one_id(tmp_path: Path, write_slice: WriteSlice) -> tuple[Path, dict[str, str]]:
    """Patients whose only study has their id, and the labels' ids."""
    ids = {f"SUBJECT-{patient}": f"SUBJECT-{patient}" for patient in range(4)}
    for name in ids:
        for number in range(2):
            path = tmp_path / "in" / name / f"{name[-1]}{number}.dcm"
            write_slice(path, PatientID=name, StudyInstanceUID=name, SeriesInstanceUID=name[-1])
    return tmp_path, ids


def test_ids_of_two_levels_are_refused_until_an_option_says_which(
    one_id: tuple[Path, dict[str, str]],
) -> None:
    options = options_for(*one_id)
    with pytest.raises(UsageError) as refused:
        plan(options)
    assert str(refused.value) == (
        f"the ids of label file {options.files.labels} fit Study Instance UIDs and Patient IDs "
        "equally well: want --label_level study or --label_level patient"
    )
    for level in ("study", "patient"):
        found, slices, _ = plan(options.changed(label_level=level))
        assert (found.label_level, len(slices)) == (level, 8)
    for level in ("image", "series"):
        with pytest.raises(UsageError, match="its ids have the form 'AAAAAAA-0', the files like"):
            plan(options.changed(label_level=level))


def test_images_win_unless_more_labels_are_of_scans(one_id: tuple[Path, dict[str, str]]) -> None:
    folder, scans = one_id
    images = {path: path for path in ("00", "10", "20", "30")}
    options = options_for(folder, scans | images, unlabeled=Unlabeled.SKIP)
    found, slices, _ = plan(options)
    assert (found.label_level, len(slices)) == ("image", 4)
    (more := dict(images)).popitem()
    options = options_for(folder, scans | more, label_level="auto")
    with pytest.raises(UsageError, match="fit Study Instance UIDs and Patient IDs"):
        plan(options)


def test_unlabeled_files_are_skipped_if_asked(export: Path) -> None:
    (export / "in" / "notes.txt").write_text("no DICOM")
    labeled = {path: path for path in FILES if not path.startswith("P3")}
    with pytest.raises(TooManyRejects, match="label_missing 4"):
        plan(options_for(export, labeled))
    options = options_for(export, labeled, unlabeled=Unlabeled.SKIP, max_reject_fraction=0.1)
    found, slices, rejects = plan(options)
    assert (found.files_seen, found.skipped, found.slices) == (13, 4, 12)
    assert [reject["source"] for reject in rejects] == ["notes.txt"]
    assert set(slices.index) == set(labeled)
    assert found.notes[-1].endswith("12 of 17 files, 4 without a label skipped.")


def test_a_directory_of_a_sample_with_skipped_files_is_right(export: Path) -> None:
    ids = {path: path for path in FILES if not path.startswith("P3")}
    changes = {"unlabeled": Unlabeled.SKIP, "image_id": ImageId.ORDINAL, "max_patients": 2}
    options = options_for(export, ids, **changes)
    pipeline.run_here(options)
    counts = json.loads((export / "out" / "manifest.json").read_text())["counts"]
    assert (counts["files_seen"], counts["written"], counts["rejected"]) == (12, 8, 0)
    assert (counts["unlabeled_skipped"], counts["not_sampled"]) == (4, 4)
    assert "4 of patients who are not in the sample" in (export / "out/report.html").read_text()
    result = verify_directory(str(export / "out"), source=options.files.input)
    assert [str(finding) for finding in result.findings.kept] == []


def test_labels_that_are_not_found_again_count(export: Path) -> None:
    """Rows that are written in another way than most have no file, and their files no label."""
    ids = {path: path if n else FILES[path] for n, path in enumerate(FILES)}
    found, _, rejects = plan(options_for(export, ids, max_reject_fraction=0.5))
    assert (found.labels_joined_by, found.labels_without_file) == ("path", 1)
    assert [reject["reason"] for reject in rejects] == ["label_missing"]
    assert "15 of 16 labels" in found.notes[-1]
