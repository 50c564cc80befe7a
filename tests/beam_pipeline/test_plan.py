"""Which slice goes to which shard: `plan` decides by numbers, `planning` reads and writes."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from beam_pipeline.planning import plan
from beam_pipeline.planning.duplicates import NOT_IDENTICAL, IdenticalPixels
from beam_pipeline.planning.image_ids import Identity, image_keys
from beam_pipeline.planning.inventory import SCHEMA, inspect_part, list_parts
from beam_pipeline.planning.label_match import NO_LABEL, LabelForm, LabelIndex, match_labels
from beam_pipeline.planning.labels import PROBLEMS, RSNA_LABELS, Labels
from beam_pipeline.planning.plan import (
    BY_HEADER,
    USED,
    VERDICTS,
    Deal,
    Judgement,
    Keys,
    count_unnamed,
    deal,
    find_slices,
    number_by_appearance,
)
from beam_pipeline.planning.plan_shards import Plan, plan_shards
from beam_pipeline.shards.unfinished import Unfinished, table_metadata
from beam_pipeline.workers import Watch
from headct.errors import HeadctError, UsageError
from headct.layout import (
    ID_COLUMNS,
    PLAN,
    REJECTS_TABLE,
    SHARDS_A_PART,
    ShardFile,
    inventory_table,
    plan_table,
)
from headct.reasons import Reason
from headct.stores import Folder

LABEL_COLUMNS = [f"label_{name}" for name in RSNA_LABELS]

# What follows decides from numbers.


def keys_of(
    image_ids: Sequence[str], patients: Sequence[int] = (), usable: Sequence[bool] = ()
) -> Keys:
    """Keys of files; the study of each has the patient's number, its series has its own."""
    count = len(image_ids)
    patient = np.array(patients or range(count), np.int32)
    ids = dict(zip(ID_COLUMNS, (patient, patient, np.arange(count, dtype=np.int32)), strict=True))
    return Keys(
        image_keys(pa.array(image_ids, pa.string())),
        np.zeros(count, np.uint64),
        Identity(ImageId.FILE_NAME, False, 0),
        ids,
        np.zeros(count, np.uint64),
        np.array(usable or [True] * count, np.bool_),
        np.zeros(count, np.bool_),
    )


def labels_by_id(
    names: Sequence[str], values: dict[str, Sequence[int]], problems: dict[str, int] | None = None
) -> Labels:
    """Labels by image id, and the places in PROBLEMS of those that cannot be used."""
    problems = problems or {}
    ids = pa.chunked_array([pa.array([*values, *problems], pa.string())])
    filled = np.array([*values.values(), *([0] * len(names) for _ in problems)], np.int8)
    problem = np.array([-1] * len(values) + [*problems.values()], np.int8)
    return Labels(tuple(names), ids, filled, problem)


def judge(keys: Keys, labels: Labels | None, unlabeled: Unlabeled = Unlabeled.REJECT) -> Judgement:
    """Judge files by labels that are joined by file name."""
    verdicts, slices = find_slices(keys)
    match = None
    if labels:
        places = {LabelForm.NAME: LabelIndex.of(labels.image_ids).find(keys.names)}
        count = len(labels.image_ids)
        match = match_labels(places, slices, count, lambda: np.full(len(keys.uids), NO_LABEL))
    return plan.judge(verdicts, slices, labels, match, unlabeled)


def reasons_of(judgement: Judgement) -> list[Any]:
    """What became of each file."""
    known: dict[int, Any] = {USED: "used", BY_HEADER: "by header"}
    return [known.get(v) or VERDICTS[v] for v in judgement.verdicts.tolist()]


DUPLICATE, MISSING = (Reason.DUPLICATE_ID, ""), (Reason.LABEL_MISSING, "")


