import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headct.errors import UsageError
from headct.manifest import ImageSpec, Window
from trainer.data.shards import check_files, read_shard_directory


def test_a_directory_describes_itself(shards: Path) -> None:
    found = read_shard_directory(shards)
    assert found.labels == ("upper", "lower", "any")
    assert found.image == ImageSpec(32, 32, 3, "uint8", 0.0)
    assert not found.image.is_hounsfield
    assert found.windows[0] == Window("brain", 40, 80)
    assert [each.name for each in found.folds()] == ["fold0", "fold1", "fold2"]
    assert found.split("test").examples == 7
    check_files(found, found.splits)


def test_windows_that_each_file_brought_along(edit_manifest: Callable[..., Path]) -> None:
    folder = edit_manifest(windows=[{"name": "dicom", "center": None, "width": None}] * 3)
    assert read_shard_directory(folder).windows == (Window("dicom", None, None),) * 3


def test_training_is_on_all_other_folds(shards: Path) -> None:
    training, validation = read_shard_directory(shards).training_and_validation(1)
    assert [each.name for each in training] == ["fold0", "fold2"]
    assert validation.name == "fold1"


def test_folds_are_in_the_order_of_their_numbers(edit_manifest: Callable[..., Path]) -> None:
    empty = {"examples": 0, "patients": 0, "label_counts": {}, "shards": []}
    folder = edit_manifest(splits={f"fold{i}": empty for i in (10, 2, 0)} | {"holdout": empty})
    names = [each.name for each in read_shard_directory(folder).folds()]
    assert names == ["fold0", "fold2", "fold10"]


def test_the_digest_is_of_the_content(edit_manifest: Callable[..., Path], shards: Path) -> None:
    before = read_shard_directory(shards)
    again = read_shard_directory(edit_manifest(created="2027-01-01T00:00:00Z"))
    assert again.digest() == before.digest()
    assert again.manifest_sha256 != before.manifest_sha256


