import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from beam_pipeline.dicom import read_slice
from beam_pipeline.errors import OutputError, Reason
from beam_pipeline.example import decode_example, read_records
from beam_pipeline.index import decode_index
from beam_pipeline.inventory import Batch, inspect_batch, list_batches
from beam_pipeline.labels import LabelFile
from beam_pipeline.options import Options
from beam_pipeline.plan import Plan, ShardPlan, plan_shards
from beam_pipeline.shards import ShardResult, write_shard
from beam_pipeline.storage import InputFiles


def ignore(place: int) -> None:
    """Nobody watches these workers."""


@pytest.fixture
def options(small_data_set: Path, tmp_path: Path) -> Options:
    return Options(
        input=str(small_data_set / "slices"),
        labels=str(small_data_set / "labels.csv"),
        output=str(tmp_path / "out"),
        image_size=32,
        folds=2,
    )


def plan_of(options: Options) -> Plan:
    files = InputFiles.parse(options.input)
    assert options.labels
    return plan_shards(inventory_of(options, files), LabelFile(options.labels).read(), options)


def inventory_of(options: Options, files: InputFiles) -> pd.DataFrame:
    batches = [batch for batch in list_batches(files) if isinstance(batch, Batch)]
    return pd.concat(inspect_batch(b, ignore, files=files, options=options) for b in batches)


def write(plan: ShardPlan, options: Options) -> ShardResult:
    return write_shard(plan, ignore, files=InputFiles.parse(options.input), options=options)


def shard_with(plan: Plan, image_id: str) -> ShardPlan:
    (shard,) = (s for s in plan.shards if image_id in set(s.slices["image_id"]))
    return shard


def test_a_shard_holds_the_planned_slices_and_the_index_finds_them(options: Options) -> None:
    plan = plan_of(options).shards[0]
    result = write(plan, options)
    data = (Path(options.output) / plan.file).read_bytes()
    assert result.bytes == len(data)
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    kept = plan.slices[plan.slices["image_id"] != "ID_flat"]
    index = decode_index(result.index)
    assert index["image_id"].tolist() == kept["image_id"].tolist()
    assert (result.examples, result.resized, result.repaired) == (len(kept), 0, {})
    assert result.label_counts["any"] == kept["label_any"].sum()
    assert result.patients == set(kept["patient_id"])
    for row in index.to_dict("records"):
        record = data[row["offset"] : row["offset"] + row["bytes"]]
        example = decode_example(record[12:-4])
        assert example["image_id"] == [row["image_id"].encode()]
        assert example["patient_id"] == [row["patient_id"].encode()]
        assert example["label"] == [row[c] for c in plan.slices if c.startswith("label_")]


def test_an_example_is_what_the_contract_says(options: Options, small_data_set: Path) -> None:
    plan = shard_with(plan_of(options), "ID_23")
    write(plan, options)
    with (Path(options.output) / plan.file).open("rb") as file:
        examples = [decode_example(record) for record in read_records(file)]
    (example,) = (e for e in examples if e["image_id"] == [b"ID_23"])
    assert set(example) == {
        "image",
        "image_id",
        "label",
        "patient_id",
        "study_id",
        "series_id",
        "position_z",
        "pixel_spacing",
    }
    assert example["position_z"] == [15.0]
    assert example["pixel_spacing"] == [0.5, 0.25]
    (png,) = example["image"]
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
    slice_ = read_slice((small_data_set / "slices" / "ID_23.dcm").read_bytes())
    hounsfield = slice_.pixels.view(np.int16) - 1024.0
    brain = np.clip(hounsfield / 80, 0, 1) * 255
    bone = np.clip((hounsfield + 800) / 2800, 0, 1) * 255
    assert np.abs(decoded[..., 0] - brain).max() <= 0.5
    assert np.abs(decoded[..., 2] - bone).max() <= 0.5


