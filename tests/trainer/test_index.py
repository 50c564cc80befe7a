"""What the trainer takes from index.parquet: `ShardDirectory.examples` and missing label counts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headct.errors import UsageError
from tests.trainer.record_files import split_records
from trainer.data.input_pipeline import drawn_batches
from trainer.data.shards import read_shard_directory
from trainer.options import TrainOptions
from trainer.runs.training_setup import prepare_training

Rows = dict[str, list[dict[str, Any]]]


def test_examples_are_in_the_order_of_shards_and_records(shards: Path, split_rows: Rows) -> None:
    data = read_shard_directory(shards)
    found = data.examples((data.split("fold2"), data.split("fold0")))
    rows = [
        row
        for name in ("fold2", "fold0")
        for number in range(2)
        for row in split_rows[name][number::2]
    ]
    assert found.label_values.to_numpy().tolist() == [row["label"] for row in rows]
    np.testing.assert_array_equal(found.images(), [row["image"] for row in rows])


def test_batches_of_chosen_examples(shards: Path, split_rows: Rows) -> None:
    data = read_shard_directory(shards)
    found = data.examples((data.split("fold1"), data.split("fold2")))
    rows = np.array([[19, 0, 7], [7, 10, 0]])
    batches = drawn_batches(found, rows)
    assert batches.options().autotune.enabled is False
    whole = split_rows["fold1"][::2] + split_rows["fold1"][1::2]
    for chosen, (images, labels) in zip(rows, batches.as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(images, [whole[row]["image"] for row in chosen])
        assert labels.dtype == np.float32
        assert labels.tolist() == [whole[row]["label"] for row in chosen]


def change(column: str, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.assign(**{column: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda frame: frame.iloc[:-1], "other examples than manifest.json has"),
        (lambda frame: frame.drop(columns="image_bytes"), "cannot be read .*image_bytes"),
        (lambda frame: frame.drop(columns="label_any"), "cannot be read .*label_any"),
        (lambda frame: frame.drop(columns="record"), "has no column record"),
        (change("label_any", "yes"), "cannot be read"),
        (change("label_any", 7), "has a label that is none of -1 to 1"),
        (change("record", 0), "has other examples of fold0, fold1, fold2 than manifest"),
        (change("shard", "none"), "has other examples of fold0, fold1, fold2 than manifest"),
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
    with pytest.raises(UsageError, match=f"index.parquet: {message}"):
        data.examples(data.folds())


def test_a_file_that_is_no_index_is_refused(edit_manifest: Callable[..., Path]) -> None:
    folder = edit_manifest()
    data = read_shard_directory(folder)
    (folder / "index.parquet").unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        data.examples(data.folds())
    (folder / "index.parquet").write_text("no Parquet")
    with pytest.raises(UsageError, match="cannot be read"):
        data.examples(data.folds())


def test_an_index_of_an_earlier_version_locates_records_alone(
    edit_manifest: Callable[..., Path],
) -> None:
    folder = edit_manifest()
    data = read_shard_directory(folder)
    expected = data.examples(data.folds())
    frame = pd.read_parquet(folder / "index.parquet")
    (folder / "index.parquet").unlink()
    frame.drop(columns=["image_offset", "image_bytes"]).to_parquet(folder / "index.parquet")
    found = data.examples(data.folds())
    assert found.pngs(range(61)) == expected.pngs(range(61))
    path = folder / data.folds()[0].shards[0].file
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(b"".join(bytes(len(record) + 16) for record in split_records(content)))
    with pytest.raises(UsageError, match=f"{path.name}: record 0: its image is no PNG"):
        found[:2].images()


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
    assert [data.prevalence(fold) for fold in range(3)] == [stated.prevalence(f) for f in range(3)]
    (data.path / "index.parquet").unlink()
    with pytest.raises(UsageError, match=r"index.parquet: cannot be read"):
        data.prevalence(0)
