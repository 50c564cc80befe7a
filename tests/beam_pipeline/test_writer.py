import dataclasses
import hashlib
import json
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

from beam_pipeline.dicom.slices import read_slice
from beam_pipeline.options import ImageId, Options
from beam_pipeline.planning.plan_shards import plan_shards
from beam_pipeline.shards.formats import decode_example, index_schema
from beam_pipeline.shards.unfinished import Plan, ShardResult, Unfinished
from beam_pipeline.shards.writer import write_shard
from beam_pipeline.workers import Later, Watch
from headct.errors import OutputError, StoreError
from headct.layout import SHARDS_A_PART, ShardFile, plan_table, written_table
from headct.reasons import TRANSIENT, Reason
from headct.stores import FileInfo, Folder, InputFiles
from headct.tfrecord import read_records
from tests.beam_pipeline.dicom_files import SIGNED_16, make_dicom
from tests.beam_pipeline.steps import Witness, inspect_all, small_options

# The high bytes of SIGNED_16, then its low ones, as literals (DICOM PS3.5 annex G).
_HIGH, _LOW = (SIGNED_16.astype(order).tobytes()[::2] for order in (">i2", "<i2"))
RLE_FRAME = struct.pack("<16I", 2, 64, 71, *[0] * 13) + b"\5" + _HIGH + b"\5" + _LOW
WriteSlice = Callable[..., Path]


@pytest.fixture
def options(small_data_set: Path, tmp_path: Path) -> Options:
    return small_options(small_data_set, tmp_path / "out", 2)


def make_plan(options: Options) -> Plan:
    return plan_shards(inspect_all(options), options)


def listing(options: Options) -> list[FileInfo]:
    return [*InputFiles.parse(options.files.input).list()]


def planned_slices(number: int, options: Options) -> list[dict[str, Any]]:
    part, batch = divmod(number, SHARDS_A_PART)
    unfinished = Unfinished(Folder(options.files.output))
    return list(unfinished.read_batch(plan_table(part), batch).to_pylist())


def write(
    number: int, options: Options, watch: Watch | None = None
) -> tuple[pa.Table, ShardResult]:
    """Write a shard; the rows of its index, and its result."""
    written = write_shard(number, watch or Watch(), options=options)
    if isinstance(written, Later):
        written = written.finish()
    index = Unfinished(Folder(options.files.output)).read(written_table(written.file))
    assert ShardResult.of(index) == written
    return index, written


def counts(result: ShardResult) -> tuple[str, int, int]:
    return result.file, result.examples, len(result.rejects)


def number_of(image_id: str, plan: Plan, options: Options) -> int:
    """The shard that an image is planned for."""
    (number,) = (
        number
        for number in range(len(plan.shards))
        if image_id in [row["image_id"] for row in planned_slices(number, options)]
    )
    return number


def examples_of(name: str, options: Options) -> dict[bytes, dict[str, Any]]:
    with Path(options.files.output, name).open("rb") as file:
        examples = [decode_example(record) for record in read_records(file)]
    return {example["image_id"][0]: example for example in examples}


