"""Files beside the shards."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from beam_pipeline.errors import AlreadyComplete, TooManyRejects
from beam_pipeline.options import Options
from beam_pipeline.shards.formats import index_table
from beam_pipeline.shards.manifest import (
    build_manifest,
    check_rejects,
    count_rejects,
    describe_features,
    describe_shards,
    encode_json,
    encode_rejects,
    manifest_digest,
)
from beam_pipeline.shards.output import record_start
from beam_pipeline.shards.unfinished import IdenticalPixels, Plan, Reject, ShardResult, Unfinished
from headct.errors import UsageError
from headct.layout import written_table
from headct.reasons import Reason
from headct.stores import Folder
from headct.windows import Window

FOLD0 = "ich-fold0.tfrecord-0000{}-of-00002"
FOLD1 = "ich-fold1.tfrecord-00000-of-00001"


def result(split: str, file: str, examples: int, bleeds: int, **other: Any) -> ShardResult:
    values = {
        "version": "v",
        "plan": "p",
        "bytes": 100 * examples,
        "sha256": hashlib.sha256(file.encode()).hexdigest(),
        "repaired": {},
        "acquisitions": {},
        "resized": 0,
        "rejects": [],
    } | other
    return ShardResult(
        split=split, file=file, examples=examples, label_counts={"any": bleeds}, **values
    )


RESULTS = [
    result("fold0", FOLD0.format(0), 3, 2, repaired={"shift": 2, "none": 1}, resized=1),
    result("fold0", FOLD0.format(1), 2, 0, repaired={"shift": 1}),
    result("fold1", FOLD1, 4, 3, resized=4),
]
PLAN = Plan(
    labels=("any",),
    files_seen=12,
    skipped=2,
    labels_without_file=7,
    identifying_paths=2,
    image_id="file_name",
    labels_joined_by="path",
    notes=("Labels joined by path: 3 of 10 labels, 3 of 14 files.",),
    without_patient_id={"slices": 3, "studies": 1},
    identical=IdenticalPixels(2, 5, 1, 0),
    shards=tuple(shard.file for shard in RESULTS),
    slices=9,
    label_level="study",
    not_sampled=4,
)
REJECTS = [
    {"source": f"{name}.dcm", "image_id": name, "reason": reason, "detail": ""}
    for name, reason in [("b", "not_ct"), ("a", "not_ct"), ("c", "label_missing")]
]


def test_splits_add_up_their_shards() -> None:
    fold0 = [
        {
            "file": FOLD0.format(number),
            "examples": examples,
            "bytes": 100 * examples,
            "sha256": hashlib.sha256(FOLD0.format(number).encode()).hexdigest(),
            "label_counts": {"any": bleeds},
        }
        for number, examples, bleeds in [(0, 3, 2), (1, 2, 0)]
    ]
    options = Options.of(input="in", output="out")
    described = build_manifest(PLAN, options, [*RESULTS[2:], *RESULTS[:2]], {"fold0": 2}, [])[
        "splits"
    ]
    assert list(described) == ["fold0", "fold1"]
    assert described["fold0"] == {
        "examples": 5,
        "patients": 2,
        "label_counts": {"any": 2},
        "shards": fold0,
    }
    assert described["fold1"]["patients"] == 0  # it may have lost all its examples
    assert [shard["file"] for shard in described["fold1"]["shards"]] == [FOLD1]


def test_counts_of_a_manifest() -> None:
    manifest = build_manifest(PLAN, Options.of(input="in", output="out"), RESULTS, {}, REJECTS)
    assert manifest["schema_version"] == 1
    assert manifest["counts"] == {
        "files_seen": 12,
        "written": 9,
        "rejected": 1,
        "rejected_by_reason": {"label_missing": 1},
        "excluded": 2,
        "excluded_by_reason": {"not_ct": 2},
        "repaired": {"none": 1, "shift": 3},
        "resized": 5,
        "labels_without_file": 7,
        "unlabeled_skipped": 2,
        "not_sampled": 4,
        "not_listed": 0,
        "identifying_paths": 2,
        "without_patient_id": {"slices": 3, "studies": 1},
        "identical_pixels": {
            "groups": 2,
            "slices": 5,
            "groups_across_patients": 1,
            "groups_with_conflicting_labels": 0,
        },
    }
    assert list(manifest["counts"]["repaired"]) == ["none", "shift"]
    assert set(manifest["software"]) == {
        *("beam_pipeline", "python", "apache-beam", "pydicom", "numpy", "imagecodecs"),
        *("opencv-python-headless", "isal", "protobuf", "pyarrow"),
    }


@pytest.mark.parametrize(
    ("windows", "image"),
    [
        ((Window("brain", 40, 80),), {"channels": 1, "dtype": "uint8"}),
        ((), {"channels": 1, "dtype": "uint16", "hu_offset": -1024}),
    ],
)
def test_an_image_of_hounsfield_units_has_their_offset(
    windows: tuple[Window, ...], image: dict[str, Any]
) -> None:
    options = Options.of(input="in", output="out", windows=windows, image_size=64)
    manifest = build_manifest(PLAN, options, RESULTS, {}, [])
    assert manifest["image"] == {"height": 64, "width": 64} | image


def test_features_have_their_shapes() -> None:
    described = describe_features(3, {"height": 64, "width": 64, "channels": 3, "dtype": "uint8"})
    features = described["featuresDict"]["features"]
    assert features["image"]["image"] == {
        "shape": {"dimensions": ["64", "64", "3"]},
        "dtype": "uint8",
        "encodingFormat": "png",
    }
    texts = {name for name, feature in features.items() if "text" in feature}
    assert texts == {"image_id", "patient_id", "study_id", "series_id"}
    tensors = {
        name: (feature["pythonClassName"].rsplit(".", 2)[1:], feature["tensor"])
        for name, feature in features.items()
        if "tensor" in feature
    }
    tensor, scalar = ["tensor_feature", "Tensor"], ["scalar", "Scalar"]
    assert tensors == {
        "label": (tensor, of_type("int64", shape={"dimensions": ["3"]})),
        "position_z": (scalar, of_type("float32", shape={})),
        "pixel_spacing": (tensor, of_type("float32", shape={"dimensions": ["2"]})),
    }


def of_type(dtype: str, shape: dict[str, Any]) -> dict[str, Any]:
    return {"shape": shape, "dtype": dtype, "encoding": "none"}


def test_a_digest_is_that_of_the_content() -> None:
    manifest = build_manifest(PLAN, Options.of(input="in", output="out"), RESULTS, {}, REJECTS)
    digest = manifest_digest(manifest)
    elsewhere = {"created": "later", "software": {}, "options": {}, "digest": "another"}
    assert manifest_digest(dict(reversed([*(manifest | elsewhere).items()]))) == digest
    for key in set(manifest) - set(elsewhere):
        assert manifest_digest(manifest | {key: "another"}) != digest


def row(number: int, split: str, patient: str) -> dict[str, Any]:
    """Of an index."""
    return {
        "image_id": f"image{number}",
        "split": split,
        "shard": "s",
        "record": number,
        "offset": 0,
        "bytes": 100,
        "image_offset": 20,
        "image_bytes": 60,
        "label_any": 0,
        "patient_id": patient,
        "study_id": "",
        "series_id": "",
        "position_z": 0.0,
        "row_spacing": 0.5,
        "column_spacing": 0.5,
        "rows": 2,
        "columns": 2,
        "transfer_syntax": "",
        "repair": "none",
        "resized": False,
        "source": "",
    }


def test_all_that_describes_the_shards_is_written(tmp_path: Path) -> None:
    unfinished = Unfinished(Folder(str(tmp_path)))
    parts = [
        [row(0, "fold0", "one"), row(1, "fold0", "one"), row(2, "fold0", "two")],
        [row(3, "fold0", "two"), row(4, "fold0", "three")],
        [row(5, "fold1", "four")],
    ]
    for shard, rows in zip(PLAN.shards, parts, strict=True):
        unfinished.write(written_table(shard), index_table(rows, ["any"]))
    options = Options.of(input="in", output=str(tmp_path))
    manifest = describe_shards(unfinished, PLAN, options, RESULTS, REJECTS)
    assert "run" not in manifest  # no start was recorded
    assert {name: split["patients"] for name, split in manifest["splits"].items()} == {
        "fold0": 3,
        "fold1": 1,
    }
    assert manifest["digest"] == manifest_digest(manifest)
    described = {"index.parquet", "rejects.jsonl", "features.json", "dataset_info.json"}
    assert set(manifest["files"]) == described
    for name, expected in manifest["files"].items():
        data = (tmp_path / name).read_bytes()
        assert expected == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    index = pd.read_parquet(io.BytesIO((tmp_path / "index.parquet").read_bytes()))
    assert index["image_id"].tolist() == [f"image{number}" for number in range(6)]
    data_set = json.loads((tmp_path / "dataset_info.json").read_text())
    lengths = [(split["shardLengths"], split["numBytes"]) for split in data_set["splits"]]
    assert lengths == [(["3", "2"], "500"), (["4"], "400")]
    assert (tmp_path / "README.md").read_text().startswith("---")
    assert json.loads((tmp_path / "croissant.json").read_text())["@type"] == "sc:Dataset"
    record_start(unfinished.folder, "local")
    again = describe_shards(unfinished, PLAN, options, RESULTS, REJECTS)
    assert (again["run"]["runner"], again["run"]["starts"]) == ("local", 1)
    assert again["digest"] == manifest["digest"]


# Rejects


@pytest.fixture
def unfinished(tmp_path: Path) -> Unfinished:
    return Unfinished(Folder(str(tmp_path)))


def reject(source: str, reason: str = "not_ct", detail: str = "") -> Reject:
    return {"source": source, "image_id": "", "reason": reason, "detail": detail}


def test_rejects_are_lines_of_json_in_the_order_of_their_sources() -> None:
    rows = [reject("b/1"), reject("a.dcm", "vanished"), reject("é\n"), reject("B", detail='"x"')]
    lines = encode_rejects(rows).decode("ascii").splitlines()
    assert [json.loads(line) for line in lines] == [rows[3], rows[1], rows[0], rows[2]]
    assert encode_rejects(reversed(rows)) == encode_rejects(iter(rows))
    assert encode_rejects([]) == b""


def test_reasons_are_counted_in_alphabetical_order() -> None:
    rows = [reject(reason, reason) for reason in ("vanished", "no_pixels", "changed", "not_ct")]
    counts = count_rejects([*rows, reject("a", "vanished")])
    assert (counts["rejected"], counts["excluded"]) == (3, 2)
    assert [*counts["rejected_by_reason"].items()] == [("changed", 1), ("vanished", 2)]
    assert [*counts["excluded_by_reason"].items()] == [("no_pixels", 1), ("not_ct", 1)]


def test_as_many_rejects_as_allowed_are_accepted_and_no_more(
    tmp_path: Path, unfinished: Unfinished
) -> None:
    rows = [reject("a", "not_dicom"), reject("b", "vanished"), reject("c", "not_dicom")]
    scouts = [reject(f"scout{number}", "localizer") for number in range(5)]
    check_rejects(unfinished, 17, [*rows, *scouts], 0.25)
    assert not (tmp_path / "rejects.jsonl").exists()  # another run may have listed more
    with pytest.raises(TooManyRejects) as caught:
        check_rejects(unfinished, 16, [*scouts, *rows], 0.25)
    assert str(caught.value) == (
        "3 of 11 files were rejected (not_dicom 2, vanished 1), more than the allowed fraction "
        f"0.25. The commonest reason is not_dicom, as for a: {Reason.NOT_DICOM.advice} "
        f"{tmp_path}/rejects.jsonl lists all; correct that and start again, or raise "
        "--max_reject_fraction"
    )
    assert caught.value.exit_code == 3


def test_nothing_is_allowed_if_the_fraction_is_nothing(unfinished: Unfinished) -> None:
    check_rejects(unfinished, 5, [], 0.0)
    with pytest.raises(TooManyRejects):
        check_rejects(unfinished, 5, [reject("a", "vanished")], 0.0)


@pytest.mark.parametrize("allowed", [0.05, 1.0])
def test_a_data_set_without_a_usable_file_is_refused_whatever_is_allowed(
    tmp_path: Path, allowed: float
) -> None:
    rejects = [reject("b\x1b[2J", "label_missing"), reject("c", "label_missing")]
    with pytest.raises(UsageError) as caught:
        check_rejects(Unfinished(Folder(f"{tmp_path}/")), 3, [*rejects, reject("d")], allowed)
    assert str(caught.value) == (
        "none of 3 files can be used (label_missing 2, not_ct 1). The commonest reason is "
        f"label_missing, as for b\\x1b[2J: {Reason.LABEL_MISSING.advice} "
        f"{tmp_path}/rejects.jsonl lists all"
    )


@pytest.mark.parametrize("allowed", [0.0, 1.0])
def test_rejects_that_are_too_many_can_be_read_all_the_same(
    tmp_path: Path, unfinished: Unfinished, allowed: float
) -> None:
    rows = [reject("b"), reject("a")]
    with pytest.raises((TooManyRejects, UsageError)):
        check_rejects(unfinished, 2, rows, allowed)
    assert (tmp_path / "rejects.jsonl").read_bytes() == encode_rejects(rows)


def test_the_list_of_a_run_that_completed_the_directory_is_kept(
    tmp_path: Path, unfinished: Unfinished
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "rejects.jsonl").write_text("of the other run")
    check_rejects(unfinished, 4, [reject("a", "vanished")], 0.5)
    with pytest.raises(AlreadyComplete):
        check_rejects(unfinished, 4, [reject("a", "vanished")], 0.0)
    assert (tmp_path / "rejects.jsonl").read_text() == "of the other run"


def test_json_is_indented_for_human_readers() -> None:
    assert encode_json({"a": [1]}) == b'{\n  "a": [\n    1\n  ]\n}\n'
