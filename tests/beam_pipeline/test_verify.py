"""Each kind of damage is done to a copy of one healthy directory, and has to be found."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_pipeline.finish import finish_directory
from beam_pipeline.keys import KEY_VARIABLE, key_check
from beam_pipeline.options import GroupBy, Identifiers, ImageId, ImageOptions, Options
from beam_pipeline.shards.formats import (
    decode_example,
    encode_example,
    index_table,
    write_index,
)
from beam_pipeline.shards.manifest import manifest_digest
from beam_pipeline.verify.__main__ import main
from beam_pipeline.verify.findings import Check, Finding
from beam_pipeline.verify.shard import FILE, ShardTask, check_shard, show_id
from beam_pipeline.verify.verification import verify_directory
from beam_pipeline.workers import Watch
from headct.errors import StoreError
from headct.manifest import ImageSpec
from headct.reasons import Reason
from headct.stores import InputFiles
from headct.stores.local import LocalStore
from headct.tfrecord import frame_record, read_records
from headct.windows import parse_window
from tests.beam_pipeline.steps import write_shards

FIRST = "ich-fold0.tfrecord-00000-of-00002"
SECOND = "ich-fold0.tfrecord-00001-of-00002"
KEY = b"0123456789abcdef"
OTHER_FOLD = "ich-fold1.tfrecord-00000-of-00002"

Features = dict[str, Any]
Records = dict[str, list[Features]]


def preprocess(data_set: Path, output: Path, **changes: Any) -> Path:
    """What the pipeline writes, without Beam."""
    values: dict[str, Any] = {
        "input": str(data_set / "slices"),
        "labels": str(data_set / "labels.csv"),
        "output": str(output),
        "windows": tuple(map(parse_window, ("brain", "subdural", "wide:600:2800"))),
        "image_size": 16,
        "folds": 2,
        "examples_per_shard": 8,
        "max_reject_fraction": 0.2,
    }
    options = Options.of(**values | changes)
    finish_directory(write_shards(options), options)
    assert (output / "manifest.json").exists()
    return output


@pytest.fixture(scope="module")
def healthy(small_data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of three patients, two shards each, images of 16 x 16 pixels."""
    return preprocess(small_data_set, tmp_path_factory.mktemp("healthy") / "shards")


@pytest.fixture
def shards(healthy: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(healthy, tmp_path / "shards"))


def found(directory: Path, **options: Any) -> list[Finding]:
    return verify_directory(str(directory), **options).findings.kept


def checks(directory: Path, **options: Any) -> set[Check]:
    return {finding.check for finding in found(directory, **options)}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    value = read_json(path)
    edit(value)
    path.write_text(json.dumps(value))


def edit_index(directory: Path, edit: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    """Change the index's rows, as somebody with pandas would."""
    path = directory / "index.parquet"
    schema = pq.read_schema(path)
    frame = pd.read_parquet(path)
    edited = edit(frame)
    frame = frame if edited is None else edited
    pq.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False), path)


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def read_shard(path: Path) -> list[Features]:
    with path.open("rb") as file:
        return [decode_example(record) for record in read_records(file)]


def encode_features(features: Features) -> bytes:
    return encode_example(
        {name: v[0] if isinstance(v[0], bytes) else v for name, v in features.items()}
    )


def write_records(path: Path, records: list[Features]) -> None:
    path.write_bytes(b"".join(frame_record(encode_features(each)) for each in records))


def rewrite(directory: Path, edit: Callable[[Records], object]) -> None:
    """Change examples and make everything else agree, as a faulty writer would."""
    manifest = read_json(directory / "manifest.json")
    records = {path.name: read_shard(path) for path in directory.glob("*.tfrecord-*")}
    edit(records)
    old = pd.read_parquet(directory / "index.parquet").drop_duplicates("image_id")
    by_id = old.set_index("image_id", drop=False).to_dict("index")
    rows = []
    for file, examples in records.items():
        write_records(directory / file, examples)
        offset = 0
        for number, example in enumerate(examples):
            record = frame_record(encode_features(example))
            size, png = len(record), example["image"][0]
            row = by_id[example["image_id"][0].decode()]
            ids = {k: example[k][0].decode() for k in ("patient_id", "study_id", "series_id")}
            place = {"shard": file, "split": file[4:9], "record": number, "offset": offset}
            image = {"image_offset": offset + record.index(png), "image_bytes": len(png)}
            rows.append(row | ids | place | {"bytes": size} | image)
            offset += size
    index = pd.DataFrame(rows)
    with (directory / "index.parquet").open("wb") as file:
        write_index(file, [index_table(rows, manifest["labels"])], manifest["labels"])
    describe(directory, manifest, index)


