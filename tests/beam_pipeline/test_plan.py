"""Which slice goes to which shard."""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipeline.dicom.acquisition import Acquisition
from beam_pipeline.errors import TooManyRejects
from beam_pipeline.options import (
    GroupBy,
    Identifiers,
    ImageId,
    LeakCheck,
    Options,
    SplitOptions,
    Unlabeled,
)
from beam_pipeline.planning.duplicates import ALONE
from beam_pipeline.planning.inventory import SCHEMA
from beam_pipeline.planning.join_labels import (
    BY_HEADER,
    NOT_SAMPLED,
    USED,
    VERDICTS,
    Identity,
    Inventory,
    JoinedFiles,
    choose_identity,
    judge,
)
from beam_pipeline.planning.label_match import LabelForm, image_keys
from beam_pipeline.planning.labels import PROBLEMS, RSNA_LABELS, Labels
from beam_pipeline.planning.plan_shards import deal, ordinals, plan_shards, sample_patients
from beam_pipeline.shards.unfinished import IdenticalPixels, Plan, Unfinished, table_metadata
from headct.errors import HeadctError, UsageError
from headct.layout import (
    ID_COLUMNS,
    REJECTS_TABLE,
    SHARDS_A_PART,
    ShardFile,
    inventory_table,
    ordinal,
    plan_table,
)
from headct.reasons import Reason
from headct.stores import Folder
from tests.beam_pipeline.steps import inspect_all

LABEL_COLUMNS = [f"label_{name}" for name in RSNA_LABELS]
OPTIONS = Options.of(input="in", labels="labels.csv", output="out", folds=2, examples_per_shard=4)

# What follows decides from numbers.


def files_of(
    image_ids: Sequence[str], patients: Sequence[int] = (), usable: Sequence[bool] = ()
) -> pd.DataFrame:
    """Rows of files; the study of each has the patient's number, its series has its own."""
    count = len(image_ids)
    patient = np.array(patients or range(count), np.int32)
    return pd.DataFrame(
        {
            "image_id": image_keys(pa.array(image_ids, pa.string())),
            "sop_instance_uid": np.zeros(count, np.uint64),
            "patient_id": patient,
            "study_id": patient,
            "series_id": np.arange(count, dtype=np.int32),
            "usable": np.array(usable or [True] * count, np.bool_),
            "unnamed": np.zeros(count, np.bool_),
        }
    )


def labels_by_id(names: Sequence[str], values: dict[str, Sequence[int]]) -> Labels:
    """Labels by image id; -1 - n for PROBLEMS[n]."""
    return Labels(
        tuple(names), pa.array([*values], pa.string()), np.array([*values.values()], np.int8)
    )


def join(
    files: pd.DataFrame, labels: Labels | None = None, unlabeled: Unlabeled = Unlabeled.REJECT
) -> JoinedFiles:
    """Judge files by labels that are joined by file name."""
    keyed = files.assign(**{LabelForm.NAME: files["image_id"]})
    inventory = Inventory(None, [], keyed, {}, 0)  # type: ignore[arg-type]
    changes = {"unlabeled": unlabeled, "image_id": "ordinal", "label_level": "image"}
    return judge(inventory, labels, OPTIONS.changed(**changes))


def reasons_of(joined: JoinedFiles) -> list[Any]:
    """What became of each file."""
    known: dict[int, Any] = {USED: "used", BY_HEADER: "by header"}
    return [known.get(v) or VERDICTS[v] for v in joined.verdicts.tolist()]


DUPLICATE, MISSING = (Reason.DUPLICATE_ID, ""), (Reason.LABEL_MISSING, "")


def alone(joined: JoinedFiles) -> np.ndarray:
    return np.full(len(joined.slices), ALONE)


def splits_of(
    joined: JoinedFiles, options: SplitOptions, identical: np.ndarray | None = None, **more: Any
) -> dict[int, str]:
    """The split of each used file; every slice is in one shard."""
    identical = alone(joined) if identical is None else identical
    dealt = deal(joined, identical, options, **more)
    found = {
        int(joined.slices.index[slice_]): shard.split
        for shard, slices in dealt.items()
        for slice_ in slices
    }
    assert len(found) == sum(map(len, dealt.values())) == len(joined.slices)
    return found


