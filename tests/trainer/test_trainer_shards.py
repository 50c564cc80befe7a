import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.errors import BadInput
from trainer.shards import (
    ImageSpec,
    Window,
    check_files,
    read_shard_directory,
)


def test_a_directory_describes_itself(shards: Path) -> None:
    found = read_shard_directory(shards)
    assert found.labels == ("upper", "lower", "any")
    assert found.image == ImageSpec(32, 32, 3, "uint8", 0.0)
    assert not found.image.is_hounsfield
    assert found.windows[0] == Window("brain", 40, 80)
    assert [each.name for each in found.folds()] == ["fold0", "fold1", "fold2"]
    assert found.split("test").examples == 7
    check_files(found.splits)


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
        ({"schema_version": 2}, "schema_version 2; this trainer reads 1"),
        ({"schema_version": None}, "schema_version None"),
        ({"labels": None}, "incomplete"),
        ({"splits": {"fold0": {}}}, "incomplete"),
        ({"image": {"height": 8, "width": 8, "channels": 5}}, "images of 5 channels"),
    ],
)
def test_a_bad_manifest_is_one_line(
    edit_manifest: Callable[..., Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput) as raised:
        read_shard_directory(edit_manifest(**changes))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_directory_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such shard directory"):
        read_shard_directory(tmp_path / "none")
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        read_shard_directory(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BadInput, match="not JSON"):
        read_shard_directory(tmp_path)


def test_no_such_fold(shards: Path) -> None:
    with pytest.raises(BadInput, match="--fold 7: there is no such fold; there are fold0, fold1"):
        read_shard_directory(shards).training_and_validation(7)


def test_nothing_labelled(edit_manifest: Callable[..., Path], shards: Path) -> None:
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    folder = edit_manifest(splits={"test": splits["test"]})
    with pytest.raises(BadInput, match="nothing to train on"):
        read_shard_directory(folder).training_and_validation(0)


def test_a_truncated_and_a_missing_shard(shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "copy"))
    found = read_shard_directory(folder)
    victim = found.splits[0].shards[0].path
    victim.write_bytes(victim.read_bytes()[:-5])
    with pytest.raises(BadInput, match=f"{victim}: .* bytes where the manifest has"):
        check_files(found.splits)
    victim.unlink()
    with pytest.raises(BadInput, match="this shard is missing"):
        check_files(found.splits)