def describe(directory: Path, manifest: Any, index: pd.DataFrame) -> None:
    """Make the manifest and dataset_info.json agree with the index and the shards."""

    def label_counts(rows: pd.DataFrame) -> dict[str, int]:
        return {label: int((rows[f"label_{label}"] == 1).sum()) for label in manifest["labels"]}

    seen = len(index) + manifest["counts"]["rejected"]
    resized = int(index["resized"].sum())
    manifest["counts"] |= {"written": len(index), "files_seen": seen, "resized": resized}
    for values in manifest["acquisition"].values():  # all slices are alike
        values |= dict.fromkeys(values, len(index))
    info = read_json(directory / "dataset_info.json")
    for (name, split), described in zip(manifest["splits"].items(), info["splits"], strict=True):
        rows = index[index["split"] == name]
        split["patients"] = rows["patient_id"].nunique()
        split["label_counts"] = label_counts(rows)
        split["examples"] = len(rows)
        for shard in split["shards"]:
            data = (directory / shard["file"]).read_bytes()
            own = rows[rows["shard"] == shard["file"]]
            shard["bytes"], shard["examples"] = len(data), len(own)
            shard["sha256"] = hashlib.sha256(data).hexdigest()
            shard["label_counts"] = label_counts(own)
        described["shardLengths"] = [str(shard["examples"]) for shard in split["shards"]]
        described["numBytes"] = str(sum(shard["bytes"] for shard in split["shards"]))
    (directory / "dataset_info.json").write_text(json.dumps(info))
    (directory / "manifest.json").write_text(json.dumps(manifest))
    seal(directory)


