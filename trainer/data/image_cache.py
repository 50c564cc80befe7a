"""Cache of decoded, resized images between epochs, in memory or memory-mapped files.

One uint8 (or uint16) array per split, so runs on other folds can reuse the files. Values
differ by at most half a gray level from resizing in the model: they are rounded once more.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import psutil
import tensorflow as tf

from headct.errors import UsageError
from headct.layout import IMAGE, LABEL
from trainer.data.damage import damage_reported
from trainer.data.input_pipeline import CORES, ExampleReader, as_written, read_records, with_options
from trainer.data.shards import ShardDirectory, Split, count
from trainer.files import remove_unfinished, write_whole

GIGABYTE = 1e9
# Fraction of the free memory that a cache may use.
MEMORY_SHARE = 0.8
_DECODED_AT_ONCE = 8

Pixels = npt.NDArray[Any]
Labels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImageCache:
    """The images and labels of some splits, in order.

    Attributes:
        images: [n, S, S, C], uint8 or uint16: one array, or one memory-mapped array per split;
            none if the images are elsewhere.
        labels: float32 [N, L].
        around: rows of the slices of each sample (`Neighbors.rows`), [N, slices]; None: a sample is
            a slice.
    """

    images: tuple[Pixels, ...]
    labels: Labels
    around: npt.NDArray[np.int64] | None = None

    def samples(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows of the images of samples, [...] → [...] or [..., slices]."""
        return rows if self.around is None else self.around[rows]

    def take(self, rows: npt.NDArray[np.int64]) -> Pixels:
        """Copy the images of `rows`, [...] → [..., S, S, C]."""
        starts = np.cumsum([0, *(len(each) for each in self.images)])
        parts = np.searchsorted(starts, rows, side="right") - 1
        taken = np.empty((*rows.shape, *self.images[0].shape[1:]), self.images[0].dtype)
        for part in np.unique(parts):
            mine = parts == part
            taken[mine] = self.images[part][rows[mine] - starts[part]]
        return taken


def cache_bytes(shards: ShardDirectory, examples: int, size: int) -> int:
    """Return the bytes of some resized images."""
    image = shards.image
    return examples * size * size * image.channels * np.dtype(image.dtype).itemsize


def check_memory(cache: str, needed: int, free: int, instead: str) -> None:
    """Compare the size of a cache with the free memory.

    Raises:
        UsageError: the cache is too large.
    """
    if needed > MEMORY_SHARE * free:
        raise UsageError(
            f"--cache {cache}: needs {needed / GIGABYTE:.1f} GB of {free / GIGABYTE:.1f} GB"
            f" that are free; use --cache {instead} or a smaller --image_size"
        )


class Images(Protocol):
    """Where a cache's images are put, by slices of rows: an array, or a device's memory."""

    def __setitem__(self, rows: slice, images: Any, /) -> None: ...