# More shards than a table of the plan has: the last one's slices are in the second table.
@pytest.mark.parametrize("number", [0, SHARDS_A_PART - 1, SHARDS_A_PART, -1])
def test_a_shard_holds_the_planned_slices_and_the_index_finds_them(
    options: Options, number: int
) -> None:
    plan = make_plan(options)
    assert len(plan.shards) > SHARDS_A_PART + 1
    number %= len(plan.shards)
    index, result = write(number, options)
    data = Path(options.files.output, plan.shards[number]).read_bytes()
    slices = planned_slices(number, options)
    kept = [row for row in slices if row["image_id"] != "ID_flat"]
    labels = [column for column in slices[0] if column.startswith("label_")]
    assert counts(result) == (plan.shards[number], len(kept), len(slices) - len(kept))
    assert result.split == ShardFile.parse(result.file).split
    assert result.bytes == len(data)
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    assert (result.examples, result.resized, result.repaired) == (len(kept), 0, {})
    assert result.label_counts == {
        label.removeprefix("label_"): sum(row[label] for row in kept) for label in labels
    }
    assert index.schema.equals(index_schema(plan.labels))
    assert index["record"].to_pylist() == [*range(len(kept))]
    assert index["shard"].to_pylist() == [result.file] * len(kept)
    assert index["split"].to_pylist() == [result.split] * len(kept)
    for row, planned in zip(index.to_pylist(), kept, strict=True):
        assert row["source"].encode() == planned["source"]
        record = data[row["offset"] : row["offset"] + row["bytes"]]
        example = decode_example(record[12:-4])
        image = data[row["image_offset"] : row["image_offset"] + row["image_bytes"]]
        assert example["image"] == [image]
        spacing = np.array([row["row_spacing"], row["column_spacing"]], np.float32)
        assert np.array_equal(example["pixel_spacing"], spacing, equal_nan=True)
        for column in ("image_id", "patient_id", "study_id", "series_id"):
            assert example[column] == [planned[column].encode()] == [row[column].encode()]
        assert example["label"] == [planned[c] for c in labels] == [row[c] for c in labels]
    assert sum(index["bytes"].to_pylist()) == len(data)


def test_an_example_is_what_the_contract_says(options: Options, small_data_set: Path) -> None:
    plan = make_plan(options)
    index, result = write(number_of("ID_23", plan, options), options)
    example = examples_of(result.file, options)[b"ID_23"]
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
    assert example["patient_id"] == [b"patient_000003"]
    (png,) = example["image"]
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
    slice_ = read_slice((small_data_set / "slices" / "ID_23.dcm").read_bytes())
    hounsfield = slice_.pixels.view(np.int16) - 1024.0
    brain = np.clip(hounsfield / 80, 0, 1) * 255
    bone = np.clip((hounsfield + 800) / 2800, 0, 1) * 255
    assert np.abs(decoded[..., 0] - brain).max() <= 0.5
    assert np.abs(decoded[..., 2] - bone).max() <= 0.5
    (row,) = (row for row in index.to_pylist() if row["image_id"] == "ID_23")
    assert (row["position_z"], row["rows"], row["columns"]) == (15.0, 32, 32)
    assert row["transfer_syntax"] == "1.2.840.10008.1.2.1"
    assert (row["repair"], row["resized"]) == ("none", False)


def test_a_slice_that_cannot_be_used_is_a_row_of_the_rejects(options: Options) -> None:
    options = options.changed(examples_per_shard=256)
    plan = make_plan(options)
    number = number_of("ID_flat", plan, options)
    places = {row["image_id"]: i for i, row in enumerate(planned_slices(number, options))}
    lost = next(image_id for image_id in places if image_id != "ID_flat")
    witness = Witness({places[lost]: Reason.DECODER_CRASHED})
    index, result = write(number, options, witness)
    expected = {"ID_flat": "constant_image", lost: "decoder_crashed"}
    assert result.rejects == [
        {"source": f"{i}.dcm", "image_id": i, "reason": expected[i], "detail": ""}
        for i in places
        if i in expected
    ]
    assert counts(result) == (plan.shards[number], len(places) - 2, 2)
    assert index["image_id"].to_pylist() == [i for i in places if i not in expected]
    assert witness.places == [place for image_id, place in places.items() if image_id != lost]


def test_a_shard_may_lose_all_its_slices(options: Options) -> None:
    plan = make_plan(options)
    excluded = dict.fromkeys(range(2), Reason.DECODER_TIMED_OUT)
    index, result = write(0, options, Watch(excluded))
    assert counts(result) == (plan.shards[0], 0, 2)
    assert Path(options.files.output, plan.shards[0]).read_bytes() == b""
    assert (len(index), result.bytes, result.sha256) == (0, 0, hashlib.sha256().hexdigest())
    assert index.schema.equals(index_schema(plan.labels))
    assert set(result.label_counts.values()) == {0}


