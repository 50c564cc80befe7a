"""Files and labels as archives and workstations export them: the same names in every folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from beam_pipeline import pipeline
from beam_pipeline.errors import TooManyRejects
from beam_pipeline.keys import hash_id
from beam_pipeline.options import Identifiers, ImageId, Options, Unlabeled
from beam_pipeline.planning.inventory import inspect_part, list_parts
from beam_pipeline.planning.plan_shards import plan_shards
from beam_pipeline.shards.unfinished import Plan, Unfinished
from beam_pipeline.verify.verification import verify_directory
from beam_pipeline.workers import Watch
from headct.errors import UsageError
from headct.layout import REJECTS_TABLE, SHARDS_A_PART, plan_table
from headct.stores import Folder

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
    parts = len([*list_parts(options.files)])
    for part in range(parts):
        inspect_part(part, Watch(), options=options)
    found = plan_shards(parts, options)
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
    with pytest.raises(UsageError, match=r"its ids are like '91\.2\.826\.0\.1\.0\.0\.0', those of"):
        plan(options_for(export, ids))
    with pytest.raises(UsageError) as refused:
        plan(options_for(export, ids, image_id=ImageId.ORDINAL))
    assert "IM000" not in str(refused.value)


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


def test_a_directory_with_skipped_files_is_right(export: Path) -> None:
    ids = {path: path for path in FILES if not path.startswith("P3")}
    options = options_for(export, ids, unlabeled=Unlabeled.SKIP, image_id=ImageId.ORDINAL)
    pipeline.run_here(options)
    counts = json.loads((export / "out" / "manifest.json").read_text())["counts"]
    assert (counts["files_seen"], counts["written"], counts["rejected"]) == (12, 12, 0)
    assert counts["unlabeled_skipped"] == 4
    result = verify_directory(str(export / "out"), source=options.files.input)
    assert [str(finding) for finding in result.findings.kept] == []


def test_labels_that_are_not_found_again_count(export: Path) -> None:
    """Rows that are written in another way than most have no file, and their files no label."""
    ids = {path: path if n else FILES[path] for n, path in enumerate(FILES)}
    found, _, rejects = plan(options_for(export, ids, max_reject_fraction=0.5))
    assert (found.labels_joined_by, found.labels_without_file) == ("path", 1)
    assert [reject["reason"] for reject in rejects] == ["label_missing"]
    assert "15 of 16 labels" in found.notes[-1]