def split_by_ids(
    patients: Sequence[int],
    studies: Sequence[int],
    options: SplitOptions,
    unlabeled: Sequence[int] = (),
) -> tuple[dict[int, str], dict[str, int]]:
    """The split of each slice, one of each patient and study given; and how many are unnamed."""
    keys = keys_of([str(number) for number in range(len(patients))])
    ids = {"patient_id": np.array(patients, np.int32), "study_id": np.array(studies, np.int32)}
    keys = dataclasses.replace(keys, ids={**keys.ids, **ids}, unnamed=np.array(patients) < 0)
    values = {str(number): [0] for number in range(len(patients)) if number not in unlabeled}
    judgement = judge(keys, labels_by_id(["any"], values))
    identical = np.full(len(judgement.used), NOT_IDENTICAL, np.int64)
    dealt = deal(keys, judgement, identical, options)
    splits: dict[int, str] = {}
    for shard, (first, end) in zip(dealt.shards, pairwise(dealt.starts), strict=True):
        splits |= {judgement.used[place]: shard.split for place in dealt.slices[first:end]}
    counted = count_unnamed(keys, judgement.used)
    return splits, counted


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
    splits, counted = split_by_ids(patients, studies, options)
    assert len({splits[place] for place in (0, 1, 3, 5)}) == 1
    assert len({splits[place] for place in (2, 4, 6)}) == 1
    assert splits[7] == splits[8]
    assert len({splits[place] for place in (9, 10, 11)}) == 1
    assert counted == {"slices": 6, "studies": 4}
    by_study = SplitOptions(folds=4, leak_check=leak_check, seed=seed, group_by=GroupBy.STUDY)
    splits, counted = split_by_ids(patients, studies, by_study)
    assert all(
        splits[i] == splits[j] for i in range(15) for j in range(15) if studies[i] == studies[j]
    )
    assert counted == {"slices": 6, "studies": 4}


@pytest.mark.parametrize("seed", range(8))
def test_a_file_that_is_not_used_may_tell_whose_study_it_is(seed: int) -> None:
    patients, studies = [0, 0, -2, 1, 2, 3, 4], [0, 1, 1, 2, 3, 4, 5]
    splits, _ = split_by_ids(patients, studies, SplitOptions(folds=4, seed=seed), unlabeled=[1])
    assert splits[0] == splits[2]


def test_of_equal_image_ids_the_first_that_is_usable_is_used() -> None:
    keys = keys_of(["b", "a", "b", "a", "c", "a"], usable=[True, False, True, True, True, True])
    judgement = judge(keys, None)
    expected = ["used", "by header", DUPLICATE, "used", "used", DUPLICATE]
    assert reasons_of(judgement) == expected
    assert judgement.used.tolist() == [0, 3, 4]


def test_without_a_label_file_no_labels_are_claimed() -> None:
    judgement = judge(keys_of(["b", "a"]), None)
    assert judgement.names == ()
    assert judgement.labels.shape == (2, 0)
    assert judgement.labels.dtype == np.int8
    assert judgement.used.tolist() == [0, 1]
    assert judgement.labels_without_file == 0


def test_files_get_the_labels_of_their_image_ids() -> None:
    keys = keys_of(["c", "a", "absent", "d", "b", "e", "f"])
    labels = labels_by_id(
        ("x", "y"),
        {"a": [0, 1], "b": [1, 0], "c": [1, 1], "no file": [0, 0]},
        {"d": 2, "e": 0, "f": 1, "no file either": 0},
    )
    judgement = judge(keys, labels)
    conflict, bad_value, missing_class = PROBLEMS[2], PROBLEMS[0], PROBLEMS[1]
    assert reasons_of(judgement) == [
        *("used", "used", MISSING, conflict, "used", bad_value, missing_class)
    ]
    assert judgement.names == ("x", "y")
    assert judgement.used.tolist() == [0, 1, 4]
    assert judgement.labels.tolist() == [[1, 1], [0, 1], [1, 0]]
    assert judgement.labels_without_file == 2


def test_a_label_whose_file_was_rejected_has_a_file() -> None:
    keys = keys_of(["a", "b", "b"], usable=[True, False, False])
    labels = labels_by_id(("x",), {"a": [0], "b": [0], "c": [1]})
    judgement = judge(keys, labels)
    assert reasons_of(judgement) == ["used", "by header", "by header"]
    assert judgement.labels_without_file == 1


