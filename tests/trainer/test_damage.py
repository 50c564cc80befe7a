import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from headct.errors import UsageError
from tests.trainer.png_files import plain_png
from tests.trainer.record_files import frame, split_records
from trainer.data import damage
from trainer.data.damage import damage_reported, find_damage, reason
from trainer.data.image_cache import CacheWriter
from trainer.data.input_pipeline import (
    drawn_batches,
    evaluation_batches,
    training_batches,
)
from trainer.data.sampling import Order
from trainer.data.shards import ShardDirectory, check_files, read_shard_directory
from trainer.evaluation.predict_models import predict_models

VICTIM = "ich-fold1.tfrecord-00001-of-00002"
RECORD = 7
Spoil = Callable[[list[bytes]], bytes]


def train(data: ShardDirectory) -> None:
    training, _ = data.training_and_validation(0)
    batches = training_batches(data, training, 8, Order(0, 0), 16)
    batches = batches.apply(tf.data.experimental.assert_cardinality(5))
    with damage_reported(data, training):
        list(batches)


def evaluate(data: ShardDirectory) -> None:
    batches = evaluation_batches(data, data.split("fold1"), 8)
    with damage_reported(data, (data.split("fold1"),)):
        list(batches)


def fill(data: ShardDirectory) -> None:
    CacheWriter(data, 24, None, lambda _: None).fill((data.split("fold1"),))