def split_by_ids(
    patients: Sequence[int],
    studies: Sequence[int],
    options: SplitOptions,
    unlabeled: Sequence[int] = (),
) -> dict[int, str]:
    """The split of each slice, one of each patient and study given; below 0: unnamed."""
    files = files_of([str(number) for number in range(len(patients))])
    numbers = pd.factorize(np.array(patients))[0].astype(np.int32)
    files = files.assign(patient_id=numbers, study_id=studies, unnamed=np.array(patients) < 0)
    values = {str(number): [0] for number in range(len(patients)) if number not in unlabeled}
    return splits_of(join(files, labels_by_id(["any"], values)), options)


@pytest.mark.parametrize("leak_check", LeakCheck)
@pytest.mark.parametrize("seed", range(8))
def test_files_of_a_study_that_do_not_name_its_patient_are_with_those_that_do(
    leak_check: LeakCheck, seed: int
) -> None:
    # Patients 0 and 1 have studies 0, 1 and 2; some files of studies 0 and 2 name nobody. Study 3
    # is of one that no file names, study 4 seems to be of two.
    patients = [0, 0, 1, -3, -5, -3, 1, -9, -9, 4, 5, -11, 6, 7, 8]
    studies = [0, 1, 2, 0, 2, 0, 2, 3, 3, 4, 4, 4, 5, 6, 7]
    options = SplitOptions(folds=4, leak_check=leak_check, seed=seed)
    splits = split_by_ids(patients, studies, options)
    assert len({splits[place] for place in (0, 1, 3, 5)}) == 1
    assert len({splits[place] for place in (2, 4, 6)}) == 1
    assert splits[7] == splits[8]
    assert len({splits[place] for place in (9, 10, 11)}) == 1
    by_study = SplitOptions(folds=4, leak_check=leak_check, seed=seed, group_by=GroupBy.STUDY)
    splits = split_by_ids(patients, studies, by_study)
    assert all(
        splits[i] == splits[j] for i in range(15) for j in range(15) if studies[i] == studies[j]
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_file_that_is_not_used_may_tell_whose_study_it_is(seed: int) -> None:
    patients, studies = [0, 0, -2, 1, 2, 3, 4], [0, 1, 1, 2, 3, 4, 5]
    splits = split_by_ids(patients, studies, SplitOptions(folds=4, seed=seed), unlabeled=[1])
    assert splits[0] == splits[2]


def test_without_a_label_file_no_labels_are_claimed() -> None:
    joined = join(files_of(["b", "a"]))
    assert (joined.names, joined.labels.shape, joined.labels.dtype) == ((), (2, 0), np.int8)
    assert joined.slices.index.tolist() == [0, 1]
    assert joined.labels_without_file == 0


def test_nothing_may_be_usable() -> None:
    for labels in (None, labels_by_id(("x",), {"a": [0]})):
        joined = join(files_of(["a", "b"], usable=[False, False]), labels)
        assert reasons_of(joined) == ["by header"] * 2
        assert (len(joined.slices), len(joined.labels)) == (0, 0)
        assert deal(joined, alone(joined), OPTIONS.splits) == {}


files = st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), min_size=1)
label_rows = st.dictionaries(st.sampled_from("abcdef"), st.integers(-3, 1), min_size=6)


@given(files, label_rows)
def test_verdicts_are_those_of_a_loop_over_files(
    files: list[tuple[str, bool]], labels: dict[str, int]
) -> None:
    """A value below 0 stands for the problem at place -1 - value."""
    labels = {name: value for name, value in labels.items() if name != "f"} | {files[0][0]: 0}
    of_files = files_of([name for name, _ in files], usable=[usable for _, usable in files])
    values = {name: [value] for name, value in labels.items()}
    joined = join(of_files, labels_by_id(("x",), values))
    expected, used, seen = [], [], set()
    for place, (name, usable) in enumerate(files):
        if not usable:
            expected.append("by header")
        elif name in seen:
            expected.append(DUPLICATE)
        elif name not in labels:
            expected.append(MISSING)
        elif labels[name] < 0:
            expected.append(PROBLEMS[-1 - labels[name]])
        else:
            expected.append("used")
            used.append(place)
        seen |= {name} if usable else set()
    assert reasons_of(joined) == expected
    assert joined.slices.index.tolist() == used
    assert joined.labels.tolist() == [[labels[files[place][0]]] for place in used]
    assert joined.labels_without_file == len(labels.keys() - {name for name, _ in files})


