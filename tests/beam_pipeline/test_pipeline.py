"""The whole graph on a small data set, run as users run it and on a runner's own workers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import pandas as pd
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_pipeline import pipeline
from beam_pipeline.options import LOCAL, Options

# Beam's own use of deprecated Python features.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")


@pytest.fixture(scope="module")
def options(small_data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    return Options(
        input=str(small_data_set / "slices"),
        labels=str(small_data_set / "labels.csv"),
        output=str(tmp_path_factory.mktemp("shards") / "out"),
        image_size=32,
        folds=2,
        examples_per_shard=4,
        max_reject_fraction=0.1,
        workers=2,
    )


@pytest.fixture(scope="module")
def shards(options: Options) -> Path:
    """The shard directory of the small data set, made with two workers."""
    pipeline.run(options, LOCAL, [])
    return Path(options.output)


def read(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def test_nothing_is_lost(shards: Path) -> None:
    manifest = read(shards)
    assert manifest["counts"] == {
        "files_seen": 33,
        "written": 30,
        "rejected": 3,
        "rejected_by_reason": {"constant_image": 1, "label_missing": 1, "not_dicom": 1},
        "repaired": {},
        "resized": 0,
        "labels_without_file": 1,
        "identical_pixels": {
            "groups": 0,
            "slices": 0,
            "groups_across_patients": 0,
            "groups_with_conflicting_labels": 0,
        },
    }
    rejects = [json.loads(line) for line in (shards / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["source"], reject["reason"]) for reject in rejects] == [
        ("ID_flat.dcm", "constant_image"),
        ("ID_text.dcm", "not_dicom"),
        ("ID_unlabelled.dcm", "label_missing"),
    ]


def test_the_manifest_describes_the_directory(shards: Path, options: Options) -> None:
    manifest = read(shards)
    assert manifest["schema_version"] == 1
    assert manifest["windows"] == [dataclasses.asdict(window) for window in options.windows]
    assert manifest["image"] == {
        "height": 32,
        "width": 32,
        "channels": 3,
        "dtype": "uint8",
    }
    assert sum(split["patients"] for split in manifest["splits"].values()) == 6
    assert [s["label_counts"]["subdural"] for s in manifest["splits"].values()] == [3, 3]
    listed = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    described = {"manifest.json", "index.parquet", "rejects.jsonl"}
    described |= {"features.json", "dataset_info.json"}
    assert {path.name for path in shards.iterdir()} == described | {s["file"] for s in listed}
    assert all((shards / shard["file"]).stat().st_size == shard["bytes"] for shard in listed)


def test_the_index_has_a_row_an_example(shards: Path) -> None:
    index = pd.read_parquet(shards / "index.parquet")
    assert len(index) == 30
    assert index.columns.tolist()[:7] == [
        "image_id",
        "split",
        "shard",
        "record",
        "offset",
        "bytes",
        "label_epidural",
    ]
    assert (index.groupby("patient_id")["split"].nunique() == 1).all()
    assert index["source"].is_unique


@pytest.mark.parametrize("local", [True, False])
def test_shards_are_the_same_whoever_does_the_work(
    shards: Path, options: Options, tmp_path: Path, local: bool
) -> None:
    options = dataclasses.replace(options, output=str(tmp_path / "again"), workers=1)
    with beam.Pipeline(runner=FnApiRunner()) as graph:
        pipeline.build(graph, options, local=local)
    again = read(tmp_path / "again")
    assert again["splits"] == read(shards)["splits"]
    for name in ("index.parquet", "rejects.jsonl", "features.json", "dataset_info.json"):
        assert (tmp_path / "again" / name).read_bytes() == (shards / name).read_bytes()


def test_another_seed_gives_other_shards(shards: Path, options: Options, tmp_path: Path) -> None:
    options = dataclasses.replace(options, output=str(tmp_path / "other"), seed=1)
    pipeline.run(options, LOCAL, [])
    assert read(tmp_path / "other")["splits"] != read(shards)["splits"]