def spoiled(shards: Path, folder: Path, spoil: Spoil, victim: str = VICTIM) -> ShardDirectory:
    """A copy of which one shard is another, and of the size that the manifest has."""
    shutil.copytree(shards, folder)
    content = spoil(split_records((shards / victim).read_bytes()))
    (folder / victim).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            if shard["file"] == victim:
                shard["bytes"] = len(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    data = read_shard_directory(folder)
    check_files(data, data.splits)
    return data


def replaced(change: Callable[[tf.train.Example], None]) -> Spoil:
    """Another example in the place of RECORD."""

    def spoil(records: list[bytes]) -> bytes:
        example = tf.train.Example.FromString(records[RECORD])
        change(example)
        records[RECORD] = example.SerializeToString()
        return b"".join(map(frame, records))

    return spoil


def with_image(png: bytes) -> Spoil:
    def change(example: tf.train.Example) -> None:
        example.features.feature["image"].bytes_list.value[0] = png

    return replaced(change)


def with_label(label: list[int]) -> Spoil:
    def change(example: tf.train.Example) -> None:
        example.features.feature["label"].int64_list.value[:] = label

    return replaced(change)


def without(feature: str) -> Spoil:
    return replaced(lambda example: example.features.feature.pop(feature) and None)


def wrong_checksum(records: list[bytes]) -> bytes:
    content = bytearray(b"".join(map(frame, records)))
    content[sum(len(record) + 16 for record in records[:RECORD]) + 100] ^= 1
    return bytes(content)


def claims(length: int) -> Spoil:
    return lambda records: b"".join(
        frame(record, length if i == RECORD else None) for i, record in enumerate(records)
    )


def cut(records: list[bytes]) -> bytes:
    return b"".join(map(frame, records[: RECORD + 1]))[:-9]


NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
OTHER_IMAGE = "its PNG has {} uint8, where the manifest has 32 x 32 x 3 uint8"
SPOILED: dict[str, tuple[Spoil, str]] = {
    "narrower": (with_image(plain_png(NOISE[:, :31])), OTHER_IMAGE.format("32 x 31 x 3")),
    "other channels": (with_image(plain_png(NOISE[..., :2])), OTHER_IMAGE.format("32 x 32 x 2")),
    "endless": (
        with_image(plain_png(NOISE, bytes(32 * 97) + bytes(1 << 24))),
        "its PNG is damaged",
    ),
    "no PNG": (with_image(b"none"), "its image is no PNG"),
    "no image": (without("image"), "Feature: image (data type: string) is required"),
    "two labels": (with_label([0, 1]), "Key: label"),
    "no label": (without("label"), "Feature: label (data type: int64) is required"),
    "unlabeled": (with_label([0, 0, -1]), "label -1, which is none of 0 to 1"),
    "label 7": (with_label([0, 7, 1]), "label 7, which is none of 0 to 1"),
    "no example": (
        lambda records: b"".join(
            frame(b"\xff" if i == RECORD else record) for i, record in enumerate(records)
        ),
        "it is no tf.train.Example",
    ),
    "no text": (
        lambda records: b"".join(
            frame(b"patient" if i == RECORD else record) for i, record in enumerate(records)
        ),
        "it is no tf.train.Example",
    ),
    "wrong checksum": (wrong_checksum, "bad checksum of the data at byte"),
    "cut": (cut, "truncated data at byte"),
    "a terabyte": (claims(1 << 40), "bad checksum of the length at byte"),
    "an exabyte": (claims(1 << 60), "bad checksum of the length at byte"),
}


@pytest.mark.parametrize("use", [train, evaluate, fill])
@pytest.mark.parametrize("name", SPOILED)
def test_damage_is_one_line_that_names_the_record(
    name: str, use: Callable[[ShardDirectory], None], shards: Path, tmp_path: Path
) -> None:
    spoil, message = SPOILED[name]
    data = spoiled(shards, tmp_path / "copy", spoil)
    with pytest.raises(UsageError, match=re.escape(f"{VICTIM}: record {RECORD}: ")) as raised:
        use(data)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_splits_have_no_damage(shards: Path, tmp_path: Path) -> None:
    data = spoiled(shards, tmp_path / "copy", with_label([0, 7, 1]))
    assert find_damage(data, (data.split("fold0"), data.split("fold2"))) is None


def test_too_few_records_to_train_on(shards: Path, tmp_path: Path) -> None:
    data = spoiled(shards, tmp_path / "copy", lambda records: frame(records[0]))
    with pytest.raises(UsageError, match=f"{VICTIM}: 1 records where the manifest has 10"):
        train(data)


def test_a_shard_that_went_away(shards: Path, tmp_path: Path) -> None:
    data = spoiled(shards, tmp_path / "copy", lambda records: frame(records[0]))
    (data.path / VICTIM).unlink()
    for use in (train, evaluate, fill):
        with pytest.raises(UsageError, match=f"{VICTIM}: cannot be read"):
            use(data)


def test_ids_are_text(shards: Path, tmp_path: Path) -> None:
    def change(example: tf.train.Example) -> None:
        example.features.feature["patient_id"].bytes_list.value[0] = b"\xff"

    data = spoiled(shards, tmp_path / "copy", replaced(change))
    for use in (train, evaluate, fill):
        with pytest.raises(UsageError, match=f"{VICTIM}: record {RECORD}: an id that is not UTF-8"):
            use(data)


def test_the_test_split_has_no_labels(shards: Path, tmp_path: Path) -> None:
    victim = "ich-test.tfrecord-00000-of-00002"
    data = spoiled(
        shards,
        tmp_path / "copy",
        lambda records: b"".join(map(frame, [*records[:3], b"\xff"])),
        victim,
    )

    class Model:
        jit_compile = False

        def __call__(self, images: Any, training: bool) -> Any:
            return keras.ops.zeros((images.shape[0], 3))

    with pytest.raises(UsageError, match=f"{victim}: record 3: "):
        predict_models([Model()], data, data.split("test"), data.labels, 4)


def draw(data: ShardDirectory) -> None:
    training, _ = data.training_and_validation(0)
    batches = drawn_batches(data.examples(training), np.arange(40).reshape(5, 8))
    with damage_reported(data, training):
        list(batches)


def test_records_that_are_drawn(shards: Path, tmp_path: Path) -> None:
    data = spoiled(shards, tmp_path / "copy", wrong_checksum)
    with pytest.raises(UsageError, match=f"{VICTIM}: record {RECORD}: its PNG is damaged"):
        draw(data)
    (data.path / VICTIM).unlink()
    with pytest.raises(UsageError, match=r"cannot be read \(No such file or directory\)$"):
        draw(data)


def test_an_index_of_other_shards(edit_manifest: Callable[..., Path]) -> None:
    data = read_shard_directory(edit_manifest())
    path = data.path / "index.parquet"
    index = pd.read_parquet(path)
    path.unlink()
    index.loc[index["record"] == RECORD, "image_offset"] -= 3
    index.to_parquet(path)
    with pytest.raises(UsageError, match=f"record {RECORD}: its image is no PNG; `make verify`"):
        draw(data)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("{{function_node f}} {{node g}} label 7\nand more", "label 7"),
        ("label 7 [Op:Check] name: of old", "label 7"),
        (
            "Graph execution error:\n\nDetected at\n  File\n\nno label\n\t [[{{node g}}]]",
            "no label",
        ),
        ("an id of é", r"an id of \xe9"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 200),
        ("Could not parse example input, value: 'ID'", "it is no tf.train.Example"),
    ],
)
def test_what_an_exception_says_in_a_line(said: str, line: str) -> None:
    assert reason(tf.errors.InvalidArgumentError(None, None, said)) == line
    assert reason(ValueError(said)) == line


def test_what_is_no_damage_is_passed_on(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = read_shard_directory(shards)
    said = "Error in user-defined function passed to MapDataset with Iterator::Root: a bug"
    with pytest.raises(tf.errors.UnknownError), damage_reported(data, data.splits):
        raise tf.errors.UnknownError(None, None, said)
    searched: list[object] = []
    monkeypatch.setattr(damage, "find_damage", lambda *arguments: searched.append(arguments))
    for error in (tf.errors.UnknownError, tf.errors.NotFoundError):
        with pytest.raises(error), damage_reported(data, data.splits):
            raise error(None, None, "of a device")
    with (
        pytest.raises(tf.errors.InvalidArgumentError),
        damage_reported(data, data.splits),
    ):
        tf.reshape(tf.zeros(4), (3,))
    assert not searched, "no record is read"
