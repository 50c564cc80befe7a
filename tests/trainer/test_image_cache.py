import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from headct.errors import UsageError
from trainer.data.image_cache import CacheWriter, ImageCache, cache_bytes, check_memory
from trainer.data.shards import read_shard_directory


def test_rows_of_several_splits_by_hand() -> None:
    first, second = np.zeros((2, 1, 1, 1), np.uint8), np.uint8([[[[7]]], [[[8]]], [[[9]]]])
    cached = ImageCache((first, second), np.zeros((5, 1), np.float32))
    assert cached.take(np.array([4, 0, 2, 3])).ravel().tolist() == [9, 0, 7, 8]


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_cache_holds_every_image_resized(
    shards: Path, split_rows: dict[str, list[dict[str, Any]]], tmp_path: Path, on_disk: bool
) -> None:
    data = read_shard_directory(shards)
    heard: list[int] = []
    training, _ = data.training_and_validation(0)
    folder = tmp_path / "cache" if on_disk else None
    cached = CacheWriter(data, 24, folder, heard.append).fill(training)
    rows = split_rows["fold1"] + split_rows["fold2"]
    expected = {
        tf.cast(tf.round(tf.image.resize(r["image"], (24, 24), antialias=True)), tf.uint8)
        .numpy()
        .tobytes(): r["label"]
        for r in rows
    }
    images = cached.take(np.arange(40))
    assert images.dtype == np.uint8
    for image, label in zip(images, cached.labels, strict=True):
        assert label.tolist() == expected.pop(image.tobytes())
    assert not expected
    assert heard[-1] == 40


def test_what_is_on_disk_is_not_decoded_again(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    data = read_shard_directory(copy)
    splits = data.folds()[:1]
    writer = CacheWriter(data, 32, tmp_path / "cache", lambda _: None)
    first = writer.fill(splits)
    for file in copy.glob("*.tfrecord*"):
        file.unlink()
    again = writer.fill(splits)
    assert np.array_equal(again.images[0], first.images[0])
    assert np.array_equal(again.labels, first.labels)


def test_cropped_images_are_rounded_and_kept_in_files_of_their_own(
    shards: Path, tmp_path: Path
) -> None:
    data = read_shard_directory(shards)
    splits = data.folds()[:1]

    def crop(images: Any) -> Any:
        return images[:, 4:28, 4:28] + 0.4

    whole, cropped = (
        CacheWriter(data, size, tmp_path, lambda _: None, function).fill(splits)
        for size, function in ((32, None), (24, crop))
    )
    assert np.array_equal(cropped.images[0], whole.images[0][:, 4:28, 4:28])
    plain = CacheWriter(data, 24, tmp_path, lambda _: None).fill(splits)
    assert not np.array_equal(cropped.images[0], plain.images[0])


def test_too_little_memory_is_known_before() -> None:
    with pytest.raises(UsageError, match=r"--cache ram: needs 9\.0 GB of 10\.0 GB .* --cache disk"):
        check_memory("ram", 9 * 10**9, 10**10, "disk")
    check_memory("ram", 7 * 10**9, 10**10, "disk")


def test_bytes_by_hand(shards: Path, edit_manifest: Callable[..., Path]) -> None:
    assert cache_bytes(read_shard_directory(shards), 21, 10) == 21 * 10 * 10 * 3
    image = {"height": 32, "width": 32, "channels": 1, "dtype": "uint16", "hu_offset": -1024}
    data = read_shard_directory(edit_manifest(image=image))
    assert cache_bytes(data, 21, 10) == 21 * 10 * 10 * 2
