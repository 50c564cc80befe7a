"""README.md and croissant.json of a shard directory, as the hubs' own libraries read them."""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import mlcroissant
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from headct.dataset_card import _size_category, describe_directory
from headct.layout import CROISSANT, DESCRIPTIONS, INDEX, README, label_column
from headct.manifest import Manifest, parse_manifest

ODD = ["any", "a b/c", '"q"', "ä|<script>", "50% #1", "x:y", "$a$ *b* `c`", "@id"]


def manifest_of(folder: Path) -> Manifest:
    return parse_manifest((folder / "manifest.json").read_bytes(), "manifest.json")


def front_matter(readme: str) -> dict[str, Any]:
    _, matter, _ = readme.split("---\n", 2)
    return dict(yaml.safe_load(matter))


@pytest.fixture(scope="module")
def described(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories as they were made, and one with odd labels in `odd`."""
    folder = tmp_path_factory.mktemp("described")
    for kind in ("windows", "unlabeled"):
        (folder / kind).mkdir()
        for name in (*DESCRIPTIONS, INDEX, "manifest.json"):
            shutil.copy(sample_shards / kind / name, folder / kind)
    (folder / "odd").mkdir()
    rows = pd.read_parquet(folder / "windows" / INDEX)
    old = [name for name in rows.columns if name.startswith("label_")]
    rows = rows.drop(columns=old).assign(**{label_column(label): rows[old[0]] for label in ODD})
    rows.to_parquet(folder / "odd" / INDEX)
    manifest = json.loads((folder / "windows" / "manifest.json").read_text())
    manifest |= {"labels": ODD, "label_level": "study"}
    data = (folder / "odd" / INDEX).read_bytes()
    manifest["files"][INDEX] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for split in manifest["splits"].values():
        for entry in (split, *split["shards"]):
            del entry["label_counts"]
    text = json.dumps(manifest)
    (folder / "odd" / "manifest.json").write_text(text)
    checked = parse_manifest(text.encode(), "manifest.json")
    for name, data in describe_directory(checked, rows.columns).items():
        (folder / "odd" / name).write_bytes(data)
    return folder


@pytest.mark.filterwarnings("ignore")  # of a library that is only a witness here
@pytest.mark.parametrize("kind", ["windows", "unlabeled", "odd"])
def test_croissant_is_valid_and_loads_the_index(
    described: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = described / kind
    with caplog.at_level(logging.WARNING, "absl"):
        dataset = mlcroissant.Dataset(str(folder / CROISSANT))
    assert not dataset.metadata.ctx.issues.errors
    told = " ".join(record.getMessage() for record in caplog.records)
    missing = {*re.findall(r'Property "\S+/(\w+)" is recommended', told)}
    assert missing == {"citeAs", "datePublished", "license"}, "its owner alone knows them"
    index = pq.read_table(folder / INDEX).to_pylist()
    records = [*dataset.records("slices")]
    assert len(records) == len(index) > 8
    names = {field.id: field.name for field in dataset.metadata.record_sets[0].fields}
    assert sorted(names.values()) == sorted(index[0])
    for record, row in zip(records, index, strict=True):
        for key, value in record.items():
            found = value.decode() if isinstance(value, bytes) else value
            assert found == row[names[key]] or (row[names[key]] is None and found != found)
    shards = [shard.file for split in manifest_of(folder).splits.values() for shard in split.shards]
    patterns = [each.includes[0] for each in dataset.metadata.distribution[1:]]
    matched = [file for pattern in patterns for file in shards if Path(file).match(pattern)]
    assert sorted(matched) == sorted(shards)
    assert dataset.metadata.distribution[0].sha256 == manifest_of(folder).files[INDEX].sha256


def test_the_card_has_the_keys_of_the_hub_and_the_figures_of_the_manifest(described: Path) -> None:
    readme = (described / "windows" / README).read_text()
    matter = front_matter(readme)
    assert matter["license"] == "unknown"
    assert matter["task_ids"] == ["multi-label-image-classification"]
    assert matter["size_categories"] == ["n<1K"]
    (config,) = matter["configs"]
    assert [file["path"] for file in config["data_files"]] == [INDEX]
    manifest = manifest_of(described / "windows")
    for name, split in manifest.splits.items():
        row = f"| {name} | {split.patients} | {split.examples} | {len(split.shards)} |"
        assert row in readme
    rows = pd.read_parquet(described / "windows" / INDEX)
    assert f"| subdural | {rows['label_subdural'].sum()} |" in readme
    assert "brain (center 40, width 80), subdural (center 80, width 200), bone (" in readme
    assert "ids are ordinal numbers without meaning, image ids are names of the DICOM" in readme
    unlabeled = (described / "unlabeled" / README).read_text()
    assert "task_ids" not in front_matter(unlabeled)
    assert "The slices have no labels." in unlabeled
    assert "\n\n\n" not in readme + unlabeled


def test_odd_labels_are_shown_as_they_are(described: Path) -> None:
    readme = (described / "odd" / README).read_text()
    assert r"| ä\|\<script\> |  |" in readme
    assert "They are the labels of the whole study" in readme
    assert r"| \$a\$ \*b\* \`c\` |  |" in readme


@pytest.mark.parametrize("kind", ["windows", "unlabeled"])
def test_descriptions_name_no_slice_and_no_folder(
    sample_shards: Path, described: Path, kind: str
) -> None:
    rows = pd.read_parquet(described / kind / INDEX)
    manifest = json.loads((described / kind / "manifest.json").read_text())
    identifying = {*rows["image_id"], *rows["source"], *rows["patient_id"]}
    identifying |= {str(sample_shards), *filter(None, map(manifest["options"].get, ["labels"]))}
    for name in DESCRIPTIONS:
        text = (described / kind / name).read_text()
        assert not [value for value in identifying if value in text]
        assert manifest["created"][:10] not in text, "the same bytes on another day"


@pytest.mark.parametrize(
    ("examples", "category"),
    [
        *((0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (9999, "1K<n<10K")),
        *((10_000, "10K<n<100K"), (752_803, "100K<n<1M"), (10**7, "10M<n<100M")),
        *((10**9 - 1, "100M<n<1B"),),
    ],
)
def test_the_size_category_of_the_hub(examples: int, category: str) -> None:
    assert _size_category(examples) == category
