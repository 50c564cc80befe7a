"""Cache of decoded, resized images between epochs, in memory or memory-mapped files.

One uint8 (or uint16) array per split, so runs on other folds can reuse the files. Values
differ by at most half a gray level from resizing in the model: they are rounded once more.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import tensorflow as tf

from headct.errors import UsageError
from headct.manifest import ImageSpec
from trainer.data.damage import damage_reported
from trainer.data.input_pipeline import (
    CORES,
    Training,
    as_written,
    read_records,
    with_options,
)
from trainer.data.shards import Split, count
from trainer.files import remove_unfinished, write_whole

GIGABYTE = 1e9
# Fraction of the free memory that a cache may use.
_SHARE = 0.8
_DECODED_AT_ONCE = 8

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class ImageCache:
    """The images and labels of some splits, in order.

    Attributes:
        images: [n, S, S, C], uint8 or uint16: one array, or one memory-mapped array per split.
        labels: float32 [N, L].
    """

    images: tuple[Pixels, ...]
    labels: npt.NDArray[np.float32]

    def take(self, rows: npt.NDArray[np.int64]) -> Pixels:
        """Copy the images of `rows`, [B] → [B, S, S, C]."""
        starts = np.cumsum([0, *(len(each) for each in self.images)])
        parts = np.searchsorted(starts, rows, side="right") - 1
        taken = np.empty((len(rows), *self.images[0].shape[1:]), self.images[0].dtype)
        for part in np.unique(parts):
            mine = parts == part
            taken[mine] = self.images[part][rows[mine] - starts[part]]
        return taken


def cache_bytes(splits: tuple[Split, ...], image: ImageSpec, size: int) -> int:
    """Return the bytes of the resized images of `splits`."""
    return count(splits) * size * size * image.channels * np.dtype(image.dtype).itemsize


def check_memory(cache: str, needed: int, free: int, instead: str) -> None:
    """Compare the size of a cache with the free memory.

    Raises:
        UsageError: the cache is too large.
    """
    if needed > _SHARE * free:
        raise UsageError(
            f"--cache {cache}: needs {needed / GIGABYTE:.1f} GB of {free / GIGABYTE:.1f} GB"
            f" that are free; use --cache {instead} or a smaller --image_size"
        )


def fill_cache(
    splits: tuple[Split, ...],
    image: ImageSpec,
    size: int,
    folder: Path | None,
    on_image: Callable[[int], None],
) -> ImageCache:
    """Decode and resize all images of `splits`, or map existing files.

    The files are in `folder`; None keeps the images in memory. `on_image` gets the number
    of finished images.

    Raises:
        UsageError: a shard is damaged, or memory or disk space is too small.
    """
    if folder is not None:
        return _map_splits(splits, image, size, folder, on_image)
    needed = cache_bytes(splits, image, size)
    check_memory("ram", needed, psutil.virtual_memory().available, "disk")
    return _read_splits(splits, image, size, on_image)


@dataclass(frozen=True)
class _Offset:
    """A callback that adds `before` to a number."""

    hear: Callable[[int], None]
    before: int

    def __call__(self, done: int) -> None:
        """Call `hear`."""
        self.hear(self.before + done)


def _read_splits(
    splits: tuple[Split, ...], image: ImageSpec, size: int, on_image: Callable[[int], None]
) -> ImageCache:
    """Read all images into one array, ready to copy to a device."""
    images = np.empty((count(splits), size, size, image.channels), image.dtype)
    labels, done = [], 0
    for split in splits:
        mine = images[done : done + split.examples]
        labels.append(_decode_into(mine, split, image, size, _Offset(on_image, done)))
        done += split.examples
    return ImageCache((images,), np.concatenate(labels))


def _map_splits(
    splits: tuple[Split, ...],
    image: ImageSpec,
    size: int,
    folder: Path,
    on_image: Callable[[int], None],
) -> ImageCache:
    """Map the images, one file per split."""
    parts, done = [], 0
    for split in splits:
        parts.append(_map_split(split, image, size, folder, _Offset(on_image, done)))
        done += split.examples
    return ImageCache(tuple(each for each, _ in parts), np.concatenate([each for _, each in parts]))


def _map_split(
    split: Split, image: ImageSpec, size: int, folder: Path, on_image: Callable[[int], None]
) -> tuple[Pixels, npt.NDArray[np.float32]]:
    """Map the images and labels of a split: two files named by content and size."""
    content = "".join(each.sha256 for each in split.shards)
    name = f"{hashlib.sha256(content.encode()).hexdigest()[:16]}-{size}"
    pixels, labels = folder / f"{name}-images.npy", folder / f"{name}-labels.npy"
    remove_unfinished(folder)
    if not labels.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _check_disk(folder, cache_bytes((split,), image, size))
        found: list[npt.NDArray[np.float32]] = []

        def write(unfinished: Path) -> None:
            shape = (split.examples, size, size, image.channels)
            images = np.lib.format.open_memmap(unfinished, "w+", np.dtype(image.dtype), shape)
            _allocate(unfinished)
            found.append(_decode_into(images, split, image, size, on_image))
            images.flush()

        write_whole(pixels, write)
        write_whole(labels, lambda unfinished: np.save(unfinished, found[0]))
    return np.load(pixels, mmap_mode="r"), np.load(labels)


def _allocate(path: Path) -> None:
    """Allocate a file's space: a disk that fills up during page writes kills a process.

    Raises:
        OSError: the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _check_disk(folder: Path, needed: int) -> None:
    """Compare the size of a split with the free disk space.

    Raises:
        UsageError: the disk is too small.
    """
    free = psutil.disk_usage(os.fspath(folder)).free
    if needed > free:
        raise UsageError(
            f"--cache disk: {folder} has {free / GIGABYTE:.1f} GB free of the"
            f" {needed / GIGABYTE:.1f} GB needed; name another --cache_dir"
        )


def _decode_into(
    images: Pixels, split: Split, image: ImageSpec, size: int, on_image: Callable[[int], None]
) -> npt.NDArray[np.float32]:
    """Decode a split into `images`, in parallel; return its labels, [n, L].

    Raises:
        UsageError: a shard is damaged, or has a wrong number of examples.
    """
    files = [str(shard.path) for shard in split.shards if shard.examples]
    wanted = len(split.label_counts)
    labels = np.zeros((split.examples, wanted), np.float32)
    reader = Training(image, wanted, _DECODED_AT_ONCE)
    read = as_written(lambda records: resized(*reader.read(records), size))
    batches = read_records(files).batch(_DECODED_AT_ONCE).map(read, CORES).prefetch(CORES)
    done = 0
    with damage_reported((split,), image, wanted):
        for pixels, classes in with_options(batches).as_numpy_iterator():
            end = done + len(classes)
            if end > split.examples:
                break
            # the last batch is padded
            images[done:end], labels[done:end] = pixels[: len(classes)], classes
            done = end
            on_image(done)
    if done != split.examples:
        raise UsageError(f"split {split.name}: not the {split.examples} examples of the manifest")
    return labels


def resized(pixels: Any, labels: Any, size: int) -> tuple[Any, Any]:
    """Resize images, [B, H, W, C], on the CPU, and round them to their own dtype."""
    if pixels.shape[1:3] == (size, size):
        return pixels, labels
    smooth = tf.image.resize(pixels, (size, size), antialias=True)
    return tf.cast(tf.round(smooth), pixels.dtype), labels
