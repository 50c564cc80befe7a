"""What describes a shard directory, written out as a whole."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from beam_pipeline.images.windows import Window
from beam_pipeline.options import Options
from beam_pipeline.shards.formats import index_table
from beam_pipeline.shards.manifest import (
    build_manifest,
    describe_features,
    describe_shards,
    manifest_digest,
)
from beam_pipeline.shards.unfinished import IdenticalPixels, Plan, ShardResult, Unfinished
from headct.layout import written_table
from headct.stores import Folder

FOLD0 = "ich-fold0.tfrecord-0000{}-of-00002"
FOLD1 = "ich-fold1.tfrecord-00000-of-00001"


def result(split: str, file: str, examples: int, bleeds: int, **other: Any) -> ShardResult:
    values = {
        "version": "v",
        "plan": "p",
        "bytes": 100 * examples,
        "sha256": f"digest of {file}",
        "repaired": {},
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
            "sha256": f"digest of {FOLD0.format(number)}",
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
        "rejected": 3,
        "rejected_by_reason": {"label_missing": 1, "not_ct": 2},
        "repaired": {"none": 1, "shift": 3},
        "resized": 5,
        "labels_without_file": 7,
        "unlabeled_skipped": 2,
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
    manifest = describe_shards(
        unfinished, PLAN, Options.of(input="in", output=str(tmp_path)), RESULTS, REJECTS
    )
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
