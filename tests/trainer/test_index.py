import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from headct.errors import UsageError
from trainer.data.index import read_index, with_label_counts
from trainer.data.random_access import read_record, records_at
from trainer.data.shards import Shard, read_shard_directory
from trainer.options import TrainOptions
from trainer.runs.training_setup import prepare_training

Rows = dict[str, list[dict[str, Any]]]


def test_labels_in_the_order_of_shards_and_records(shards: Path, split_rows: Rows) -> None:
    data = read_shard_directory(shards)
    found = read_index(data, (data.split("fold2"), data.split("fold0")))
    rows = [
        row["label"]
        for name in ("fold2", "fold0")
        for number in range(2)
        for row in split_rows[name][number::2]
    ]
    assert found.labels.dtype == np.float32
    assert found.labels.tolist() == rows


def test_records_in_any_order_are_those_of_the_shards(shards: Path) -> None:
    data = read_shard_directory(shards)
    splits = (data.split("fold1"), data.split("fold2"))
    index = read_index(data, splits)
    files = [str(shard.path) for split in splits for shard in split.shards]
    whole = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
    rows = np.array([39, 0, 7, 7, 20, 0])
    found = list(records_at(index, rows).as_numpy_iterator())
    assert found == [whole[row] for row in rows]
    assert read_record(index, 3) == whole[3]


@pytest.mark.parametrize("place", [0, 9, 12, 200, -1])
def test_a_damaged_record_is_found(shards: Path, tmp_path: Path, place: int) -> None:
    data = read_shard_directory(shards)
    index = read_index(data, (data.split("fold1"),))
    content = bytearray(index.files[0].read_bytes())
    size = int(index.size[1])
    content[index.offset[1] + (place % size)] ^= 1
    damaged = tmp_path / index.files[0].name
    damaged.write_bytes(content)
    changed = type(index)(**{**vars(index), "files": (damaged, index.files[1])})
    assert read_record(changed, 0) == read_record(index, 0)
    with pytest.raises(tf.errors.DataLossError, match=damaged.name):
        read_record(changed, 1)


def test_a_shard_that_ends_early_is_found(shards: Path, tmp_path: Path) -> None:
    data = read_shard_directory(shards)
    index = read_index(data, (data.split("fold1"),))
    cut = tmp_path / "cut"
    cut.write_bytes(index.files[0].read_bytes()[: index.offset[1] + 5])
    changed = type(index)(**{**vars(index), "files": (cut, index.files[1])})
    with pytest.raises(tf.errors.DataLossError, match="no record"):
        read_record(changed, 1)


def change(column: str, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.assign(**{column: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda frame: frame.iloc[:-1], "examples of ich-"),
        (lambda frame: frame.drop(columns="offset"), "cannot be read"),
        (lambda frame: frame.drop(columns="label_any"), "cannot be read"),
        (change("label_any", "yes"), "cannot be read"),
        (change("record", 0), "examples of ich-"),
        (change("offset", -1), "has records beyond"),
        (change("bytes", 10**9), "has records beyond"),
    ],
)
def test_an_index_of_other_shards_is_refused(
    edit_manifest: Callable[..., Path], damage: Any, message: str
) -> None:
    folder = edit_manifest()
    frame = damage(pd.read_parquet(folder / "index.parquet"))
    (folder / "index.parquet").unlink()
    frame.to_parquet(folder / "index.parquet")
    data = read_shard_directory(folder)
    with pytest.raises(UsageError, match=message):
        read_index(data, data.folds())


def test_one_record_that_is_elsewhere_is_enough(edit_manifest: Callable[..., Path]) -> None:
    folder = edit_manifest()
    data = read_shard_directory(folder)
    good = pd.read_parquet(folder / "index.parquet")
    (folder / "index.parquet").unlink()
    last = good["offset"].idxmax()
    for column, change in (("offset", 1), ("bytes", 1), ("offset", -(10**6))):
        frame = good.copy()
        frame.loc[last, column] += change
        frame.to_parquet(folder / "index.parquet")
        with pytest.raises(UsageError, match="has records beyond"):
            read_index(data, data.folds())


def test_a_shard_without_examples_is_not_in_the_index(shards: Path) -> None:
    data = read_shard_directory(shards)
    split = data.split("fold1")
    empty = Shard(split.shards[0].path.with_name("empty"), 0, 0, "")
    found = read_index(data, (replace(split, shards=(empty, *split.shards)),))
    assert found.file.tolist() == [1] * 10 + [2] * 10
    missing = replace(empty, examples=1)
    with pytest.raises(UsageError, match="has 0 of the 1 examples of empty"):
        read_index(data, (replace(split, shards=(missing,)),))


def test_a_file_that_is_no_index_is_refused(edit_manifest: Callable[..., Path]) -> None:
    folder = edit_manifest()
    data = read_shard_directory(folder)
    (folder / "index.parquet").unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        read_index(data, data.folds())
    (folder / "index.parquet").write_text("no Parquet")
    with pytest.raises(UsageError, match="cannot be read"):
        read_index(data, data.folds())


def test_positives_that_the_manifest_does_not_state_come_from_the_index(
    shards: Path, edit_manifest: Callable[..., Path], tiny: dict[str, Any], tmp_path: Path
) -> None:
    """A number that is missing is not 0, of which the head would begin at a logit of -9."""
    stated = read_shard_directory(shards)
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    del splits["fold1"]["label_counts"]
    for entry in (splits["fold2"], *splits["fold2"]["shards"]):
        del entry["label_counts"]["any"]
    data = read_shard_directory(edit_manifest(splits=splits))
    setup = prepare_training(TrainOptions(shards=data.path, run=tmp_path / "run", **tiny))
    assert setup.prevalence == stated.prevalence(0)
    with pytest.raises(UsageError, match="no label_counts of upper"):
        data.prevalence(0)
    assert data.split("all").label_counts == (None, None, None)
    found = with_label_counts(data)
    assert [found.prevalence(fold) for fold in range(3)] == [stated.prevalence(f) for f in range(3)]
    (data.path / "index.parquet").unlink()
    with pytest.raises(UsageError, match=r"index.parquet: cannot be read"):
        with_label_counts(data)
    assert with_label_counts(stated) == stated