def test_a_slice_that_cannot_be_used_is_a_row_of_the_rejects(options: Options) -> None:
    plan = shard_with(plan_of(options), "ID_flat")
    result = write(plan.excluding("ID_00.dcm", Reason.DECODER_CRASHED), options)
    expected = [
        {"source": f"{i}.dcm", "image_id": i, "reason": r, "detail": ""}
        for i, r in (("ID_flat", "constant_image"), ("ID_00", "decoder_crashed"))
        if i in set(plan.slices["image_id"])
    ]
    found = result.rejects.to_dict("records")
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert result.examples + len(result.rejects) == len(plan.slices)


def test_a_shard_that_is_whole_is_not_written_again(options: Options) -> None:
    plan = plan_of(options).shards[0]
    first = write(plan, options)
    path = Path(options.output) / plan.file
    written = path.stat().st_mtime_ns
    second = write(plan, options)
    assert path.stat().st_mtime_ns == written
    pd.testing.assert_frame_equal(first.rejects, second.rejects, check_dtype=False)
    assert dataclasses.replace(first, rejects=None) == dataclasses.replace(second, rejects=None)


@pytest.mark.parametrize("damage", ["shard", "options", "record"])
def test_a_shard_is_written_again_if_anything_about_it_changed(
    options: Options, damage: str
) -> None:
    plan = plan_of(options).shards[0]
    first = write(plan, options)
    path = Path(options.output) / plan.file
    if damage == "shard":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif damage == "options":
        options = dataclasses.replace(options, windows=options.windows[:2])
    else:
        (record,) = (Path(options.output) / ".unfinished").glob("*.json")
        record.unlink()
    second = write(plan, options)
    assert second.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (second.sha256 == first.sha256) == (damage != "options")


def test_a_file_that_vanishes_after_planning_is_rejected(
    options: Options, tmp_path: Path, write_slice: Callable[..., Path]
) -> None:
    folder = tmp_path / "in"
    for number in range(4):
        write_slice(folder / f"ID_{number}.dcm", PatientID=f"p{number}")
    options = dataclasses.replace(options, input=str(folder), labels=None)
    files = InputFiles.parse(options.input)
    (plan,) = plan_shards(inventory_of(options, files), None, options).shards
    (folder / "ID_2.dcm").unlink()
    (folder / "ID_3.dcm").write_bytes(b"")
    result = write(plan, options)
    rejects = result.rejects.set_index("image_id")["reason"].to_dict()
    assert rejects == {"ID_2": "unreadable", "ID_3": "not_dicom"}
    assert sorted(decode_index(result.index)["image_id"]) == ["ID_0", "ID_1"]


def test_a_shard_that_cannot_be_written_leaves_nothing(options: Options, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = dataclasses.replace(options, output=str(tmp_path / "file" / "out"))
    with pytest.raises(OutputError, match="cannot write ich-fold0"):
        write(plan_of(options).shards[0], options)


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, 128), ({"RescaleIntercept": "-1004"}, 191), ({"Rows": 64}, "truncated_pixels")],
)
def test_a_file_that_changes_after_planning_is_read_as_it_is_now(
    options: Options,
    tmp_path: Path,
    write_slice: Callable[..., Path],
    change: dict[str, object],
    expected: object,
) -> None:
    pixels = np.full((32, 32), 1064, np.int16)  # 40 HU at intercept -1024, 60 HU at -1004
    pixels[0] = 0
    write_slice(tmp_path / "in" / "ID_0.dcm", pixels)
    options = dataclasses.replace(options, input=str(tmp_path / "in"), labels=None)
    files = InputFiles.parse(options.input)
    (plan,) = plan_shards(inventory_of(options, files), None, options).shards
    write_slice(tmp_path / "in" / "ID_0.dcm", pixels, **change)
    result = write(plan, options)
    if isinstance(expected, str):
        assert result.rejects["reason"].tolist() == [expected]
        return
    with (Path(options.output) / plan.file).open("rb") as file:
        (png,) = decode_example(next(read_records(file)))["image"]
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded[16, 16, 2] == expected