def test_other_labels_are_other_content(edit_manifest: Callable[..., Path], shards: Path) -> None:
    other = read_shard_directory(edit_manifest(labels=["lower", "upper", "any"]))
    assert other.digest() != read_shard_directory(shards).digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema_version 2; this version reads 1"),
        ({"schema_version": None}, "schema_version null"),
        ({"labels": None}, "labels: null: must be a list of up to 1000 different labels"),
        ({"splits": {"fold0": {}}}, "splits.fold0.examples: is missing"),
        (
            {"image": {"height": 8, "width": 8, "channels": 5}},
            "image.channels: 5: must be a whole number from 1 to 4",
        ),
    ],
)
def test_a_bad_manifest_is_one_line(
    edit_manifest: Callable[..., Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        read_shard_directory(edit_manifest(**changes))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_directory_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such shard directory"):
        read_shard_directory(tmp_path / "none")
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        read_shard_directory(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        read_shard_directory(tmp_path)


def test_no_such_fold(shards: Path) -> None:
    with pytest.raises(UsageError, match="--fold 7: there is no such fold; there are fold0, fold1"):
        read_shard_directory(shards).training_and_validation(7)


def test_nothing_labeled(edit_manifest: Callable[..., Path], shards: Path) -> None:
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    folder = edit_manifest(splits={"test": splits["test"]})
    with pytest.raises(UsageError, match="nothing to train on"):
        read_shard_directory(folder).training_and_validation(0)


def test_a_truncated_and_a_missing_shard(shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "copy"))
    found = read_shard_directory(folder)
    victim = folder / found.splits[0].shards[0].file
    victim.write_bytes(victim.read_bytes()[:-5])
    with pytest.raises(UsageError, match=f"{victim}: .* bytes where the manifest has"):
        check_files(found, found.splits)
    victim.unlink()
    with pytest.raises(UsageError, match=r"cannot be read \(No such file or directory\)"):
        check_files(found, found.splits)


@pytest.mark.parametrize(
    "name",
    ["../other/x", "{there}", "gs://bucket/x", "..\\other\\x", "C:x", "..", ".x", "", "a/b", "x\n"],
)
def test_a_file_outside_the_directory_is_refused(
    edit_manifest: Callable[..., Path], shards: Path, tmp_path: Path, name: str
) -> None:
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    shard = splits["fold0"]["shards"][0]
    there = tmp_path / "other" / "x"
    there.parent.mkdir()
    there.write_bytes((shards / shard["file"]).read_bytes())
    shard["file"] = name.format(there=there)
    with pytest.raises(UsageError) as raised:
        read_shard_directory(edit_manifest(splits=splits))
    assert "splits.fold0.shards[0].file: " in str(raised.value)
    assert str(raised.value).endswith("must be the name of a file in the same folder")
    assert "\n" not in str(raised.value)


def change_fold0(splits: dict[str, Any], change: str) -> None:
    """Makes two values contradict each other."""
    fold0, fold1 = splits["fold0"], splits["fold1"]
    if change == "examples":
        fold0["examples"] += 1
    elif change == "unknown label":
        fold0["shards"][1]["label_counts"]["tumour"] = 1
    elif change == "more positives than examples":
        fold0["shards"][0]["label_counts"]["any"] = 12
    elif change == "positives":
        fold0["label_counts"]["any"] -= 1
    elif change == "one file twice":
        fold0["shards"][0]["file"] = fold1["shards"][0]["file"]
    elif change == "the index as a shard":
        fold0["shards"][0]["file"] = "index.parquet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("examples", "splits.fold0.examples: 22: must be 21, as its shards have"),
        (
            "unknown label",
            'splits.fold0.shards[1].label_counts: "tumour": must be one of the labels',
        ),
        ("more positives than examples", "shards[0].label_counts.any: 12: must be at most 11"),
        ("positives", "splits.fold0.label_counts.any: "),
        ("one file twice", "must be a name of its own"),
        ("the index as a shard", 'shards[0].file: "index.parquet": must be a name of its own'),
    ],
)
def test_values_that_contradict_each_other(
    edit_manifest: Callable[..., Path], shards: Path, change: str, message: str
) -> None:
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    change_fold0(splits, change)
    with pytest.raises(UsageError) as raised:
        read_shard_directory(edit_manifest(splits=splits))
    assert message in str(raised.value)


@pytest.mark.parametrize("size", [8193, 10**9])
def test_an_image_that_no_machine_holds(edit_manifest: Callable[..., Path], size: int) -> None:
    folder = edit_manifest(image={"height": 8, "width": size, "channels": 3})
    with pytest.raises(UsageError, match=rf"image\.width: {size}: must be a whole number of"):
        read_shard_directory(folder)


def test_a_split_names_files_so_it_may_not_name_folders(
    edit_manifest: Callable[..., Path], shards: Path
) -> None:
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    splits["../../fold9"] = splits.pop("fold0")
    with pytest.raises(UsageError, match=r'splits: "\.\./\.\./fold9": must be a name of up to 64'):
        read_shard_directory(edit_manifest(splits=splits))


def test_more_keys_than_known_are_welcome(edit_manifest: Callable[..., Path]) -> None:
    more = {"height": 32, "width": 32, "channels": 3, "spacing": [0.5, 0.5]}
    found = read_shard_directory(edit_manifest(image=more, new={"a": [None, {"b": 1}]}))
    assert found.image == ImageSpec(32, 32, 3, "uint8", 0.0)


def test_examples_are_found_by_image_id_whatever_shard_they_are_in(
    shards: Path, split_rows: dict[str, list[dict[str, Any]]]
) -> None:
    data, rows = read_shard_directory(shards), split_rows["fold0"]
    chosen = [rows[i] for i in (20, 3, 0, 3, 7)]
    found = data.find(data.split("fold0"), [row["image_id"] for row in chosen])
    np.testing.assert_array_equal(found.images(), [row["image"] for row in chosen])
    with pytest.raises(UsageError, match="lacks images of fold1"):
        data.find(data.split("fold1"), [rows[0]["image_id"]])