def test_nothing_may_be_usable() -> None:
    for labels in (None, labels_by_id(("x",), {"a": [0]})):
        judgement = judge(keys_of(["a", "b"], usable=[False, False]), labels)
        assert reasons_of(judgement) == ["by header"] * 2
        assert (len(judgement.used), len(judgement.labels)) == (0, 0)


files = st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()))
label_rows = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-3, 1), min_size=1)


@given(files, label_rows)
def test_verdicts_are_those_of_a_loop_over_files(
    files: list[tuple[str, bool]], labels: dict[str, int]
) -> None:
    """A value below 0 stands for the problem at place -1 - value."""
    keys = keys_of([name for name, _ in files], usable=[usable for _, usable in files])
    good = {name: [value] for name, value in labels.items() if value >= 0}
    bad = {name: -1 - value for name, value in labels.items() if value < 0}
    judgement = judge(keys, labels_by_id(("x",), good, bad))
    expected, used, seen = [], [], set()
    for place, (name, usable) in enumerate(files):
        if not usable:
            expected.append("by header")
        elif name in seen:
            expected.append(DUPLICATE)
        elif name not in labels:
            expected.append(MISSING)
        elif name in bad:
            expected.append(PROBLEMS[bad[name]])
        else:
            expected.append("used")
            used.append(place)
        seen |= {name} if usable else set()
    assert reasons_of(judgement) == expected
    assert judgement.used.tolist() == used
    assert judgement.labels.tolist() == [good[files[place][0]] for place in used]
    assert judgement.labels_without_file == len(labels.keys() - {name for name, _ in files})


OPTIONS = Options.of(input="in", labels="labels.csv", output="out", folds=2, examples_per_shard=4)