def twenty(patients: int = 4, slices: int = 5) -> JoinedFiles:
    """Patients with five slices each, the first of which bleeds."""
    count = patients * slices
    files = files_of([f"ID_{i}" for i in range(count)], [i // slices for i in range(count)])
    values = {f"ID_{i}": [0] * 4 + [int(i % slices == 0)] * 2 for i in range(count)}
    return join(files, labels_by_id(RSNA_LABELS, values))


def test_without_labels_all_slices_are_one_split_whatever_the_folds() -> None:
    joined = join(files_of([f"ID_{i}" for i in range(9)], [0] * 9))
    dealt = deal(joined, alone(joined), OPTIONS.changed(folds=5).splits)
    assert {shard.name: len(slices) for shard, slices in dealt.items()} == {
        f"ich-test.tfrecord-{number:05d}-of-00003": 3 for number in range(3)
    }


def test_splits_are_in_alphabetical_order() -> None:
    options = OPTIONS.changed(folds=12, holdout=0.1, examples_per_shard=100)
    names = [*dict.fromkeys(splits_of(twenty(patients=30), options.splits).values())]
    assert names == sorted(["holdout", *(f"fold{number}" for number in range(12))])


def test_studies_may_be_kept_whole_instead_of_patients() -> None:
    joined = twenty()
    joined.slices["patient_id"] = joined.inventory.files["patient_id"] = 0
    splits = splits_of(joined, OPTIONS.changed(group_by=GroupBy.STUDY).splits)
    assert set(splits.values()) == {"fold0", "fold1"}
    assert all(len({splits[5 * study + i] for i in range(5)}) == 1 for study in range(4))
    with pytest.raises(UsageError, match="--folds 2: 1 patients cannot fill"):
        splits_of(joined, OPTIONS.splits)


@pytest.mark.parametrize(("group_by", "patients"), [("patient", 3), ("study", 4)])
def test_a_sample_is_of_whole_patients_or_studies(group_by: str, patients: int) -> None:
    joined = twenty(patients=8)  # a study each, of five slices, the first of which bleeds
    options = OPTIONS.changed(max_patients=patients, group_by=group_by, seed=2)
    if group_by == "study":
        joined.inventory.files["patient_id"] = joined.slices["patient_id"] = 0
    sample = sample_patients(joined, options)
    assert sample.slices["study_id"].value_counts().tolist() == [5] * patients
    assert sample.labels[:, -1].sum() == patients
    chosen = sample.slices.index
    assert (sample.labels == joined.labels[chosen]).all()
    assert (sample.verdicts[chosen] == USED).all()
    assert (np.delete(sample.verdicts, chosen) == NOT_SAMPLED).all()
    noun = "studies" if group_by == "study" else "patients"
    kept = 5 * patients
    note = f"--max_patients: {patients} of 8 {noun}, {kept} of 40 slices."
    assert sample.notes == (*joined.notes, note)
    for enough in (0, 8, 9):
        assert sample_patients(joined, options.changed(max_patients=enough)) is joined


# What follows chooses what identifies a slice.

DIFFERENT = [("a", "1"), ("b", "2"), ("c", "2")]
SAME_NAMES = [("a", "1"), ("b", "2"), ("a", "3"), ("a", "1")]


def choose(
    files: Sequence[tuple[str, str]],
    image_id: ImageId = ImageId.AUTO,
    identifiers: Identifiers = Identifiers.ORDINAL,
) -> Identity:
    """The identity of files with some names and UIDs."""
    frame = files_of([name for name, _ in files])
    uids = image_keys(pa.array([uid for _, uid in files], pa.string()))
    frame["sop_instance_uid"] = np.where([uid == "" for _, uid in files], np.uint64(0), uids)
    return choose_identity(frame, image_id, identifiers)


@pytest.mark.parametrize(
    ("image_id", "identifiers", "by", "numbered"),
    [
        (ImageId.AUTO, Identifiers.ORDINAL, ImageId.SOP_INSTANCE_UID, True),
        (ImageId.AUTO, Identifiers.HASH, ImageId.SOP_INSTANCE_UID, False),
        (ImageId.AUTO, Identifiers.KEEP, ImageId.SOP_INSTANCE_UID, False),
        (ImageId.ORDINAL, Identifiers.KEEP, ImageId.SOP_INSTANCE_UID, True),
        (ImageId.FILE_NAME, Identifiers.ORDINAL, ImageId.FILE_NAME, False),
        (ImageId.SOP_INSTANCE_UID, Identifiers.ORDINAL, ImageId.SOP_INSTANCE_UID, False),
    ],
)
def test_who_asks_for_an_id_gets_it(
    image_id: ImageId, identifiers: Identifiers, by: ImageId, numbered: bool
) -> None:
    assert choose(SAME_NAMES, image_id, identifiers) == Identity(by, numbered, 3)


def test_it_is_said_why_image_ids_are_no_names() -> None:
    assert choose(DIFFERENT).describe() == ""
    assert choose(SAME_NAMES, ImageId.FILE_NAME).describe() == ""
    assert choose(DIFFERENT, ImageId.SOP_INSTANCE_UID).describe() == ""
    assert choose(SAME_NAMES).describe().startswith("3 files have the name of another slice, so")
    assert choose(SAME_NAMES).describe().endswith("image ids are ordinals.")
    kept = choose(SAME_NAMES, identifiers=Identifiers.KEEP)
    assert kept.describe().endswith("image ids are these, by --identifiers.")


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", *"12"])), min_size=1),
    st.randoms(use_true_random=False),
)
def test_the_choice_is_that_of_comparing_all_pairs_in_any_order(
    files: list[tuple[str, str]], random: "st.random.Random"
) -> None:
    clashing = {
        name
        for name, uid in files
        for other, another in files
        if name == other and uid and another and uid != another
    }
    count = sum(name in clashing and uid != "" for name, uid in files)
    assert choose(files).ambiguous == count
    random.shuffle(files)
    assert choose(files).ambiguous == count


# What follows reads an inventory and writes a plan.


KERNELS = [Acquisition(kernel=kernel).encode() for kernel in ("H30s", "H60s")]


def row(patient: int, number: int, **other: Any) -> dict[str, Any]:
    """A row of an inventory; slices of more than nine patients are in the order of their names."""
    return {
        "source": f"p{patient}/ID_{patient}{number}.dcm".encode(),
        "size": 100 + number,
        "version": "v",
        "image_id": f"ID_{patient}{number}",
        "sop_instance_uid": "",
        "patient_id": f"hash of patient {patient}",
        "study_id": f"hash of study {patient}",
        "series_id": f"hash of series {patient}",
        "fingerprint": 0,
        "pixel_offset": 10,
        "pixel_bytes": 8,
        "header": f"header of {patient}{number}",
        "acquisition": KERNELS[number % 2],
        "reason": "",
        "detail": "",
    } | other


def rows_of(patients: int = 4, slices: int = 5) -> list[dict[str, Any]]:
    return [row(patient, number) for patient in range(patients) for number in range(slices)]


def label_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line a row; the first slice of each patient bleeds."""
    bleeds = {row["image_id"]: int(row["image_id"][-1] == "0") for row in rows}
    return [f"{image_id},0,0,0,0,{value},{value}" for image_id, value in bleeds.items()]


@dataclasses.dataclass
class Planned:
    """A plan, and what it left in the output."""

    plan: Plan
    slices: pd.DataFrame
    rejects: list[dict[str, str]]

    @property
    def splits(self) -> dict[str, str]:
        """The split of each image id."""
        return dict(zip(self.slices["image_id"], self.slices["split"], strict=True))


PlanRows = Callable[..., Planned]


@pytest.fixture
def plan_rows(tmp_path: Path) -> PlanRows:
    """Plans an inventory: plan_rows(rows, labels, folds=3, ...); `labels` are lines of a table."""

    def plan(
        rows: Sequence[dict[str, Any]],
        labels: Sequence[str] | None = None,
        part_rows: int = 8,
        output: str = "out",
        **changes: Any,
    ) -> Planned:
        options = OPTIONS.changed(input=str(tmp_path), labels=None, output=str(tmp_path / output))
        options = options.changed(**({"max_reject_fraction": 0.5} | changes))
        if labels is not None:
            text = "\n".join([",".join(["image_id", *RSNA_LABELS]), *labels])
            (tmp_path / "labels.csv").write_text(text)
            options = options.changed(labels=str(tmp_path / "labels.csv"))
        unfinished = Unfinished(Folder(options.files.output))
        parts = [rows[start : start + part_rows] for start in range(0, len(rows), part_rows)]
        for number, part in enumerate(parts):
            table = pa.Table.from_pylist(part, SCHEMA)
            unfinished.write(inventory_table(number), table, {"key_check": "k"})
        return read_plan(plan_shards(len(parts), options), unfinished)

    return plan


def read_plan(plan: Plan, unfinished: Unfinished) -> Planned:
    assert unfinished.read_plan() == plan
    tables = []
    for number, shard in enumerate(plan.shards):
        part, batch = divmod(number, SHARDS_A_PART)
        table = unfinished.read_batch(plan_table(part), batch)
        assert table_metadata(table)["shards"][batch] == shard
        split = ShardFile.parse(shard).split
        tables.append(table.to_pandas().assign(shard=shard, split=split))
    rejects = unfinished.read(REJECTS_TABLE).to_pylist()
    assert not unfinished.folder.exists("rejects.jsonl")  # written at the end of the run
    return Planned(plan, pd.concat(tables, ignore_index=True), rejects)


def test_every_file_is_planned_or_rejected_once(plan_rows: PlanRows) -> None:
    rows = rows_of()
    planned = plan_rows(rows, label_lines(rows))
    assert sorted(planned.slices["source"]) == [row["source"] for row in rows]
    assert planned.rejects == []
    assert planned.plan == Plan(
        labels=RSNA_LABELS,
        files_seen=20,
        skipped=0,
        labels_without_file=0,
        identifying_paths=0,
        image_id="file_name",
        labels_joined_by="file name",
        notes=("Labels joined by file name: 20 of 20 labels, 20 of 20 files.",),
        identical=IdenticalPixels(),
        shards=tuple(
            ShardFile(split, number, 3).name for split in ("fold0", "fold1") for number in range(3)
        ),
        slices=20,
        label_level="image",
    )


def test_a_slice_takes_along_what_is_needed_to_write_it(plan_rows: PlanRows) -> None:
    rows = rows_of()
    planned = plan_rows(rows, label_lines(rows)).slices.set_index("image_id", drop=False)
    for place, row in enumerate(rows):
        found = planned.loc[row["image_id"]].drop(["shard", "split"]).to_dict()
        patient = place // 5 + 1
        assert found == {
            "source": row["source"],
            "size": row["size"],
            "version": row["version"],
            "image_id": row["image_id"],
            "header": row["header"],
            "acquisition": row["acquisition"],
            "patient_id": f"patient_{patient:06d}",
            "study_id": f"study_{patient:06d}",
            "series_id": f"series_{patient:06d}",
            "number": place,
            **dict.fromkeys(LABEL_COLUMNS, 0),
            **dict.fromkeys(LABEL_COLUMNS[4:], int(place % 5 == 0)),
        }


def test_no_patient_is_in_two_folds_and_each_has_a_label_in_the_plan_too(
    plan_rows: PlanRows,
) -> None:
    rows = rows_of()
    slices = plan_rows(rows, label_lines(rows)).slices
    assert (slices.groupby("patient_id")["split"].nunique() == 1).all()
    assert slices.groupby("split")["label_subdural"].sum().tolist() == [2, 2]


def test_how_the_inventory_and_the_plan_are_cut_does_not_matter(
    plan_rows: PlanRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(patients=30)
    rows[3] |= {"reason": "not_dicom"}
    changes: dict[str, Any] = {"examples_per_shard": 2, "identifiers": Identifiers.HASH}
    whole = plan_rows(rows, label_lines(rows), part_rows=1000, output="whole", **changes)
    assert len(whole.plan.shards) == 75  # of 75 and 74 slices: 38 and 37
    monkeypatch.setattr("beam_pipeline.planning.plan_shards._SLICES_A_PASS", 32)  # 16 shards
    streams: list[str] = []
    new_stream = pa.ipc.new_stream

    def note(path: str, schema: pa.Schema) -> Any:
        streams.append(Path(path).name)
        return new_stream(path, schema)

    monkeypatch.setattr(pa.ipc, "new_stream", note)
    parts = plan_rows(rows, label_lines(rows), part_rows=7, output="parts", **changes)
    assert [name for name in streams if name[0].isdigit()] == [f"{n}.arrow" for n in range(5)]
    assert parts.plan == whole.plan
    assert parts.rejects == whole.rejects
    pd.testing.assert_frame_equal(parts.slices, whole.slices)


def test_ids_are_replaced_by_ordinals(plan_rows: PlanRows) -> None:
    rows = rows_of()
    for place in range(5):  # patient 0 is not used: it has no number
        rows[place] |= {"reason": "not_dicom"}
    slices = plan_rows(rows, label_lines(rows)).slices.set_index("image_id")
    assert slices.loc["ID_10", "patient_id"] == "patient_000001"
    assert slices.loc["ID_34", "study_id"] == "study_000003"
    assert slices.loc["ID_24", "series_id"] == "series_000002"
    assert not slices.astype(str).apply(lambda column: column.str.contains("hash")).any(axis=None)


@pytest.mark.parametrize("kind", [Identifiers.HASH, Identifiers.KEEP])
def test_ids_that_are_not_numbered_are_those_of_the_inventory(
    plan_rows: PlanRows, kind: Identifiers
) -> None:
    rows = rows_of()
    slices = plan_rows(rows, label_lines(rows), identifiers=kind).slices.set_index("image_id")
    for row in rows:
        assert [*slices.loc[row["image_id"], [*ID_COLUMNS]]] == [row[name] for name in ID_COLUMNS]


def test_the_first_file_of_an_id_is_used(plan_rows: PlanRows) -> None:
    rows = rows_of()
    planned = plan_rows([row(0, 0, source=b"a/ID_00.dcm"), *rows], label_lines(rows))
    assert planned.rejects == [
        {"source": "p0/ID_00.dcm", "image_id": "ID_00", "reason": "duplicate_id", "detail": ""}
    ]
    assert b"a/ID_00.dcm" in set(planned.slices["source"])


def test_label_problems_are_reasons_and_labels_without_file_are_counted(
    plan_rows: PlanRows,
) -> None:
    rows = rows_of()
    lines = label_lines(rows)
    assert lines[1] == "ID_01,0,0,0,0,0,0"
    lines[0] = lines[0].replace("1", "0") + "\n" + lines[0]
    lines[1] = "ID_absent,0,0,0,0,0,0\nID_absent_too,0,0,0,0,0,7"
    lines[2] = lines[2].replace(",0", ",no", 1)
    planned = plan_rows(rows, lines)
    assert [[r["image_id"], r["reason"], r["detail"]] for r in planned.rejects] == [
        ["ID_00", "label_conflict", "rows contradict each other"],
        ["ID_01", "label_missing", ""],
        ["ID_02", "label_invalid", "a value is neither 0 nor 1"],
    ]
    assert planned.plan.labels_without_file == 2
    assert (planned.plan.files_seen, planned.plan.slices) == (20, 17)


def test_no_files_are_refused(plan_rows: PlanRows, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"input {tmp_path} holds no files"):
        plan_rows([])


def test_a_data_set_of_unusable_files_is_refused_and_they_are_told(
    plan_rows: PlanRows, tmp_path: Path
) -> None:
    for reason, allowed, error, message in (
        ("not_dicom", 0.9, TooManyRejects, "20 of 20 files were rejected (not_dicom 20)"),
        ("not_dicom", 1.0, UsageError, "none of 20 files can be used (not_dicom 20)"),
        ("not_ct", 0.0, UsageError, "none of 20 files can be used (not_ct 20)"),
    ):
        rows = [row | {"reason": reason} for row in rows_of()]
        with pytest.raises(error, match=re.escape(message)):
            plan_rows(rows, max_reject_fraction=allowed)
        lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
        assert [json.loads(line)["reason"] for line in lines] == [reason] * 20


def test_a_name_that_is_no_utf_8_is_shown_escaped(plan_rows: PlanRows) -> None:
    bad = row(0, 0, source=b"caf\xe9.dcm", image_id="caf\\xe9", reason="not_ct")
    planned = plan_rows([bad, *rows_of()])
    assert (planned.rejects[0]["source"], planned.rejects[0]["image_id"]) == (
        "caf\\xe9.dcm",
        "caf\\xe9",
    )


def test_ordinal_image_ids_show_no_file_name(plan_rows: PlanRows) -> None:
    rows = rows_of()
    rows[3] |= {"reason": "not_dicom"}
    planned = plan_rows(rows, label_lines(rows), image_id=ImageId.ORDINAL)
    assert planned.rejects == [
        {"source": "file_000004", "image_id": "", "reason": "not_dicom", "detail": ""}
    ]
    slices = planned.slices.sort_values("number")
    assert slices["image_id"].tolist() == [f"image_{number:06d}" for number in range(1, 20)]
    assert slices["number"].tolist() == [0, 1, 2, *range(4, 20)]  # of the file, in rejects.jsonl
    assert slices["source"].tolist() == [row["source"] for row in rows if not row["reason"]]


def test_options_that_change_what_is_written_change_every_shard_of_the_plan(
    plan_rows: PlanRows, tmp_path: Path
) -> None:
    digests = []
    for size in (512, 256, 512):
        plan_rows(rows_of(), image_size=size)
        table = Unfinished(Folder(str(tmp_path / "out"))).read_batch(plan_table(0), 1)
        digests.append(table_metadata(table)["options"])
    assert digests[0] == digests[2] != digests[1]


def test_an_inventory_whose_parts_were_hashed_with_different_keys_is_not_planned(
    tmp_path: Path,
) -> None:
    """A patient with slices in both parts would have two ids, and be in two folds."""
    options = OPTIONS.changed(input=str(tmp_path), labels=None, output=str(tmp_path))
    unfinished = Unfinished(Folder(options.files.output))
    for number in range(2):
        table = pa.Table.from_pylist([row(0, number)], SCHEMA)
        unfinished.write(inventory_table(number), table, {"key_check": f"key {number}"})
    with pytest.raises(HeadctError):
        plan_shards(2, options)


# What follows plans a folder of files.


def inspect_and_plan(options: Options) -> Planned:
    plan = plan_shards(inspect_all(options), options)
    return read_plan(plan, Unfinished(options.files.folder))


def test_patients_with_identical_pixels_are_in_one_fold(
    write_slice: Callable[..., Path], tmp_path: Path
) -> None:
    rows = rows_of(patients=6)
    pixels = np.random.default_rng(0).integers(0, 999, (2, 16, 16)).astype(np.int16)
    # Slices of patients 0 and 1, and of 2 and 3, and one of patient 2 that is there twice.
    shared = {"ID_00": 0, "ID_14": 0, "ID_20": 1, "ID_34": 1, "ID_21": 1}
    for row in rows:
        name = row["image_id"]
        same = {"pixels": pixels[shared[name]]} if name in shared else {}
        write_slice(tmp_path / "in" / f"{name}.dcm", PatientID=row["patient_id"], **same)
    text = "\n".join([",".join(["image_id", *RSNA_LABELS]), *label_lines(rows)])
    (tmp_path / "labels.csv").write_text(text)
    options = OPTIONS.changed(
        input=str(tmp_path / "in"),
        labels=str(tmp_path / "labels.csv"),
        output=str(tmp_path / "joined"),
    )
    joined = inspect_and_plan(options)
    assert joined.splits["ID_00"] == joined.splits["ID_14"]
    assert joined.splits["ID_20"] == joined.splits["ID_34"]
    # The first slice of a patient bleeds: in both sets labels differ.
    assert joined.plan.identical == IdenticalPixels(2, 5, 2, 2)
    apart = options.changed(leak_check=LeakCheck.REPORT, folds=6, output=str(tmp_path / "apart"))
    reported = inspect_and_plan(apart)
    assert len(set(reported.splits.values())) == 6
    assert reported.plan.identical == joined.plan.identical
    off = apart.changed(leak_check=LeakCheck.OFF, output=str(tmp_path / "off"))
    assert inspect_and_plan(off).plan.identical == IdenticalPixels()


@given(st.lists(st.integers(0, 10**12)))
def test_one_ordinal_is_written_as_many_are(numbers: list[int]) -> None:
    many = ordinals("image", np.array(numbers, np.int64)).to_pylist()
    assert many == [ordinal("image", number) for number in numbers]
