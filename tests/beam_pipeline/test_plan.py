import dataclasses

import numpy as np
import pandas as pd
import pytest

from beam_pipeline.errors import Reason, UsageError
from beam_pipeline.inventory import inventory_frame
from beam_pipeline.labels import RSNA_LABELS, Labels
from beam_pipeline.options import GroupBy, ImageId, LeakCheck, Options
from beam_pipeline.plan import Plan, plan_shards
from beam_pipeline.twins import TwinCounts

OPTIONS = Options(input="in", labels="labels.csv", output="out", folds=2, examples_per_shard=4)


def inventory(patients: int = 4, slices: int = 5) -> pd.DataFrame:
    return inventory_frame(
        {
            "source": f"p{patient}/ID_{patient}{number}.dcm",
            "image_id": f"ID_{patient}{number}",
            "patient_id": f"name {patient}",
            "study_id": f"study {patient}",
            "series_id": f"series {patient}",
        }
        for patient in range(patients)
        for number in range(slices)
    )


def labels_of(rows: pd.DataFrame) -> Labels:
    values = np.zeros((len(rows), 6), np.int8)
    values[::5, [4, 5]] = 1
    table = pd.DataFrame(values, columns=list(RSNA_LABELS), index=pd.Index(rows["image_id"]))
    return Labels(RSNA_LABELS, table)


def planned(plan: Plan) -> pd.DataFrame:
    return pd.concat([shard.slices.assign(split=shard.split) for shard in plan.shards])


def test_every_file_is_planned_or_rejected_once() -> None:
    rows = inventory()
    plan = plan_shards(rows, labels_of(rows), OPTIONS)
    assert sorted(planned(plan)["source"]) == sorted(rows["source"])
    assert len(plan.rejects) == 0
    assert plan.files_seen == 20
    assert [shard.file for shard in plan.shards[:3]] == [
        "ich-fold0.tfrecord-00000-of-00003",
        "ich-fold0.tfrecord-00001-of-00003",
        "ich-fold0.tfrecord-00002-of-00003",
    ]
    assert plan.shard_count == len(plan.shards) == 6


def test_no_patient_is_in_two_folds_and_each_has_a_label() -> None:
    rows = inventory()
    slices = planned(plan_shards(rows, labels_of(rows), OPTIONS))
    assert (slices.groupby("patient_id")["split"].nunique() == 1).all()
    assert slices.groupby("split")["label_subdural"].sum().tolist() == [2, 2]


def test_the_order_of_the_inventory_does_not_matter() -> None:
    rows = inventory()
    one = plan_shards(rows, labels_of(rows), OPTIONS)
    other = plan_shards(rows.sample(frac=1, random_state=1), labels_of(rows), OPTIONS)
    assert [shard.digest() for shard in one.shards] == [shard.digest() for shard in other.shards]


def test_ids_are_replaced_by_ordinals() -> None:
    rows = inventory()
    slices = planned(plan_shards(rows, labels_of(rows), OPTIONS)).set_index("image_id")
    assert slices.loc["ID_00", "patient_id"] == "patient_000001"
    assert slices.loc["ID_34", "study_id"] == "study_000004"
    assert not slices.astype(str).apply(lambda column: column.str.contains("name")).any(axis=None)


def test_the_first_file_of_an_id_is_used() -> None:
    rows = inventory()
    twin = rows.iloc[[0]].assign(source="a/ID_00.dcm")
    plan = plan_shards(pd.concat([rows, twin]), labels_of(rows), OPTIONS)
    assert plan.rejects.to_dict("records") == [
        {"source": "p0/ID_00.dcm", "image_id": "ID_00", "reason": "duplicate_id", "detail": ""}
    ]


def test_a_duplicate_of_a_rejected_file_is_used() -> None:
    rows = inventory()
    twin = rows.iloc[[0]].assign(source="a/ID_00.dcm", reason="not_dicom")
    plan = plan_shards(pd.concat([rows, twin]), labels_of(rows), OPTIONS)
    assert plan.rejects["source"].tolist() == ["a/ID_00.dcm"]


