"""Whom an earlier assignment knows: patients by their ids, or slices by theirs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from beam_pipeline import pipeline
from beam_pipeline.keys import hash_id, key_check
from beam_pipeline.options import Identifiers, ImageId, Options
from beam_pipeline.planning import folds_from
from beam_pipeline.planning.folds_from import Earlier
from beam_pipeline.planning.join_labels import Identity
from beam_pipeline.planning.label_match import image_keys
from headct.errors import UsageError

KEY, OTHER_KEY = b"sixteen bytes or more", b"another key, as long"
NAMES = ["a", "b", "c", "d"]
UIDS = ["1.2.1", "1.2.2", "1.2.3", "1.2.4"]
PATIENTS = ["Roe", "Roe", "Doe", "Poe"]


def options(identifiers: str, image_id: str = "auto", key: bytes = KEY, **more: Any) -> Options:
    check = key_check(key) if identifiers == "hash" else None
    return Options.of(
        input="in",
        output="out",
        identifiers=identifiers,
        image_id=image_id,
        identifier_key_check=check,
        **more,
    )


def hashed(key: bytes, column: str, texts: Sequence[str]) -> list[str]:
    return [hash_id(key, column, text) if key else text for text in texts]


def write_directory(
    folder: Path, made: Options, rows: dict[str, list[str]], identity: str = "file_name"
) -> str:
    """A shard directory as far as its assignment goes."""
    folder.mkdir()
    pd.DataFrame(rows).to_parquet(folder / "index.parquet")
    manifest = {"options": made.recorded(), "image_id": identity}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


def find(
    path: str,
    now: Options,
    *,
    patients: Sequence[str] = PATIENTS,
    names: Sequence[str] = NAMES,
    ambiguous: int = 0,
) -> tuple[list[str | None], str]:
    """What an assignment says of four slices of this run, whose ids are hashed unless kept."""
    kinds = {"ordinal": b"the input's own key", "hash": KEY, "keep": b""}
    key = kinds[now.identifiers.identifiers]
    column = f"{now.splits.group_by.value}_id"
    codes, groups = pd.factorize(pd.Series(hashed(key, column, patients)))
    raw = now.labels.image_id is ImageId.SOP_INSTANCE_UID
    uids = hashed(b"" if raw else key, "image_id", UIDS)
    slices = pd.DataFrame({"image_id": image_keys(pa.array(names)), column: codes})
    slices["sop_instance_uid"] = image_keys(pa.array(uids))
    joined = SimpleNamespace(
        slices=slices,
        identity=Identity(ImageId.FILE_NAME, False, ambiguous),
        inventory=SimpleNamespace(texts={column: [*groups]}),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds_from, "find_key", lambda _: key)
        return read(path, now).find(joined)  # type: ignore[arg-type]


def read(path: str, now: Options | None = None) -> Earlier:
    return Earlier.read((now or options("keep")).changed(folds_from=path))


NEW_SLICES = {"image_id": ["x", "y"], "split": ["fold1", "fold0"]}


@pytest.mark.parametrize(
    ("before", "now"),
    [("hash", "hash"), ("keep", "hash"), ("keep", "keep"), ("keep", "ordinal")],
)
def test_new_slices_of_known_patients_stay_with_them(tmp_path: Path, before: str, now: str) -> None:
    ids = hashed(KEY if before == "hash" else b"", "patient_id", ["Roe", "Poe"])
    path = write_directory(tmp_path / "s", options(before), {**NEW_SLICES, "patient_id": ids})
    known = find(path, options(now))
    assert known[0] == ["fold1", "fold1", None, "fold0"]
    assert known[1] == "--folds_from: 2 of 3 patients keep their split, found by patient_id."


@pytest.mark.parametrize(
    ("before", "now", "why"),
    [
        ("ordinal", "ordinal", "patient_id: they are ordinals"),
        ("ordinal", "keep", "patient_id: they are ordinals"),
        ("hash", "ordinal", "patient_id: they are hashes, and this run has not their key"),
        ("hash", "keep", "patient_id: they are hashes, and this run has not their key"),
    ],
)
def test_patients_that_cannot_be_joined_are_refused_unless_the_images_are_there(
    tmp_path: Path, before: str, now: str, why: str
) -> None:
    rows = {**NEW_SLICES, "patient_id": ["patient_000001", "patient_000002"]}
    path = write_directory(tmp_path / "s", options(before), rows)
    with pytest.raises(UsageError, match=rf"knows no slice: {why}.*; image_id: none of them is"):
        find(path, options(now))
    known = find(path, options(now), names=["a", "b", "x", "d"])
    assert known[0] == [None, None, "fold1", None]
    assert known[1].startswith("--folds_from: 1 of 3 patients keep their split, found by image_id;")
    assert "the others are not looked for: they are" in known[1]


def test_hashes_of_another_key_are_not_compared(tmp_path: Path) -> None:
    rows = {**NEW_SLICES, "patient_id": hashed(KEY, "patient_id", ["Roe", "Poe"])}
    path = write_directory(tmp_path / "s", options("hash", key=OTHER_KEY), rows)
    with pytest.raises(UsageError, match="patient_id: they are hashes, and this run has not"):
        find(path, options("hash"))


@pytest.mark.parametrize(
    ("before", "image_id", "identity"),
    [("ordinal", "ordinal", "file_name"), ("ordinal", "auto", "sop_instance_uid")],
)
def test_ordinals_of_both_are_refused_at_the_start(
    tmp_path: Path, before: str, image_id: str, identity: str
) -> None:
    rows = {"image_id": ["image_000001"], "split": ["fold0"], "patient_id": ["patient_000001"]}
    path = write_directory(tmp_path / "s", options(before, image_id), rows, identity)
    message = "cannot be joined: patient_id: they are ordinals.*; image_id: they are ordinals"
    with pytest.raises(UsageError, match=message):
        read(path, options("ordinal"))


@pytest.mark.parametrize(
    ("before", "image_id", "now"),
    [
        ("hash", "auto", "hash"),
        ("keep", "auto", "hash"),
        ("keep", "auto", "ordinal"),
        ("ordinal", "sop_instance_uid", "hash"),
        ("ordinal", "sop_instance_uid", "keep"),
    ],
)
def test_images_are_found_by_their_uids(
    tmp_path: Path, before: str, image_id: str, now: str
) -> None:
    key = KEY if before == "hash" else b""
    rows = {"image_id": hashed(key, "image_id", ["1.2.3", "9"]), "split": ["fold0", "fold1"]}
    path = write_directory(
        tmp_path / "s",
        options(before, image_id),
        {**rows, "patient_id": ["?", "?"]},
        "sop_instance_uid",
    )
    assert find(path, options(now), ambiguous=2)[0] == [None, None, "fold0", None]


def test_names_that_several_slices_share_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "folds.csv").write_text("image_id,split\na,fold0\n")
    path = str(tmp_path / "folds.csv")
    assert find(path, options("keep"))[0] == ["fold0", None, None, None]
    with pytest.raises(UsageError, match="knows no slice"):
        find(path, options("keep"), ambiguous=2)


@pytest.mark.parametrize("now", Identifiers)
@pytest.mark.parametrize("text", ["patient_id,split\nPoe,fold1\n", "split;patient_id\nfold1;Poe\n"])
def test_a_table_may_name_patients(tmp_path: Path, now: str, text: str) -> None:
    (tmp_path / "folds.csv").write_text(text)
    known = find(str(tmp_path / "folds.csv"), options(now))
    assert known[0] == [None, None, None, "fold1"]


def test_a_table_may_name_patients_by_their_hashes(tmp_path: Path) -> None:
    (patient,) = hashed(KEY, "patient_id", ["Poe"])
    (tmp_path / "folds.csv").write_text(f"patient_id,split\n{patient},fold1\n")
    known = find(str(tmp_path / "folds.csv"), options("hash"))
    assert known[0] == [None, None, None, "fold1"]


def test_studies_are_joined_where_studies_are_kept_together(tmp_path: Path) -> None:
    (tmp_path / "folds.csv").write_text("study_id,patient_id,split\nRoe,p,fold1\nDoe,p,fold0\n")
    known = find(str(tmp_path / "folds.csv"), options("keep", group_by="study"))
    assert known[0] == ["fold1", "fold1", "fold0", None]
    assert "2 of 3 studies keep their split, found by study_id." in known[1]


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folds.csv").write_text("patient_id,split\nRoe,fold0\nDoe,fold0\nRoe,fold1\n")
    with pytest.raises(UsageError, match="has one patient in two splits: such an assignment leaks"):
        find(str(tmp_path / "folds.csv"), options("keep"))
    # Others' rows do not matter.
    assert find(str(tmp_path / "folds.csv"), options("keep"), patients=["A", "B", "Doe", "C"])[
        0
    ] == [None, None, "fold0", None]


def test_a_directory_of_an_earlier_version_has_file_names(tmp_path: Path) -> None:
    path = write_directory(tmp_path / "s", options("ordinal"), {**NEW_SLICES})
    manifest = {"options": {"input": "in", "labels": None, "image_id": "file_name"}}
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    known = find(path, options("ordinal"), names=["x", "b", "c", "y"])
    assert known[0] == ["fold1", None, None, "fold0"]


@pytest.mark.parametrize(
    "name",
    [
        *(f"table.csv{s}" for s in ("", ".gz", ".bz2", ".xz", ".zip")),
        "table.parquet",
        "index.parquet",
    ],
)
def test_an_assignment_is_read_from_a_table_or_a_directory(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({"image_id": ["a", "b"], "split": ["fold0", "fold1"], "more": [1, 2]})
    path = tmp_path / name
    frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path, index=False)
    (tmp_path / "manifest.json").write_text(json.dumps({"options": {}}))
    given = str(tmp_path) if name == "index.parquet" else str(path)
    assert splits_of(read(given)) == {"a": "fold0", "b": "fold1"}


def splits_of(earlier: Earlier) -> dict[str, str | None]:
    return dict(zip(earlier.table["image_id"], earlier.table["split"], strict=True))


def test_numbers_and_na_are_image_ids_like_any_other(tmp_path: Path) -> None:
    numbers = pd.DataFrame({"image_id": [7, 11], "split": ["fold0", "fold1"]})
    numbers.to_parquet(tmp_path / "numbers.parquet")
    found = read(str(tmp_path / "numbers.parquet"))
    assert splits_of(found) == {"7": "fold0", "11": "fold1"}
    (tmp_path / "words.csv").write_text("image_id,split\nNA,fold0\nnew,\n")
    words = read(str(tmp_path / "words.csv"))
    assert splits_of(words) == {"NA": "fold0", "new": None}


def test_what_is_no_assignment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"index.parquet does not exist"):
        read(str(tmp_path))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"other\.csv: it has the columns 'a', 'b'; want split"):
        read(str(tmp_path / "other.csv"))
    (tmp_path / "twice.csv").write_text("image_id,split\na,fold0\na,fold1\n")
    with pytest.raises(UsageError, match="one image in two splits"):
        find(str(tmp_path / "twice.csv"), options("keep"))
    pd.DataFrame(NEW_SLICES).to_parquet(tmp_path / "index.parquet")
    with pytest.raises(UsageError, match=r"manifest.json does not exist"):
        read(str(tmp_path))
    for text in ("[]", "{", '{"options": 3}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UsageError, match="--folds_from"):
            read(str(tmp_path))


def test_new_slices_of_known_patients_go_where_these_are(
    tmp_path: Path, write_slice: Callable[..., Path]
) -> None:
    (tmp_path / "key").write_bytes(KEY)

    def run(name: str, files: dict[str, str], folds_from: str | None = None) -> dict[str, str]:
        """Write the slices of patients; returns the split of each patient."""
        lines = [f"{file},{place % 2}" for place, file in enumerate(files)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["image_id,any", *lines]))
        for file, patient in files.items():
            write_slice(tmp_path / name / f"{file}.dcm", PatientID=patient)
        made = Options.of(
            input=str(tmp_path / name),
            labels=str(tmp_path / f"{name}.csv"),
            output=str(tmp_path / f"{name}-shards"),
            identifiers="hash",
            identifier_key_file=str(tmp_path / "key"),
            identifier_key_check=key_check(KEY),
            folds=2,
            image_size=32,
            folds_from=folds_from,
        )
        pipeline.run_here(made)
        index = pd.read_parquet(tmp_path / f"{name}-shards" / "index.parquet")
        patients = index["image_id"].map(files)
        assert (index["split"].groupby(patients).nunique() == 1).all()
        return dict(zip(patients, index["split"], strict=True))

    first = run("first", {f"old{n}": f"P{n % 10}" for n in range(20)})
    more = {f"new{n}": f"P{n % 12}" for n in range(24)}
    second = run("second", more, str(tmp_path / "first-shards"))
    assert {patient: second[patient] for patient in first} == first
    assert {*second.values()} == {"fold0", "fold1"}
    manifest = json.loads((tmp_path / "second-shards" / "manifest.json").read_text())
    assert manifest["notes"][-1] == (
        "--folds_from: 10 of 12 patients keep their split, found by patient_id."
    )
