"""Decoded, resized images kept between epochs: in memory, or in a file mapped into it.

One uint8 (or uint16) array a split, so that runs on other folds find on disk what an
earlier one left. A value differs by at most half a gray level from the one that resizing
in the model gives, because it is rounded once more.
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
# What a cache may take of the memory that is free when it is made.
_SHARE = 0.8
_DECODED_AT_ONCE = 8

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class ImageCache:
    """The images and labels of some splits, one after the other.

    Attributes:
        images: [n, S, S, C], uint8 or uint16: all in one array, or a memory-mapped one a split.
        labels: float32 [N, L] of all.
    """

    images: tuple[Pixels, ...]
    labels: npt.NDArray[np.float32]

    def take(self, rows: npt.NDArray[np.int64]) -> Pixels:
        """Copies the images of `rows`, [B] → [B, S, S, C]."""
        starts = np.cumsum([0, *(len(each) for each in self.images)])
        parts = np.searchsorted(starts, rows, side="right") - 1
        taken = np.empty((len(rows), *self.images[0].shape[1:]), self.images[0].dtype)
        for part in np.unique(parts):
            mine = parts == part
            taken[mine] = self.images[part][rows[mine] - starts[part]]
        return taken


def cache_bytes(splits: tuple[Split, ...], image: ImageSpec, size: int) -> int:
    """Bytes of the images of `splits`, resized."""
    return count(splits) * size * size * image.channels * np.dtype(image.dtype).itemsize


def check_memory(cache: str, needed: int, free: int, instead: str) -> None:
    """Compares what a cache needs with what there is.

    Raises:
        UsageError: it needs more than its share.
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
    """Decodes and resizes all images of `splits`, or maps the files that hold them already.

    The files are in `folder`; None keeps the images in memory. `on_image` hears how many
    are done.

    Raises:
        UsageError: a shard is damaged, or there is too little memory or disk space.
    """
    if folder is not None:
        return _map_splits(splits, image, size, folder, on_image)
    needed = cache_bytes(splits, image, size)
    check_memory("ram", needed, psutil.virtual_memory().available, "disk")
    return _read_splits(splits, image, size, on_image)


@dataclass(frozen=True)
class _Offset:
    """Passes a number on, `before` added."""

    hear: Callable[[int], None]
    before: int

    def __call__(self, done: int) -> None:
        """Passes it on."""
        self.hear(self.before + done)


def _read_splits(
    splits: tuple[Split, ...], image: ImageSpec, size: int, on_image: Callable[[int], None]
) -> ImageCache:
    """All images in one array in memory, which a device can take as it is."""
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
    """The images of each split in a file of its own."""
    parts, done = [], 0
    for split in splits:
        parts.append(_map_split(split, image, size, folder, _Offset(on_image, done)))
        done += split.examples
    return ImageCache(tuple(each for each, _ in parts), np.concatenate([each for _, each in parts]))


def _map_split(
    split: Split, image: ImageSpec, size: int, folder: Path, on_image: Callable[[int], None]
) -> tuple[Pixels, npt.NDArray[np.float32]]:
    """Images and labels of a split, in two files named after its content and the size."""
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
    """Takes a file's space at once: a disk that is full while pages are written kills a process.

    Raises:
        OSError: there is too little.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _check_disk(folder: Path, needed: int) -> None:
    """Compares the space that a split takes with what is free.

    Raises:
        UsageError: there is too little.
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
    """Decodes a split into `images`, in parallel; its labels [n, L].

    Raises:
        UsageError: a shard is damaged, or holds another number of examples.
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
            # The last batch is filled up.
            images[done:end], labels[done:end] = pixels[: len(classes)], classes
            done = end
            on_image(done)
    if done != split.examples:
        raise UsageError(f"split {split.name}: not the {split.examples} examples of the manifest")
    return labels


def resized(pixels: Any, labels: Any, size: int) -> tuple[Any, Any]:
    """Resizes images, [B, H, W, C], on the processor, and rounds them to their own type."""
    if pixels.shape[1:3] == (size, size):
        return pixels, labels
    smooth = tf.image.resize(pixels, (size, size), antialias=True)
    return tf.cast(tf.round(smooth), pixels.dtype), labels