def test_label_problems_are_reasons_and_labels_without_file_are_counted() -> None:
    rows = inventory()
    labels = labels_of(rows)
    labels = Labels(
        labels.names,
        pd.concat([labels.table.drop(index=["ID_00", "ID_01"]), labels.table.rename("x{}".format)]),
        {"ID_00": (Reason.LABEL_CONFLICT, "two"), "ID_absent": (Reason.LABEL_INVALID, "bad")},
    )
    plan = plan_shards(rows, labels, OPTIONS)
    assert plan.rejects[["image_id", "reason", "detail"]].to_numpy().tolist() == [
        ["ID_00", "label_conflict", "two"],
        ["ID_01", "label_missing", ""],
    ]
    assert plan.labels_without_file == 21


def test_without_labels_all_slices_are_one_split() -> None:
    plan = plan_shards(inventory(), None, OPTIONS)
    slices = planned(plan)
    assert set(slices["split"]) == {"test"}
    assert (slices[[f"label_{name}" for name in RSNA_LABELS]] == -1).all(axis=None)


def test_too_few_patients_are_refused() -> None:
    rows = inventory(patients=1)
    with pytest.raises(UsageError, match="--folds 2: 1 patients cannot fill 2 folds"):
        plan_shards(rows, labels_of(rows), OPTIONS)


def test_no_files_are_refused() -> None:
    with pytest.raises(UsageError, match="holds no files"):
        plan_shards(inventory_frame([]), None, OPTIONS)


def test_patients_with_identical_pixels_are_in_one_fold() -> None:
    rows = inventory(patients=6).assign(twin="")
    rows.loc[[0, 5], "twin"] = "x"  # of patients 0 and 1
    rows.loc[[10, 15], "twin"] = "y"  # of patients 2 and 3
    plan = plan_shards(rows, labels_of(rows), OPTIONS)
    split = planned(plan).set_index("image_id")["split"]
    assert split["ID_00"] == split["ID_14"]
    assert split["ID_20"] == split["ID_34"]
    assert plan.twins == TwinCounts(2, 4, 2, 0)
    apart = dataclasses.replace(OPTIONS, leak_check=LeakCheck.REPORT, folds=6)
    reported = plan_shards(rows, labels_of(rows), apart)
    assert planned(reported).set_index("image_id")["split"].nunique() == 6
    assert reported.twins == plan.twins


def test_ordinal_image_ids_show_no_file_name() -> None:
    rows = inventory()
    rows.loc[3, "reason"] = "not_dicom"
    options = dataclasses.replace(OPTIONS, image_id=ImageId.ORDINAL)
    plan = plan_shards(rows, labels_of(rows), options)
    slices = planned(plan)
    assert sorted(slices["image_id"])[:2] == ["image_000001", "image_000002"]
    assert plan.rejects.to_dict("records") == [
        {"source": "file_000004", "image_id": "", "reason": "not_dicom", "detail": ""}
    ]
    assert slices["shown_source"].str.fullmatch(r"file_\d{6}").all()
    assert slices["source"].str.startswith("p").all()  # where to read it from


def test_studies_may_be_kept_whole_instead_of_patients() -> None:
    rows = inventory(patients=4).assign(patient_id="one")
    options = dataclasses.replace(OPTIONS, group_by=GroupBy.STUDY)
    assert set(planned(plan_shards(rows, labels_of(rows), options))["split"]) == {"fold0", "fold1"}


def test_an_earlier_assignment_is_kept() -> None:
    rows = inventory()
    first = planned(plan_shards(rows, labels_of(rows), OPTIONS)).set_index("image_id")["split"]
    more = inventory(patients=8)
    other = dataclasses.replace(OPTIONS, seed=9)
    second = planned(plan_shards(more, labels_of(more), other, earlier=first))
    assert second.set_index("image_id")["split"].loc[first.index].equals(first)
    assert second["split"].value_counts().tolist() == [20, 20]
