import io
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from trainer.errors import BadInput
from trainer.input_pipeline import (
    InputClock,
    Order,
    damage_reported,
    decode,
    evaluation_batches,
    training_batches,
    training_records,
)
from trainer.shards import ImageSpec, ShardDirectory, read_shard_directory

Batches = list[tuple[np.ndarray, np.ndarray]]


def epoch(data: ShardDirectory, order: Order, batch_size: int = 8) -> Batches:
    training, _ = data.training_and_validation(0)
    records = training_records(training, order, 16)
    batches = training_batches(records, data.image, 3, batch_size, order.skip)
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
    records = training_records(data.folds(), Order(seed=0, epoch=0), 16)
    for batches in (
        training_batches(records, data.image, 3, 8),
        evaluation_batches(data.split("test"), data.image, 3, 8),
        InputClock().measure(records),
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


def test_an_epoch_has_examples_as_often_as_it_is_told(
    shards: Path, split_rows: dict[str, list[dict[str, Any]]]
) -> None:
    data = read_shard_directory(shards)
    training, _ = data.training_and_validation(0)
    written = [
        row["image"].tobytes()
        for name in ("fold1", "fold2")
        for shard in (0, 1)
        for row in split_rows[name][shard::2]
    ]
    copies = np.random.default_rng(0).integers(0, 4, 40)

    def drawn(order: Order) -> list[bytes]:
        records = training_records(training, order, 16, copies)
        batches = training_batches(records, data.image, 3, 4, order.skip)
        return keys(list(batches.as_numpy_iterator()))

    whole = drawn(Order(seed=4, epoch=2))
    assert len(whole) == copies.sum() // 4 * 4
    left = Counter(dict(zip(written, copies.tolist(), strict=True)))
    left.subtract(whole)
    assert min(left.values()) >= 0
    assert sum(left.values()) < 4
    assert drawn(Order(seed=4, epoch=2, skip=3)) == whole[12:]


@pytest.mark.parametrize("batch_size", [1, 4, 21, 50])
def test_no_example_is_dropped_in_evaluation(
    shards: Path, split_rows: dict[str, list[dict[str, Any]]], batch_size: int
) -> None:
    data = read_shard_directory(shards)
    split = data.split("fold0")
    batches = list(evaluation_batches(split, data.image, 3, batch_size).as_numpy_iterator())
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


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_one_to_four_windows_are_decoded(channels: int) -> None:
    rng = np.random.default_rng(channels)
    image = rng.integers(0, 256, (8, 8, channels), np.uint8)
    # Pillow writes two channels as grey and alpha.
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    buffer = io.BytesIO()
    Image.frombytes(mode, (8, 8), image.tobytes()).save(buffer, "png")
    decoded = decode(buffer.getvalue(), ImageSpec(8, 8, channels, "uint8", 0))
    np.testing.assert_array_equal(decoded, image)


def test_the_clock_sees_a_slow_source_and_not_a_slow_consumer() -> None:
    def slowly(i: int) -> int:
        time.sleep(0.05)
        return i

    source = tf.data.Dataset.range(4).map(lambda i: tf.numpy_function(slowly, [i], tf.int64))
    clock = InputClock()
    assert [int(i) for i in clock.measure(source)] == [0, 1, 2, 3]
    assert 0.2 <= clock.waited < 1
    patient = InputClock()
    for _ in patient.measure(tf.data.Dataset.range(4)):
        time.sleep(0.05)
    assert patient.waited < 0.1


def test_the_clock_counts_no_time_in_which_the_device_computes() -> None:
    clock = InputClock(handed=2, computed=1)
    clock.start(0)
    time.sleep(0.05)
    clock.stop(0)
    assert clock.waited == 0
    clock.start(1)
    time.sleep(0.05)
    clock.has_computed(2)
    time.sleep(0.02)
    clock.stop(1)
    assert 0.02 <= clock.waited < 0.05


def test_a_flipped_bit_is_one_line(shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "copy"))
    victim = next(iter(folder.glob("ich-fold1*")))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(BadInput, match=r"a shard is damaged .*make verify"), damage_reported():
        epoch(read_shard_directory(folder), Order(seed=0, epoch=0))