def test_ordinal_image_ids_show_no_file_name(options: Options) -> None:
    options = options.changed(image_id=ImageId.ORDINAL, examples_per_shard=256)
    plan = make_plan(options)
    names = [path.name for path in sorted(Path(options.files.input).iterdir())]
    rejects = []
    for number in range(len(plan.shards)):
        index, result = write(number, options)
        rejects += result.rejects
        slices = {row["image_id"]: row for row in planned_slices(number, options)}
        for row in index.to_pylist():
            place = names.index(slices[row["image_id"]]["source"].decode())
            assert row["source"] == f"file_{place + 1:06d}"
    flat = names.index("ID_flat.dcm")
    (reject,) = rejects
    assert reject["source"] == f"file_{flat + 1:06d}"
    assert (reject["image_id"], reject["reason"]) == (f"image_{flat + 1:06d}", "constant_image")


def test_a_shard_that_is_whole_is_not_written_again(options: Options) -> None:
    options = options.changed(examples_per_shard=256)
    plan = make_plan(options)
    number = number_of("ID_flat", plan, options)
    first = write(number, options)
    path = Path(options.files.output, plan.shards[number])
    before = path.stat()
    witness = Witness()
    make_plan(options)
    second = write(number, options, witness)
    assert second[0].equals(first[0], check_metadata=True)
    assert second[1] == first[1]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert witness.places == []


@pytest.mark.parametrize("damage", ["shard", "shard is gone", "options", "record", "record is cut"])
def test_a_shard_is_written_again_if_anything_about_it_changed(
    options: Options, damage: str
) -> None:
    plan = make_plan(options)
    _, first = write(0, options)
    path = Path(options.files.output, plan.shards[0])
    record = Path(options.files.output, ".unfinished", f"{written_table(plan.shards[0])}.arrow")
    if damage == "shard":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif damage == "shard is gone":
        path.unlink()
    elif damage == "options":
        options = options.changed(windows=options.image.windows[:2])
        assert make_plan(options) == plan
    elif damage == "record":
        record.unlink()
    else:
        record.write_bytes(record.read_bytes()[:-1])
    witness = Witness()
    _, second = write(0, options, witness)
    assert witness.places == [0, 1]
    assert second.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (second.sha256 == first.sha256) == (damage != "options")


def test_a_shard_is_written_again_if_its_plan_is_another(options: Options) -> None:
    """A file is gone: the slices of all shards are dealt anew."""
    make_plan(options)
    write(0, options)
    assert options.files.labels
    labels = Path(options.files.output, "labels.csv")
    lines = Path(options.files.labels).read_text().splitlines(keepends=True)
    (image_id, *_) = (row["image_id"] for row in planned_slices(0, options))
    labels.write_text("".join(line for line in lines if not line.startswith(f"{image_id}_")))
    make_plan(options.changed(labels=str(labels)))
    index, result = write(0, options)
    planned = [row["image_id"] for row in planned_slices(0, options)]
    assert image_id not in planned
    rejected = [row["image_id"] for row in result.rejects]
    assert index["image_id"].to_pylist() == [i for i in planned if i not in rejected]


@pytest.fixture
def four(options: Options, tmp_path: Path, write_slice: WriteSlice) -> Options:
    """Of a run on four slices of four patients in `in/`, in one shard."""
    folder = tmp_path / "in"
    for number in range(4):
        write_slice(folder / f"ID_{number}.dcm", PatientID=f"p{number}")
    return options.changed(input=str(folder), labels=None, examples_per_shard=256)


def test_a_file_that_vanishes_after_planning_is_rejected(four: Options, tmp_path: Path) -> None:
    make_plan(four)
    (tmp_path / "in" / "ID_1.dcm").unlink()
    (tmp_path / "in" / "ID_1.dcm").mkdir()
    (tmp_path / "in" / "ID_2.dcm").unlink()
    (tmp_path / "in" / "ID_3.dcm").write_bytes(b"")
    index, result = write(0, four)
    rejects = {row["image_id"]: (row["reason"], row["detail"]) for row in result.rejects}
    assert rejects == {
        "ID_1": ("read_error", "Not a regular file"),
        "ID_2": ("vanished", ""),
        "ID_3": ("not_dicom", "empty file"),
    }
    assert index["image_id"].to_pylist() == ["ID_0"]