def seal(directory: Path) -> None:
    """Make the manifest's checksums agree, so that what else is wrong has to be found."""
    manifest = read_json(directory / "manifest.json")
    for name in manifest["files"]:
        data = (directory / name).read_bytes()
        checksum = hashlib.sha256(data).hexdigest()
        manifest["files"][name] = {"bytes": len(data), "sha256": checksum}
    manifest["digest"] = manifest_digest(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_a_healthy_directory_has_no_findings(healthy: Path) -> None:
    result = verify_directory(str(healthy))
    assert result.findings.kept == []
    assert result.findings.checked[Check.IMAGES] == 30
    assert all(result.findings.checked[check] for check in Check if check is not Check.SOURCE)
    columns = ["patients", "shards", "slices", "labeled", "label_subdural"]
    assert result.splits[columns].T.to_dict("list") == {
        "fold0": [3, 2, 15, 15, 3],
        "fold1": [3, 2, 15, 15, 3],
    }


def test_worker_processes_find_the_same(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(shards / FIRST, 300)
    alone, shared = found(shards), found(shards, workers=2)
    assert sorted(map(str, alone)) == sorted(map(str, shared))


def test_the_command_says_that_all_is_well(
    healthy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--shards", str(healthy), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "all is well; 30 slices" in out
    assert "FAILED" not in out


def test_the_command_names_the_place(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = pd.read_parquet(shards / "index.parquet").query("shard == @SECOND").iloc[2]
    flip(shards / SECOND, int(row["offset"]) + 100)
    assert main(["--shards", str(shards), "--workers", "0"]) == 4
    out = capsys.readouterr().out
    place = f"{SECOND} · record 2 · byte {row['offset']} · {row['image_id']}"
    assert f"{place}: bad checksum of the data" in out
    assert "FAILED" in out


def test_the_listing_is_capped(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_index(shards, lambda index: index.assign(position_z=-1.0))
    assert main([str(shards), "--workers", "0", "--show", "3"]) == 4
    out = capsys.readouterr().out
    assert out.count("position_z") == 3
    assert "... and 27 more" in out


@pytest.mark.parametrize("workers", ["-1", "two"])
def test_the_command_refuses_other_workers(
    workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--shards", "x", "--workers", workers]) == 2
    told = capsys.readouterr().err
    assert told == f"verify: error: --workers {workers}: want a whole number of at least 0\n"


def test_no_directory_and_no_manifest_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path, tmp_path / "nowhere", "unknown://x"):
        assert main(["--shards", str(place), "--workers", "0"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_missing_source_is_one_line(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shards", str(healthy), "--workers", "0", "--source", "nowhere"]
    assert main(arguments) == 2
    assert capsys.readouterr().err == "verify: error: input nowhere does not exist\n"


# Shard files


def test_every_flipped_bit_of_a_shard_is_found(shards: Path) -> None:
    path = shards / FIRST
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for byte in [0, 8, 12, len(whole) - 1, *rng.integers(0, len(whole), 12)]:
        flip(path, int(byte), int(rng.integers(8)))
        result = found(shards)
        assert {Check.FILES, Check.FRAMES} <= {finding.check for finding in result}
        path.write_bytes(whole)


@pytest.mark.parametrize(("byte", "what"), [(0, "the length"), (100, "the data")])
def test_a_shard_is_checked_up_to_its_first_damaged_record(
    shards: Path, byte: int, what: str
) -> None:
    rows = pd.read_parquet(shards / "index.parquet").query("shard == @FIRST")
    flip(shards / FIRST, int(rows["offset"].iloc[1]) + byte)
    flip(shards / FIRST, int(rows["offset"].iloc[3]) + byte)
    result = verify_directory(str(shards))
    assert result.findings.checked[Check.IMAGES] == 30 - len(rows) + 1
    assert result.findings.failed == {Check.FILES: 1, Check.FRAMES: 1}
    (finding,) = (each for each in result.findings.kept if each.check is Check.FRAMES)
    assert (finding.record, finding.offset) == (1, rows["offset"].iloc[1])
    assert finding.message == f"bad checksum of {what}; later records are not checked"


@pytest.mark.parametrize("kept", [0, 5, 13, 2000])
def test_a_truncated_shard(shards: Path, kept: int) -> None:
    path = shards / FIRST
    path.write_bytes(path.read_bytes()[:kept])
    others = {Check.FRAMES} if kept else {Check.COUNTS, Check.RECORDS}  # empty, or cut in a record
    assert {Check.FILES} | others <= checks(shards)


def test_a_shard_cut_between_records(shards: Path) -> None:
    row = pd.read_parquet(shards / "index.parquet").query("shard == @FIRST").iloc[2]
    (shards / FIRST).write_bytes((shards / FIRST).read_bytes()[: row["offset"]])
    assert {Check.FILES, Check.COUNTS, Check.RECORDS} <= checks(shards)


def test_a_missing_shard(shards: Path) -> None:
    (shards / FIRST).unlink()
    assert found(shards) == [Finding(Check.FILES, "missing", FIRST)]


def test_an_unlisted_shard(shards: Path) -> None:
    name = "ich-fold0.tfrecord-00002-of-00003"
    shutil.copy(shards / FIRST, shards / name)
    assert found(shards) == [Finding(Check.FILES, "not listed in the manifest", name)]


def test_a_folder_in_place_of_a_shard(shards: Path) -> None:
    (shards / FIRST).unlink()
    (shards / FIRST).mkdir()
    assert found(shards) == [Finding(Check.FILES, "cannot be read: Is a directory", FIRST)]


def test_two_swapped_shards(shards: Path) -> None:
    (shards / FIRST).rename(shards / "kept")
    (shards / OTHER_FOLD).rename(shards / FIRST)
    (shards / "kept").rename(shards / OTHER_FOLD)
    assert {Check.FILES, Check.RECORDS} <= checks(shards)


# Examples


def test_a_duplicated_example(shards: Path) -> None:
    rewrite(shards, lambda records: records[SECOND].append(records[FIRST][3]))
    result = found(shards)
    assert [finding.check for finding in result] == [Check.PARTITION]
    assert result[0].file == SECOND
    assert result[0].message == f"the same image_id as record 3 of {FIRST}"


def test_an_example_written_twice_without_the_index(shards: Path) -> None:
    records = read_shard(shards / FIRST)
    write_records(shards / FIRST, [*records, records[0]])
    assert {Check.FILES, Check.COUNTS, Check.RECORDS, Check.PARTITION} <= checks(shards)


def test_a_patient_in_two_folds(shards: Path) -> None:
    def move(records: Records) -> None:
        records[OTHER_FOLD][0]["patient_id"] = records[FIRST][0]["patient_id"]

    rewrite(shards, move)
    (finding,) = found(shards)
    assert finding.check is Check.PARTITION
    assert "is in 2 splits" in finding.message
    assert FIRST in finding.message
    assert OTHER_FOLD in finding.message


def test_identical_images_are_reported_but_no_error(shards: Path) -> None:
    def copy(records: Records) -> None:
        for gray, example in enumerate(each for some in records.values() for each in some):
            example["image"] = png(16, 16, 3, gray=gray)
        records[OTHER_FOLD][0]["image"] = records[FIRST][0]["image"]
        records[OTHER_FOLD][1]["image"] = records[OTHER_FOLD][2]["image"]

    rewrite(shards, copy)
    result = verify_directory(str(shards))
    assert result.findings.ok
    assert (result.repeated, result.across_splits) == (2, 1)


def png(*shape: int, bits: int = 8, gray: int = 0) -> list[bytes]:
    pixels = np.full(shape, gray, f"uint{bits}")
    return [cv2.imencode(".png", pixels)[1].tobytes()]


WANTED = "where the manifest has 16 x 16 x 3 uint8"


@pytest.mark.parametrize(
    ("change", "check", "message"),
    [
        ({"image": [b"\x89PNG"]}, Check.IMAGES, "its image is no PNG"),
        ({"image": png(16, 16, 4)}, Check.IMAGES, f"its PNG has 16 x 16 x 4 uint8, {WANTED}"),
        ({"image": png(16, 8, 3)}, Check.IMAGES, f"its PNG has 16 x 8 x 3 uint8, {WANTED}"),
        (
            {"image": png(16, 16, 1, bits=16)},
            Check.IMAGES,
            f"its PNG has 16 x 16 x 3 uint16, {WANTED}",
        ),
        ({"label": [0, 0, 0]}, Check.EXAMPLES, 'label: "3 int", not "6 int"'),
        ({"label": [0.0] * 6}, Check.EXAMPLES, 'label: "6 float", not "6 int"'),
        ({"label": [2] * 6}, Check.EXAMPLES, "label is [2, 2, 2, 2, 2, 2], not of -1, 0 and 1"),
        ({"image_id": [b"\xff"]}, Check.EXAMPLES, "an id is not UTF-8"),
        ({"position_z": [1, 2]}, Check.EXAMPLES, 'position_z: "2 int", not "1 float"'),
        ({"age": [1]}, Check.EXAMPLES, "age is unknown"),
    ],
)
def test_an_example_against_the_contract(
    shards: Path, change: Features, check: Check, message: str
) -> None:
    records = read_shard(shards / FIRST)
    records[1] |= change
    write_records(shards / FIRST, records)
    (finding,) = (each for each in found(shards) if each.check is check)
    assert (finding.record, finding.message) == (1, message)


def test_a_record_that_is_no_example(shards: Path) -> None:
    (shards / FIRST).write_bytes(frame_record(b"no protocol buffer"))
    messages = [each.message for each in found(shards) if each.check is Check.EXAMPLES]
    assert messages == ["not a tf.train.Example"]


@pytest.mark.parametrize("name", ["image_id", "patient_id", "study_id", "series_id"])
def test_an_id_that_the_index_has_otherwise(shards: Path, name: str) -> None:
    records = read_shard(shards / FIRST)
    records[1][name] = [b"Doe^John"]
    write_records(shards / FIRST, records)
    messages = [each.message for each in found(shards) if each.check is Check.RECORDS]
    shown = '"Doe^John"' if name == "image_id" else "(an id)"
    assert any(f"{name} is {shown}, " in message for message in messages)
    assert name == "image_id" or not any("Doe" in str(each) for each in found(shards))


def test_only_pseudonyms_are_shown() -> None:
    assert show_id("patient_000012") == "patient_000012"
    assert show_id("Doe^John") == show_id("4711") == show_id(None) == "(an id)"


# What describes the shards


def set_at(path: str, value: Any) -> Callable[[Any], None]:
    """Sets a value in JSON: the path's keys are divided by slashes."""

    def edit(content: Any) -> None:
        *parents, last = [int(key) if key.isdecimal() else key for key in path.split("/")]
        for key in parents:
            content = content[key]
        content[last] = value

    return edit


MANIFEST_EDITS = {
    "schema_version": 2,
    "labels": ["a", "b"],
    "labels/0": "epidura",
    "windows": [],
    "windows/0/center": 41.0,
    "image/height": 17,
    "image/width": "16",
    "image/channels": 4,
    "image/dtype": "uint16",
    "options/image_size": 32,
    "counts": None,
    "counts/files_seen": 34,
    "counts/written": 31,
    "counts/rejected": -3,
    "counts/rejected_by_reason": {},
    "counts/repaired": {"shift": 1},
    "counts/resized": 29,
    "counts/not_sampled": 1,
    "label_level": "patient",
    "splits": {},
    "splits/fold0": [],
    "splits/fold0/examples": 14,
    "splits/fold0/patients": 4,
    "splits/fold0/label_counts/any": 2,
    "splits/fold0/label_counts/other": 2,
    "splits/fold0/shards": [1, 2],
    "splits/fold0/shards/0/file": "../../etc/passwd",
    "splits/fold0/shards/1/file": FIRST,
    "splits/fold0/shards/0/examples": 10**30,
    "splits/fold0/shards/0/bytes": 1,
    "splits/fold0/shards/0/sha256": "0" * 64,
    "splits/fold0/shards/0/label_counts/any": True,
    "splits/test": {"examples": 0, "patients": 0, "label_counts": {}, "shards": []},
}


@pytest.mark.parametrize("path", MANIFEST_EDITS)
def test_an_edited_manifest(shards: Path, path: str) -> None:
    edit_json(shards / "manifest.json", set_at(path, MANIFEST_EDITS[path]))
    seal(shards)
    assert found(shards)


@pytest.mark.parametrize(("level", "findings"), [("series", 1), ("study", 1), ("image", 0)])
def test_slices_of_a_scan_have_its_labels(shards: Path, level: str, findings: int) -> None:
    edit_json(shards / "manifest.json", set_at("label_level", level))
    seal(shards)
    # One slice of each of the six patients bleeds.
    message = f"label_level is {level}, but slices of one differ in labels (6 times)"
    assert [finding.message for finding in found(shards)] == [message] * findings


def test_labels_are_missing_beside_folds(shards: Path) -> None:
    edit_json(shards / "manifest.json", set_at("labels", []))
    seal(shards)
    messages = [finding.message for finding in found(shards)]
    assert messages == ['splits.fold0.label_counts: "epidural": must be one of the labels']


def test_an_invalid_manifest_ends_the_verification(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(shards / "manifest.json", set_at("splits/fold0/shards/0/sha256", "0"))
    seal(shards)
    flip(shards / SECOND, 300)
    message = '"0": must be 64 hexadecimal digits in lower case'
    path = "splits.fold0.shards[0].sha256"
    assert found(shards) == [Finding(Check.MANIFEST, f"{path}: {message}", "manifest.json")]
    assert main(["--shards", str(shards), "--workers", "0"]) == 4
    assert "an invalid manifest.json ends the verification" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("files/index.parquet/bytes", 1, "bytes: {size}, not 1"),
        ("splits/fold0/shards/0/bytes", 1, "bytes: {size}, not 1"),
        ("splits/fold0/patients", 4, "splits.fold0.patients: 3, not 4"),
    ],
)
def test_a_value_of_the_manifest_against_the_files(
    shards: Path, path: str, value: int, message: str
) -> None:
    name = "index.parquet" if path.startswith("files") else FIRST
    edit_json(shards / "manifest.json", set_at(path, value))
    size = (shards / name).stat().st_size
    assert message.format(size=size) in [finding.message for finding in found(shards)]


@pytest.mark.parametrize("depth", [100, 900, 960, 980, 990, 995, 1000])
def test_json_that_is_nested_deeply_is_no_traceback(shards: Path, depth: int) -> None:
    whole = (shards / "manifest.json").read_bytes()
    for name in ("manifest.json", "features.json", "rejects.jsonl"):
        (shards / name).write_text('{"labels": ' + "[" * depth + "]" * depth + "}")
    assert checks(shards) == {Check.MANIFEST}
    (shards / "manifest.json").write_bytes(whole)
    assert checks(shards) == {Check.METADATA, Check.REJECTS}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff", "[" * 100_000])
def test_a_manifest_that_is_none(shards: Path, text: str) -> None:
    (shards / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    assert Check.MANIFEST in checks(shards)


def test_the_digest_finds_any_edit(shards: Path) -> None:
    edit_json(shards / "manifest.json", set_at("image/comment", "nothing else looks at it"))
    (finding,) = found(shards)
    assert finding.message.startswith("its content is not that of its own digest")


@pytest.mark.parametrize("path", ["created", "software/python", "options/seed", "options/input"])
def test_the_digest_is_of_what_is_there_not_of_where_it_comes_from(shards: Path, path: str) -> None:
    edit_json(shards / "manifest.json", set_at(path, "2.7"))
    assert found(shards) == []


def test_equal_directories_have_equal_digests(
    healthy: Path, small_data_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").symlink_to(small_data_set)
    first = read_json(healthy / "manifest.json")
    second = read_json(preprocess(tmp_path / "elsewhere", tmp_path / "a") / "manifest.json")
    assert first["options"] != second["options"]
    assert first["digest"] == second["digest"] == manifest_digest(second | {"created": "once"})
    other = read_json(preprocess(small_data_set, tmp_path / "b", seed=1) / "manifest.json")
    assert other["digest"] != first["digest"]


@pytest.mark.parametrize("key", ["digest", "files"])
def test_a_manifest_without_checksums(shards: Path, key: str) -> None:
    edit_json(shards / "manifest.json", lambda manifest: manifest.pop(key))
    assert checks(shards) == {Check.MANIFEST}


def test_recorded_files_find_any_edit(shards: Path) -> None:
    edit_index(shards, lambda index: index)  # the same rows in another encoding
    assert checks(shards) == {Check.INDEX}


INDEX_EDITS: dict[str, Callable[[pd.DataFrame], pd.DataFrame | None]] = {
    "another image_id": lambda index: index.replace({"image_id": {"ID_00": "ID_99"}}),
    "another label": lambda index: index.assign(label_any=1 - index["label_any"]),
    "another patient": lambda index: index.assign(patient_id="patient_000001"),
    "another series": lambda index: index.assign(series_id="series_000001"),
    "another position": lambda index: index.assign(position_z=index["position_z"] + 1e-3),
    "another offset": lambda index: index.assign(offset=index["offset"] + 1),
    "another place of the image": lambda index: index.assign(
        image_offset=index["image_offset"] + 1
    ),
    "another size of the image": lambda index: index.assign(image_bytes=index["image_bytes"] - 1),
    "another spacing": lambda index: index.assign(column_spacing=index["column_spacing"] * 1.01),
    "another size": lambda index: index.assign(bytes=index["bytes"] + 1),
    "another record": lambda index: index.assign(record=index["record"][::-1].to_numpy()),
    "another split": lambda index: index.assign(split="fold0"),
    "another shard": lambda index: index.assign(shard=FIRST),
    "an unknown shard": lambda index: index.replace({"shard": {FIRST: "x"}}),
    "another repair": lambda index: index.assign(repair="shift"),
    "not resized": lambda index: index.assign(resized=False),
    "an empty cell": lambda index: index.replace({"source": {index["source"][0]: None}}),
    "a row less": lambda index: index.drop(index=3),
    "a row twice": lambda index: pd.concat([index, index.iloc[[3]]]),
    "no rows": lambda index: index.iloc[:0],
}


@pytest.mark.parametrize("edit", INDEX_EDITS)
def test_an_edited_index(shards: Path, edit: str) -> None:
    edit_index(shards, INDEX_EDITS[edit])
    seal(shards)
    assert {Check.INDEX, Check.RECORDS} & checks(shards)


@pytest.mark.parametrize("change", ["a column less", "another type", "not Parquet", "missing"])
def test_an_unusable_index(shards: Path, change: str) -> None:
    path = shards / "index.parquet"
    table = pq.read_table(path)
    if change == "a column less":
        pq.write_table(table.drop_columns("offset"), path)
    elif change == "another type":
        texts = table["offset"].cast(pa.string())
        pq.write_table(table.drop_columns("offset").append_column("offset", texts), path)
    elif change == "not Parquet":
        path.write_bytes(b"PAR1 is what Parquet begins and ends with PAR1")
    else:
        path.unlink()
    assert checks(shards) == {Check.INDEX}


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("features.json", "featuresDict/features/image/image/shape/dimensions/0", "17"),
        ("features.json", "featuresDict/features/image/image/dtype", "uint16"),
        ("features.json", "featuresDict/features/label/tensor/shape/dimensions/0", "5"),
        ("features.json", "featuresDict/features/age", {}),
        ("features.json", "featuresDict", 7),
        ("dataset_info.json", "splits/0/shardLengths/0", "9"),
        ("dataset_info.json", "splits/1/name", "fold0"),
        ("dataset_info.json", "splits/1/numBytes", "0"),
        ("dataset_info.json", "fileFormat", "riegeli"),
    ],
)
def test_edited_metadata(shards: Path, name: str, path: str, value: Any) -> None:
    edit_json(shards / name, set_at(path, value))
    seal(shards)
    result = found(shards)
    assert {(finding.check, finding.file) for finding in result} == {(Check.METADATA, name)}


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1:],
        lambda lines: [*lines, "{}"],
        lambda lines: [*lines[1:], "{"],
        lambda lines: [*lines[1:], lines[1]],
        lambda lines: [line.replace("not_dicom", "no_dicom") for line in lines],
        lambda lines: [line.replace("ID_text.dcm", "ID_00.dcm") for line in lines],
        lambda lines: [line.replace("label_missing", "not_dicom") for line in lines],
    ],
)
def test_edited_rejects(shards: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = shards / "rejects.jsonl"
    path.write_text("\n".join(change(path.read_text().splitlines())))
    seal(shards)
    assert checks(shards) == {Check.REJECTS}


def test_a_rejected_file_whose_name_is_no_text(shards: Path) -> None:
    path = shards / "rejects.jsonl"
    path.write_text(path.read_text().replace("ID_text.dcm", "ID_\\udcff.dcm"))
    seal(shards)
    assert found(shards) == []


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "index.parquet", "features.json", "dataset_info.json", "rejects.jsonl"],
)
def test_damage_is_never_a_traceback(shards: Path, name: str) -> None:
    path = shards / name
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for damage in damages(whole, rng, 6):
        path.write_bytes(damage)
        verify_directory(str(shards))


def damages(whole: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """Flipped bits, other bytes and cut ends."""
    for _ in range(count):
        data = bytearray(whole)
        place = int(rng.integers(len(data)))
        data[place] ^= 1 << int(rng.integers(8))
        yield bytes(data)
        data[place : place + 3] = rng.bytes(3)
        yield bytes(data)
    yield whole[: len(whole) // 2]
    yield b""


# The source files


@pytest.fixture
def source(small_data_set: Path, tmp_path: Path) -> Path:
    """A copy of the input to change."""
    return Path(shutil.copytree(small_data_set / "slices", tmp_path / "slices"))


def test_unchanged_source_files(healthy: Path, source: Path) -> None:
    result = verify_directory(str(healthy), source=str(source))
    assert result.findings.ok
    assert result.findings.checked[Check.SOURCE] == 30


def test_changed_and_vanished_source_files(healthy: Path, source: Path) -> None:
    data = bytearray((source / "ID_00.dcm").read_bytes())
    data[-2 * 32 * 32 : -32 * 32] = bytes(32 * 32)  # half of the rows: 0 stored, -1024 HU
    (source / "ID_00.dcm").write_bytes(data)
    (source / "ID_01.dcm").unlink()
    (source / "ID_02.dcm").write_text("no DICOM any more")
    result = found(healthy, source=str(source))
    assert {finding.check for finding in result} == {Check.SOURCE}
    messages = {finding.image_id: finding.message for finding in result}
    assert messages["ID_00"].startswith("ID_00.dcm changed: 128 pixels differ, the first at row 0")
    assert messages["ID_01"] == "ID_01.dcm is no longer there"
    assert messages["ID_02"] == "ID_02.dcm is no longer usable: not_dicom"


def test_a_source_file_with_another_header(
    healthy: Path, source: Path, write_slice: Callable[..., Path]
) -> None:
    write_slice(source / "ID_03.dcm", ImagePositionPatient=[0, 0, 7.5], PixelSpacing=[1, 1])
    messages = [finding.message for finding in found(healthy, source=str(source))]
    assert messages == [
        "ID_03.dcm changed: position_z is 7.5, not 15.0 as in the index",
        "ID_03.dcm changed: row_spacing is 2.0, not 1.0 as in the index",
        "ID_03.dcm changed: column_spacing is 2.0, not 0.5 as in the index",
    ]


def test_options_that_cannot_be_read(shards: Path, source: Path) -> None:
    edit_json(shards / "manifest.json", set_at("options/hu_repair", "none of them"))
    seal(shards)
    (finding,) = found(shards, source=str(source))
    assert finding.message.startswith("--hu_repair")


# Other options of the run


@pytest.mark.parametrize(
    "options",
    [
        {"windows": ()},
        {"windows": (parse_window("brain"),)},
        {"windows": (parse_window("brain"), parse_window("bone"))},
        {"image_size": 32},
        {"labels": None},
        {"holdout": 0.3},
        {"image_id": ImageId.ORDINAL},
        {"image_id": ImageId.SOP_INSTANCE_UID},
        {"identifiers": Identifiers.HASH, "identifier_key_check": key_check(KEY)},
        {"identifiers": Identifiers.KEEP},
        {"group_by": GroupBy.STUDY},
    ],
    ids=str,
)
def test_any_directory_is_well(
    small_data_set: Path, tmp_path: Path, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY.decode())
    output = preprocess(small_data_set, tmp_path / "out", **options)
    result = verify_directory(str(output), source=str(small_data_set / "slices"))
    assert [str(finding) for finding in result.findings.kept] == []
    assert result.findings.checked[Check.SOURCE] == result.findings.checked[Check.IMAGES] >= 30


def test_numbered_files_cannot_be_found_among_others(small_data_set: Path, tmp_path: Path) -> None:
    output = preprocess(small_data_set, tmp_path / "out", image_id=ImageId.ORDINAL)
    folder = Path(shutil.copytree(small_data_set / "slices", tmp_path / "slices"))
    (folder / "another.dcm").touch()
    (finding,) = found(output, source=str(folder))
    assert finding.message == "the input has 34 files, not 33 as it had"


def test_kept_patient_ids_are_not_shown(small_data_set: Path, tmp_path: Path) -> None:
    output = preprocess(small_data_set, tmp_path / "out", identifiers=Identifiers.KEEP)

    def move(records: Records) -> None:
        records[OTHER_FOLD][0]["patient_id"] = records[FIRST][0]["patient_id"]

    rewrite(output, move)
    (finding,) = found(output)
    assert finding.message.startswith("patient (an id) is in 2 splits")
    assert "Secret" not in str(finding)


def test_studies_may_be_what_is_kept_together(small_data_set: Path, tmp_path: Path) -> None:
    output = preprocess(small_data_set, tmp_path / "out", group_by=GroupBy.STUDY)

    def move(name: str, records: Records) -> None:
        records[OTHER_FOLD][0][name] = records[FIRST][0][name]

    rewrite(output, partial(move, "patient_id"))
    assert found(output) == []
    rewrite(output, partial(move, "study_id"))
    (finding,) = found(output)
    assert finding.message.startswith("study study_")


# One shard


@pytest.fixture
def task(healthy: Path) -> ShardTask:
    index = pq.read_table(healthy / "index.parquet").to_pylist()
    manifest = read_json(healthy / "manifest.json")
    return ShardTask(
        folder=str(healthy),
        split="fold0",
        shard=manifest["splits"]["fold0"]["shards"][1],
        labels=manifest["labels"],
        image=ImageSpec(**manifest["image"]),
        rows={row["record"]: row for row in index if row["shard"] == SECOND},
    )


class Diary(Watch):
    """Keeps what it is told: the places of items, and None for waiting."""

    def __init__(self, excluded: dict[int, Reason] | None = None) -> None:
        super().__init__(excluded)
        self.told: list[int | None] = []

    def working(self, place: int) -> None:
        self.told.append(place)

    def waiting(self) -> None:
        self.told.append(None)


def test_a_record_whose_decoder_crashed_is_named_and_the_others_are_checked(
    task: ShardTask,
) -> None:
    watch = Diary({2: Reason.DECODER_CRASHED})
    report = check_shard(task, watch)
    (finding,) = report.findings.kept
    assert (finding.check, finding.record) == (Check.IMAGES, 2)
    assert finding.message == "cannot be checked: decoder_crashed"
    others = [place for place in range(report.records) if place != 2]
    assert watch.told == [told for place in others for told in (place, None)]


def test_a_source_file_is_waited_for_before_its_record_is_worked_on(
    task: ShardTask, source: Path, healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = read_json(healthy / "manifest.json")["options"]
    options = {name: recorded[name] for name in ImageOptions.model_fields}
    rows = {
        record: row | {FILE: row["source"].encode()} for record, row in (task.rows or {}).items()
    }
    watch, read = Diary(), LocalStore.read

    def note(store: LocalStore, path: str, *part: Any) -> bytes:
        assert watch.told[-1:] in ([], [None])
        return read(store, path, *part)

    monkeypatch.setattr(LocalStore, "read", note)
    files, image = InputFiles.parse(str(source)), ImageOptions(**options)
    report = check_shard(replace(task, rows=rows, source=files, options=image), watch)
    assert report.findings.ok
    assert report.findings.checked[Check.SOURCE] == report.records == len(rows)


def test_a_store_that_fails_is_no_finding(
    healthy: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read = LocalStore.read

    def fail(store: LocalStore, path: str, *part: Any) -> bytes:
        if path.endswith(".dcm"):
            raise StoreError(str(source), "no answer for 600 s")
        return read(store, path, *part)

    monkeypatch.setattr(LocalStore, "read", fail)
    assert main(["--shards", str(healthy), "--source", str(source), "--workers", "0"]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"verify: error: {source}: no answer for 600 s")


def test_a_shard_is_read_without_the_index(task: ShardTask) -> None:
    report = check_shard(replace(task, rows=None), Watch())
    assert report.findings.ok
    assert len(report.contents) == report.records == report.findings.checked[Check.IMAGES]
