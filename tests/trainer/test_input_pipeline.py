import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.png_files import plain_png
from trainer.data.input_pipeline import (
    ExampleReader,
    aligned,
    end_pipelines,
    evaluation_batches,
    training_batches,
)
from trainer.data.sampling import Order
from trainer.data.shards import ShardDirectory, read_shard_directory

Batches = list[tuple[np.ndarray, np.ndarray]]


def epoch(data: ShardDirectory, order: Order, batch_size: int = 8) -> Batches:
    training, _ = data.training_and_validation(0)
    batches = training_batches(data, training, batch_size, order, 16)
    return list(batches.as_numpy_iterator())


def keys(batches: Batches) -> list[bytes]:
    return [image.tobytes() for images, _ in batches for image in images]


def test_training_images_are_those_that_were_written(
    shards: Path, split_rows: dict[str, list[dict[str, Any]]]
) -> None:
    batches = epoch(read_shard_directory(shards), Order(seed=0, epoch=0))
    assert [images.shape for images, _ in batches] == [(8, 32, 32, 3)] * 5
    assert all(images.dtype == np.uint8 for images, _ in batches)
    written = {
        row["image"].tobytes(): row["label"]
        for name in ("fold1", "fold2")
        for row in split_rows[name]
    }
    assert sorted(keys(batches)) == sorted(written)
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            assert label.tolist() == written[image.tobytes()]


def test_no_tuner_holds_up_the_end_of_an_epoch(shards: Path) -> None:
    data = read_shard_directory(shards)
    for batches in (
        training_batches(data, data.folds(), 8, Order(seed=0, epoch=0), 16),
        evaluation_batches(data, data.split("test"), 8),
    ):
        assert batches.options().autotune.enabled is False
        assert batches.options().deterministic is True


def test_the_order_is_of_the_seed_and_the_epoch(shards: Path) -> None:
    data = read_shard_directory(shards)
    first = keys(epoch(data, Order(seed=0, epoch=0)))
    assert keys(epoch(data, Order(seed=0, epoch=0))) == first
    assert keys(epoch(data, Order(seed=0, epoch=1))) != first
    assert keys(epoch(data, Order(seed=1, epoch=0))) != first


def test_an_epoch_goes_on_where_it_was_left(shards: Path) -> None:
    data = read_shard_directory(shards)
    whole = keys(epoch(data, Order(seed=4, epoch=2)))
    assert keys(epoch(data, Order(seed=4, epoch=2, skip=2))) == whole[16:]


@pytest.mark.parametrize("batch_size", [1, 4, 21, 50])
def test_no_example_is_dropped_in_evaluation(
    shards: Path, split_rows: dict[str, list[dict[str, Any]]], batch_size: int
) -> None:
    data = read_shard_directory(shards)
    split = data.split("fold0")
    batches = list(evaluation_batches(data, split, batch_size).as_numpy_iterator())
    assert all(batch["image"].shape == (batch_size, 32, 32, 3) for batch in batches)
    ids = [each for batch in batches for each in batch["image_id"].tolist()]
    assert sorted(ids) == sorted(row["image_id"].encode() for row in split_rows["fold0"])


def test_sixteen_bits_stay_sixteen(
    rows_maker: Callable[..., Any], shards_writer: Callable[..., Path], tmp_path: Path
) -> None:
    rows = rows_maker(4, 16, seed=0)
    for row in rows:
        row["image"] = row["image"][..., :1].astype(np.uint16) * 40
    data = read_shard_directory(shards_writer(tmp_path / "hu", {"fold0": rows, "fold1": rows}))
    assert data.image.is_hounsfield
    images, _ = epoch(data, Order(seed=0, epoch=0), batch_size=4)[0]
    assert images.dtype == np.uint16
    assert sorted(image.tobytes() for image in images) == sorted(r["image"].tobytes() for r in rows)


def test_pipelines_end_before_python_does(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = read_shard_directory(shards)

    class Witness:
        pass

    def fail() -> weakref.ref[Witness]:
        witness = Witness()
        batches = iter(evaluation_batches(data, data.split("fold0"), 4))
        next(batches)
        seen.append(weakref.ref(witness))
        raise RuntimeError

    seen: list[weakref.ref[Witness]] = []
    for name in ("last_exc", "last_value", "last_traceback"):
        monkeypatch.setattr(sys, name, None, raising=False)
    try:
        fail()
    except RuntimeError as error:
        # As Python does with what nobody catches.
        sys.last_value, sys.last_traceback = error, error.__traceback__
    assert seen[0]() is not None
    end_pipelines()
    assert seen[0]() is None


def test_a_batch_is_handed_to_tensorflow_without_a_copy() -> None:
    images = aligned((2, 3, 5, 1), "uint16")
    assert images.ctypes.data % 64 == 0
    assert images.shape == (2, 3, 5, 1)
    assert images.dtype == np.uint16
    assert images.flags.c_contiguous


def test_images_in_one_batch_keep_their_order(edit_manifest: Callable[..., Path]) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (11, 6, 4, 2), np.uint8)
    pngs = np.array([plain_png(image) for image in images], object)
    data = read_shard_directory(edit_manifest(image={"height": 6, "width": 4, "channels": 2}))
    decoded = ExampleReader(data, 13).check_and_decode(pngs, np.zeros((11, 3)), np.array([]))
    np.testing.assert_array_equal(decoded[:11], images)
    assert not decoded[11:].any()