def overwrite(path: Path, data: bytes, *, later: int = 1) -> None:
    """Replace a file's content; its time of modification is later, ns."""
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + later, before + later))


@pytest.mark.parametrize("call", range(4))
def test_an_outage_of_the_input_changes_nothing(
    four: Options, tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is renamed away before one of the files is read."""
    folder = tmp_path / "in"
    make_plan(four)
    expected = write(0, four)
    four = four.changed(output=f"{four.files.output}-again")
    make_plan(four)
    read, calls = InputFiles.read, []

    def away(files: InputFiles, source: str, *part: int | None) -> bytes:
        calls.append(source)
        if calls[call:] == [source]:
            hidden = folder.rename(f"{folder}.away")
            threading.Timer(0.1, hidden.rename, (folder,)).start()
        return read(files, source, *part)

    monkeypatch.setattr(InputFiles, "read", away)
    assert write(0, four)[1] == expected[1]
    assert len({*calls}) == 4


def test_an_outage_that_lasts_writes_no_shard(four: Options, tmp_path: Path) -> None:
    four = four.changed(storage_patience=1)
    plan = make_plan(four)
    hidden = (tmp_path / "in").rename(tmp_path / "away")
    with pytest.raises(StoreError, match=f"{tmp_path}/in: no answer for 1 s"):
        write_shard(0, Watch(), options=four)
    assert Unfinished(Folder(four.files.output)).find(written_table(plan.shards[0])) is None
    hidden.rename(tmp_path / "in")
    assert counts(write(0, four)[1]) == (plan.shards[0], 4, 0)


@pytest.mark.parametrize("reason", sorted(TRANSIENT))
def test_a_shard_with_a_reject_that_may_pass_is_written_again(
    four: Options, reason: Reason
) -> None:
    plan = make_plan(four)
    for excluded in ({1: reason}, {}, {}):
        witness = Witness(excluded)
        assert len(write(0, four, witness)[1].rejects) == len(excluded)
    assert witness.places == []  # it has no such reject any more
    assert counts(write(0, four)[1]) == (plan.shards[0], 4, 0)


@pytest.mark.parametrize("before", ["constant", "other pixels"])
def test_a_file_that_is_copied_again_is_read_again(
    four: Options, tmp_path: Path, before: str
) -> None:
    """With the same size and header."""
    path = tmp_path / "in" / "ID_1.dcm"
    good = path.read_bytes()
    other = np.frombuffer(good[-2048:], np.int16)[::-1].tobytes()
    pixels = bytes(2048) if before == "constant" else other
    overwrite(path, good[:-2048] + pixels)
    make_plan(four)
    index, _ = write(0, four)
    assert ("ID_1" in index["image_id"].to_pylist()) == (before != "constant")
    overwrite(path, good)
    plan = make_plan(four)
    second = write(0, four)
    fresh = four.changed(output=f"{four.files.output}-fresh")
    assert make_plan(fresh) == plan
    assert second[1] == write(0, fresh)[1]
    assert counts(second[1]) == (plan.shards[0], 4, 0)


@pytest.mark.parametrize(
    "attribute",
    [
        {"PatientID": "another"},
        {"StudyInstanceUID": "another"},
        {"SeriesInstanceUID": "another"},
        {"SOPInstanceUID": "another"},
        {"ImagePositionPatient": [0.0, 0.0, 77.0]},
        {"PixelSpacing": [0.5, 0.75]},
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_a_file_that_becomes_another_slice_is_not_written_under_the_planned_one(
    options: Options, tmp_path: Path, syntax: str, attribute: dict[str, Any]
) -> None:
    """Whether its header is remembered or has to be read again."""
    frame = RLE_FRAME if syntax == RLELossless else None
    path = tmp_path / "in" / "ID_1.dcm"
    path.parent.mkdir()
    options = options.changed(input=str(path.parent), labels=None)
    path.write_bytes(make_dicom(syntax=syntax, frame=frame))
    make_plan(options)
    path.write_bytes(make_dicom(syntax=syntax, frame=frame, **attribute))
    index, result = write(0, options)
    assert len(index) == 0
    assert [(row["reason"], row["detail"]) for row in result.rejects] == [("changed", "")]
    overwrite(path, path.read_bytes())
    make_plan(options)
    assert write(0, options)[1].examples == 1


def test_a_file_whose_version_is_not_known_is_always_read(
    four: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    infos = [FileInfo(f"ID_{n}.dcm", info.size, "") for n, info in enumerate(listing(four))]
    monkeypatch.setattr(InputFiles, "list", lambda files: iter(infos))
    make_plan(four)
    for _ in range(2):
        witness = Witness()
        write(0, four, witness)
        assert witness.places == [0, 1, 2, 3]


def test_a_store_that_fails_is_no_verdict_on_a_slice(
    four: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(four)

    def fail(*_: object) -> bytes:
        raise StoreError("disk", "is on fire")

    monkeypatch.setattr("headct.stores.input_output.InputFiles.read", fail)
    with pytest.raises(StoreError, match="disk: is on fire"):
        write_shard(0, Watch(), options=four)
    assert not [path for path in Path(four.files.output).iterdir() if path.name.startswith("ich-")]
    assert Unfinished(Folder(four.files.output)).find(written_table(plan.shards[0])) is None


def test_a_shard_that_cannot_be_written_leaves_nothing(options: Options) -> None:
    plan = make_plan(options)
    before = set(Path(options.files.output).rglob("*"))
    place = Path(options.files.output, plan.shards[0])
    place.mkdir()
    with pytest.raises(OutputError, match=f"cannot write {place.name} in "):
        write(0, options)
    place.rmdir()
    assert set(Path(options.files.output).rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, 128), ({"RescaleIntercept": "-1004"}, 191), ({"Rows": 64}, "truncated_pixels")],
)
def test_a_file_that_changes_after_planning_is_read_as_it_is_now(
    options: Options,
    tmp_path: Path,
    write_slice: WriteSlice,
    change: dict[str, object],
    expected: object,
) -> None:
    pixels = np.full((32, 32), 1064, np.int16)  # 40 HU at intercept -1024, 60 HU at -1004
    pixels[0] = 0
    write_slice(tmp_path / "in" / "ID_0.dcm", pixels)
    options = options.changed(input=str(tmp_path / "in"), labels=None)
    make_plan(options)
    write_slice(tmp_path / "in" / "ID_0.dcm", pixels, **change)
    _, result = write(0, options)
    if isinstance(expected, str):
        assert [row["reason"] for row in result.rejects] == [expected]
        return
    (png,) = examples_of(result.file, options)[b"ID_0"]["image"]
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded[16, 16, 2] == expected


def test_repaired_and_resized_slices_are_counted(
    options: Options, tmp_path: Path, write_slice: WriteSlice
) -> None:
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 1200, (32, 32)).astype(np.int16)
    write_slice(tmp_path / "in" / "plain.dcm", plain)
    large = rng.integers(0, 1200, (64, 48)).astype(np.int16)
    write_slice(tmp_path / "in" / "large.dcm", large)
    wrapped = np.full((32, 32), 3096, np.uint16)  # air of -1000 HU
    wrapped[8:24, 8:24] = 40
    twelve = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": "0"}
    write_slice(tmp_path / "in" / "wrapped.dcm", wrapped, **twelve)
    options = options.changed(
        input=str(tmp_path / "in"),
        labels=None,
        examples_per_shard=256,
    )
    make_plan(options)
    index, result = write(0, options)
    assert (result.resized, result.repaired) == (1, {"shift": 1})
    columns = ("resized", "repair", "rows", "columns")
    assert {row["image_id"]: [row[c] for c in columns] for row in index.to_pylist()} == {
        "plain": [False, "none", 32, 32],
        "large": [True, "none", 64, 48],
        "wrapped": [False, "shift", 32, 32],
    }


def test_a_result_is_kept_as_json_values(options: Options) -> None:
    make_plan(options)
    _, result = write(0, options)
    values = dataclasses.asdict(result)
    assert ShardResult(**json.loads(json.dumps(values))) == result