def twenty(patients: int = 4, slices: int = 5) -> tuple[Keys, Judgement]:
    """Patients with five slices each, the first of which bleeds."""
    count = patients * slices
    keys = keys_of([f"ID_{i}" for i in range(count)], [i // slices for i in range(count)])
    values = {f"ID_{i}": [0] * 4 + [int(i % slices == 0)] * 2 for i in range(count)}
    return keys, judge(keys, labels_by_id(RSNA_LABELS, values))


def alone(count: int) -> np.ndarray:
    return np.full(count, NOT_IDENTICAL)


def splits_of(dealt: Deal) -> dict[int, str]:
    """The split of each slice; every slice is in one shard."""
    found = {}
    for shard, (start, end) in enumerate(zip(dealt.starts, dealt.starts[1:], strict=False)):
        for slice_ in dealt.slices[start:end].tolist():
            assert slice_ not in found
            found[slice_] = dealt.shards[shard].split
    return found


def test_every_slice_is_in_one_shard_and_none_is_too_large() -> None:
    dealt = deal(*twenty(), alone(20), OPTIONS.splits)
    assert dealt.shards == tuple(
        ShardFile(split, number, 3) for split in ("fold0", "fold1") for number in range(3)
    )
    assert sorted(splits_of(dealt)) == [*range(20)]
    assert np.diff(dealt.starts).tolist() == [4, 3, 3, 4, 3, 3]  # ten slices in ceil(10 / 4) shards
    assert dealt.starts[0] == 0


def test_no_patient_is_in_two_folds_and_each_fold_has_a_label() -> None:
    keys, judgement = twenty()
    splits = splits_of(deal(keys, judgement, alone(20), OPTIONS.splits))
    by_patient = {
        (int(patient), splits[slice_]) for slice_, patient in enumerate(keys.ids["patient_id"])
    }
    assert len(by_patient) == 4
    bleeding = [splits[slice_] for slice_ in np.flatnonzero(judgement.labels[:, 4])]
    assert sorted(bleeding) == ["fold0", "fold0", "fold1", "fold1"]


def test_the_seed_decides_and_nothing_else() -> None:
    def order(seed: int) -> list[int]:
        options = OPTIONS.changed(seed=seed)
        return [int(slice_) for slice_ in deal(*twenty(), alone(20), options.splits).slices]

    assert order(0) == order(0) != order(1)


def test_without_labels_all_slices_are_one_split_whatever_the_folds() -> None:
    keys = keys_of([f"ID_{i}" for i in range(9)], [0] * 9)
    dealt = deal(keys, judge(keys, None), alone(9), OPTIONS.changed(folds=5).splits)
    assert [shard.name for shard in dealt.shards] == [
        f"ich-test.tfrecord-{number:05d}-of-00003" for number in range(3)
    ]
    assert dealt.starts == (0, 3, 6, 9)


def test_nothing_is_dealt_to_nothing() -> None:
    keys = keys_of(["a"], usable=[False])
    dealt = deal(keys, judge(keys, None), alone(0), OPTIONS.splits)
    assert (dealt.shards, dealt.starts, len(dealt.slices)) == ((), (0,), 0)


def test_splits_are_in_alphabetical_order() -> None:
    options = OPTIONS.changed(folds=12, holdout=0.1, examples_per_shard=100)
    dealt = deal(*twenty(patients=30), alone(150), options.splits)
    names = [shard.split for shard in dealt.shards]
    assert names == sorted(["holdout", *(f"fold{number}" for number in range(12))])


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(UsageError, match="--folds 2: 1 patients cannot fill 2 folds"):
        deal(*twenty(patients=1), alone(5), OPTIONS.splits)


def test_patients_with_identical_slices_are_in_one_fold() -> None:
    identical = alone(30)
    identical[[0, 5]] = 0  # of patients 0 and 1
    identical[[10, 15]] = 1  # of patients 2 and 3
    splits = splits_of(deal(*twenty(patients=6), identical, OPTIONS.splits))
    assert len({splits[slice_] for slice_ in range(10)}) == 1
    assert len({splits[slice_] for slice_ in range(10, 20)}) == 1
    apart = OPTIONS.changed(leak_check=LeakCheck.REPORT, folds=6)
    splits = splits_of(deal(*twenty(patients=6), identical, apart.splits))
    assert len(set(splits.values())) == 6


def test_studies_may_be_kept_whole_instead_of_patients() -> None:
    keys, judgement = twenty()
    keys = dataclasses.replace(keys, ids=keys.ids | {"patient_id": np.zeros(20, np.int32)})
    options = OPTIONS.changed(group_by=GroupBy.STUDY)
    splits = splits_of(deal(keys, judgement, alone(20), options.splits))
    assert set(splits.values()) == {"fold0", "fold1"}
    assert all(len({splits[5 * study + i] for i in range(5)}) == 1 for study in range(4))
    with pytest.raises(UsageError, match="1 patients cannot fill"):
        deal(keys, judgement, alone(20), OPTIONS.splits)


def test_an_earlier_assignment_is_kept_and_new_patients_are_dealt() -> None:
    first = splits_of(deal(*twenty(), alone(20), OPTIONS.splits))
    keys, judgement = twenty(patients=8)
    known = [first.get(slice_) for slice_ in range(40)]
    other = OPTIONS.changed(seed=9)
    second = splits_of(deal(keys, judgement, alone(40), other.splits, known))
    assert {slice_: second[slice_] for slice_ in first} == first
    assert sorted(second.values()) == ["fold0"] * 20 + ["fold1"] * 20


def test_ids_are_numbered_by_the_first_slice_that_is_used() -> None:
    keys = keys_of(["a", "b", "c", "d"], [7, 5, 9, 5], usable=[False, True, True, True])
    numbers = number_by_appearance(keys, judge(keys, None))
    assert {column: found.tolist() for column, found in numbers.items()} == {
        "patient_id": [0, 1, 0],
        "study_id": [0, 1, 0],
        "series_id": [0, 1, 2],
    }


# What follows reads an inventory and writes a plan.


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
    assert Plan.decode(unfinished.folder.read(PLAN)) == plan
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
    parts = plan_rows(rows, label_lines(rows), part_rows=7, output="parts", **changes)
    assert parts.plan == whole.plan
    assert parts.rejects == whole.rejects
    pd.testing.assert_frame_equal(parts.slices, whole.slices)


def test_the_order_of_the_labels_does_not_matter(plan_rows: PlanRows) -> None:
    rows = rows_of()
    one = plan_rows(rows, label_lines(rows))
    other = plan_rows(rows, label_lines(rows)[::-1])
    pd.testing.assert_frame_equal(one.slices, other.slices)


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


def test_a_duplicate_of_a_rejected_file_is_used(plan_rows: PlanRows) -> None:
    rows = rows_of()
    bad = row(0, 0, source=b"a/ID_00.dcm", reason="not_dicom", detail="empty file")
    planned = plan_rows([bad, *rows], label_lines(rows))
    assert planned.rejects == [
        {
            "source": "a/ID_00.dcm",
            "image_id": "ID_00",
            "reason": "not_dicom",
            "detail": "empty file",
        }
    ]


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


def test_without_labels_there_is_one_split_in_the_plan_too(plan_rows: PlanRows) -> None:
    slices = plan_rows(rows_of()).slices
    assert set(slices["split"]) == {"test"}
    assert not [name for name in slices.columns if name.startswith("label_")]


def test_no_files_are_refused(plan_rows: PlanRows, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"input {tmp_path} holds no files"):
        plan_rows([])


def test_a_data_set_of_unusable_files_is_refused_and_they_are_told(
    plan_rows: PlanRows, tmp_path: Path
) -> None:
    rows = [row | {"reason": "not_ct"} for row in rows_of()]
    with pytest.raises(TooManyRejects, match=r"20 of 20 files were rejected \(not_ct 20\)"):
        plan_rows(rows)
    with pytest.raises(UsageError, match="none of 20 files can be used"):
        plan_rows(rows, max_reject_fraction=1.0)
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["not_ct"] * 20


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


def test_an_assignment_in_a_file_is_kept(plan_rows: PlanRows, tmp_path: Path) -> None:
    rows = rows_of()
    first = plan_rows(rows, label_lines(rows)).splits
    table = pd.DataFrame({"image_id": [*first], "split": [*first.values()]})
    table.to_csv(tmp_path / "folds.csv", index=False)
    more = rows_of(patients=8)
    folds_from = str(tmp_path / "folds.csv")
    second = plan_rows(more, label_lines(more), seed=9, folds_from=folds_from).splits
    assert {image_id: second[image_id] for image_id in first} == first
    assert sorted(second.values()) == ["fold0"] * 20 + ["fold1"] * 20


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
    parts = len([*list_parts(options.files)])
    for part in range(parts):
        inspect_part(part, Watch(), options=options)
    return read_plan(plan_shards(parts, options), Unfinished(Folder(options.files.output)))


def test_a_folder_is_planned_as_its_files_are(small_data_set: Path, tmp_path: Path) -> None:
    options = OPTIONS.changed(
        input=str(small_data_set / "slices"),
        labels=str(small_data_set / "labels.csv"),
        output=str(tmp_path),
        max_reject_fraction=0.1,
    )
    planned = inspect_and_plan(options)
    good = {f"ID_{patient}{position}" for patient in range(6) for position in range(5)}
    assert set(planned.slices["image_id"]) == good | {"ID_flat"}  # that is seen when it is written
    assert planned.rejects == [
        {"source": f"{image_id}.dcm", "image_id": image_id, "reason": reason, "detail": ""}
        for image_id, reason in (("ID_text", "not_dicom"), ("ID_unlabeled", "label_missing"))
    ]
    assert (planned.plan.files_seen, planned.plan.labels_without_file) == (33, 1)
    slices = planned.slices.set_index("image_id")
    for patient in range(6):
        mine = slices.loc[[f"ID_{patient}{position}" for position in range(5)]]
        assert set(mine["patient_id"]) == {f"patient_{patient + 1:06d}"}
        assert mine["label_subdural"].tolist() == [int(p == patient % 5) for p in range(5)]
        assert mine["split"].nunique() == 1


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