class CacheWriter:
    """Fills caches with the images of a shard directory.

    Args:
        shards: the directory.
        size: side of the resized images, pixels.
        folder: for files; None keeps the images in memory.
        on_image: gets the number of finished images.
        crop: crops images [B, H, W, C] to the head, float [B, size, size, C]; None: images are
            resized as a whole.
    """

    def __init__(
        self,
        shards: ShardDirectory,
        size: int,
        folder: Path | None,
        on_image: Callable[[int], None],
        crop: Callable[[Pixels], Any] | None = None,
    ) -> None:
        self.shards, self.size, self.folder, self.on_image = shards, size, folder, on_image
        self.crop = crop
        self.done = 0

    def fill(self, splits: Sequence[Split], elsewhere: Images | None = None) -> ImageCache:
        """Decode and resize all images of `splits`, or map existing files.

        Args:
            splits: their examples, in order.
            elsewhere: gets the images, a few at a time, in place of an array of this process.

        Raises:
            UsageError: a shard is damaged, or memory or disk space is too small.
        """
        if self.folder is not None:
            mapped = [self._map_split(self.folder, split) for split in splits]
            images, classes = zip(*mapped, strict=True)
            return ImageCache(images, np.concatenate(classes))
        pixels: tuple[Pixels, ...] = ()
        if elsewhere is None:
            needed = cache_bytes(self.shards, count(splits), self.size)
            check_memory("ram", needed, psutil.virtual_memory().available, "disk")
            pixels = (np.empty(self._shape(count(splits)), self.shards.image.dtype),)
        begins = np.cumsum([0, *(split.examples for split in splits)])
        labels = [
            self._decode_into(elsewhere or pixels[0], split, int(begin))
            for split, begin in zip(splits, begins, strict=False)
        ]
        return ImageCache(pixels, np.concatenate(labels))

    def _shape(self, examples: int) -> tuple[int, ...]:
        return (examples, self.size, self.size, self.shards.image.channels)

    def _map_split(self, folder: Path, split: Split) -> tuple[Pixels, Labels]:
        """Map the images and labels of a split: two files named by content and size."""
        content = "".join(shard.sha256 for shard in split.shards)
        name = f"{hashlib.sha256(content.encode()).hexdigest()[:16]}-{self.size}"
        name += "-head" if self.crop else ""
        pixels, labels = folder / f"{name}-images.npy", folder / f"{name}-labels.npy"
        remove_unfinished(folder)
        if not labels.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            needed = cache_bytes(self.shards, split.examples, self.size)
            free = psutil.disk_usage(os.fspath(folder)).free
            if needed > free:
                raise UsageError(
                    f"--cache disk: {folder} has {free / GIGABYTE:.1f} GB free of the"
                    f" {needed / GIGABYTE:.1f} GB needed; name another --cache_dir"
                )
            found: list[Labels] = []

            def write(unfinished: Path) -> None:
                dtype = np.dtype(self.shards.image.dtype)
                shape = self._shape(split.examples)
                images = np.lib.format.open_memmap(unfinished, "w+", dtype, shape)
                # A disk that fills up during page writes would kill the process.
                if hasattr(os, "posix_fallocate"):
                    with unfinished.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, unfinished.stat().st_size)
                found.append(self._decode_into(images, split))
                images.flush()

            write_whole(pixels, write)
            write_whole(labels, lambda unfinished: np.save(unfinished, found[0]))
        return np.load(pixels, mmap_mode="r"), np.load(labels)

    def _decode_into(self, images: Images, split: Split, begin: int = 0) -> Labels:
        """Decode a split into `images` from row `begin` on, in parallel; return its labels, [n, L].

        Raises:
            UsageError: a shard is damaged, or has a wrong number of examples.
        """
        reader = ExampleReader(self.shards, _DECODED_AT_ONCE)
        files = [str(self.shards.path / shard.file) for shard in split.shards if shard.examples]

        def read(records: Any) -> tuple[Any, Any]:
            examples = reader(records)
            image = examples[IMAGE]
            return (image if self.crop else resized(image, self.size)), examples[LABEL]

        batches = read_records(files).batch(_DECODED_AT_ONCE).map(as_written(read), CORES)
        labels = np.zeros((split.examples, len(self.shards.labels)), np.float32)
        done = 0
        with damage_reported(self.shards, (split,)):
            for pixels, classes in with_options(batches.prefetch(CORES)).as_numpy_iterator():
                end = done + len(classes)
                if end > split.examples:
                    break
                if self.crop:  # here, because Keras may compute with JAX
                    pixels = np.rint(np.asarray(self.crop(pixels)))
                # the last batch is padded
                images[begin + done : begin + end] = pixels[: len(classes)]
                labels[done:end] = classes
                done = end
                self.on_image(self.done + done)
        if done != split.examples:
            raise UsageError(
                f"split {split.name}: not the {split.examples} examples of the manifest"
            )
        self.done += done
        return labels


def resized(pixels: Any, size: int) -> Any:
    """Resize images, [B, H, W, C], on the CPU, and round them to their own dtype."""
    if pixels.shape[1:3] == (size, size):
        return pixels
    smooth = tf.image.resize(pixels, (size, size), antialias=True)
    return tf.cast(tf.round(smooth), pixels.dtype)
