"""A shard directory: labels, windows, image format and splits of its manifest; random access.

Does not import TensorFlow, so an invalid directory fails immediately.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

import headct.manifest
from headct.errors import UsageError
from headct.json_documents import read_bytes
from headct.layout import (
    IMAGE_ID,
    INDEX,
    MANIFEST,
    UNLABELED_SPLIT,
    fold_number,
    fold_split,
)
from headct.manifest import ImageSpec, Manifest, ShardEntry, Window
from headct.reader import Shards

# Pipeline options in the manifest that affect the images, besides the windows; earlier versions
# have no orientation.
PREPROCESSING = ("voi", "hu", "image_size", "hu_repair", "image_id", "orientation")
# Name that selects all labeled splits together.
ALL_LABELED = "all"
# Name that selects all folds together: `all` without the hold-out.
ALL_FOLDS = "folds"


@dataclass(frozen=True)
class Split:
    """A named subset of the data: some of the manifest's shards."""

    name: str
    shards: tuple[ShardEntry, ...]

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(shard.examples for shard in self.shards)


def count(splits: Iterable[Split]) -> int:
    """Return the number of examples in `splits`."""
    return sum(split.examples for split in splits)


@dataclass(frozen=True)
class ShardDirectory:
    """A finished shard directory.

    Attributes:
        path: the local folder with its files.
        location: the path or URL that the user gave.
        manifest: the content of its manifest.
        manifest_sha256: of the file.
        lease: keeps the files of a cached copy while this object exists.
    """

    path: Path
    location: str
    manifest: Manifest
    manifest_sha256: str = ""
    lease: object = field(default=None, compare=False, repr=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of an example's values."""
        return tuple(self.manifest.labels)

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows, one per channel; none for Hounsfield units."""
        return tuple(self.manifest.windows)

    @property
    def image(self) -> ImageSpec:
        """Format of the stored images."""
        return self.manifest.image

    @property
    def splits(self) -> tuple[Split, ...]:
        """All splits."""
        entries = self.manifest.splits.items()
        return tuple(Split(name, tuple(entry.shards)) for name, entry in entries)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The pipeline options of the images that the manifest records."""
        options = self.manifest.options
        return {name: options[name] for name in PREPROCESSING if name in options}

    def split(self, name: str) -> Split:
        """Return the split called `name`, or all labeled splits or all folds as one.

        Raises:
            UsageError: there is no such split.
        """
        if name in (ALL_LABELED, ALL_FOLDS):
            several = self.labeled() if name == ALL_LABELED else self.folds()
            return Split(name, tuple(shard for split in several for shard in split.shards))
        for split in self.splits:
            if split.name == name:
                return split
        names = ", ".join(self.manifest.splits)
        raise UsageError(f"{self.location}: no split {name!r}; there are {names}")

    def parts(self, split: Split) -> tuple[Split, ...]:
        """Return the splits with examples that make up a split."""
        whole = {shard.file for shard in split.shards}
        return tuple(
            part
            for part in self.splits
            if part.examples and whole.issuperset(shard.file for shard in part.shards)
        )

    def first_shard(self) -> Split:
        """Return the first shard with examples, as a split.

        Raises:
            UsageError: no shard has any.
        """
        for split in self.splits:
            for shard in split.shards:
                if shard.examples:
                    return Split(split.name, (shard,))
        raise UsageError(f"{self.location}: no split has examples")

    def labeled(self) -> tuple[Split, ...]:
        """Return the folds and the hold-out, without empty ones."""
        return tuple(s for s in self.splits if s.name != UNLABELED_SPLIT and s.examples)

    @property
    def is_unlabeled(self) -> bool:
        """Whether no slice has a label; older versions list RSNA's labels even then."""
        entries = self.manifest.splits.values()
        counts = [(entry.label_counts or {}).get(name) for entry in entries for name in self.labels]
        return not self.labels or not (self.labeled() or any(number != 0 for number in counts))

    def folds(self) -> tuple[Split, ...]:
        """Return the cross-validation folds by number."""
        folds = [split for split in self.splits if fold_number(split.name) is not None]
        return tuple(sorted(folds, key=lambda split: fold_number(split.name) or 0))

    def training_and_validation(self, fold: int) -> tuple[tuple[Split, ...], Split]:
        """Return the folds to train on and the fold to validate on.

        Raises:
            UsageError: no such fold, no other fold, or no examples in either set.
        """
        folds = {split.name: split for split in self.folds()}
        if not folds:
            raise UsageError(f"{self.location}: no labeled folds, so nothing to train on")
        if fold_split(fold) not in folds:
            raise UsageError(f"--fold {fold}: there is no such fold; there are {', '.join(folds)}")
        validation = folds.pop(fold_split(fold))
        training = tuple(split for split in folds.values() if split.examples)
        for examples, use in ((validation.examples, "validate"), (count(training), "train")):
            if not examples:
                raise UsageError(f"--fold {fold}: no examples are left to {use} on")
        return training, validation

    def prevalence(self, fold: int) -> tuple[float, ...]:
        """Return the fraction of positives per label in the training folds.

        Raises:
            UsageError: the manifest lacks a count, and the index is missing or damaged.
        """
        training, _ = self.training_and_validation(fold)
        counts = [self.manifest.splits[split.name].label_counts or {} for split in training]
        if all(label in known for known in counts for label in self.labels):
            positives = [sum(known[label] for known in counts) for label in self.labels]
        else:
            positives = (self.examples(training).label_values > 0).sum().tolist()
        return tuple(number / count(training) for number in positives)

    def examples(self, splits: tuple[Split, ...]) -> Shards:
        """Return random access to some splits, in the order of their shards and records.

        Raises:
            UsageError: index.parquet is missing, damaged, or not of these shards.
        """
        every = Shards.read(self.path)
        shards = [shard for split in splits for shard in split.shards]
        rows = every.columns("shard", "record")
        number = rows["shard"].map({shard.file: i for i, shard in enumerate(shards)})
        order = np.lexsort((rows["record"], number))[: number.count()]  # others are NaN: last
        sizes = [shard.examples for shard in shards]
        if not (
            np.array_equal(number.iloc[order], np.repeat(np.arange(len(sizes)), sizes))
            and np.array_equal(rows["record"].iloc[order], np.concatenate([*map(np.arange, sizes)]))
        ):
            names = ", ".join(split.name for split in splits)
            raise UsageError(f"{self.path / INDEX}: has other examples of {names} than {MANIFEST}")
        return every.select(order)

    def find(self, split: Split, image_ids: Sequence[str]) -> Shards:
        """Return random access to the examples with some image ids, in the order of these.

        Raises:
            UsageError: as for `locate`.
        """
        every, rows = self.locate(split, image_ids)
        return every.select(rows)

    def locate(
        self, split: Split, image_ids: Sequence[str]
    ) -> tuple[Shards, npt.NDArray[np.int64]]:
        """Return random access to a split, and the rows of some image ids, in the order of these.

        Predictions have the order in which TensorFlow interleaves the shards.

        Raises:
            UsageError: the index is unusable, as for `examples`, or lacks an image.
        """
        every = self.examples((split,))
        ids = pd.Index(every.columns(IMAGE_ID)[IMAGE_ID])
        first = np.flatnonzero(~ids.duplicated())
        found = ids[first].get_indexer(pd.Index(image_ids))
        if (found < 0).any():
            raise UsageError(f"{self.path / INDEX}: lacks images of {split.name} in the shards")
        return every, first[found]

    def digest(self) -> str:
        """Return a SHA-256 of the content alone, not of date or software version."""
        content = {
            "labels": self.labels,
            "windows": [asdict(window) for window in self.windows],
            "image": asdict(self.image),
            "splits": {split.name: [s.sha256 for s in split.shards] for split in self.splits},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_shard_directory(path: Path, location: str = "") -> ShardDirectory:
    """Read and check the manifest of a local directory.

    Raises:
        UsageError: no directory, no manifest, or an invalid one.
    """
    location = location or str(path)
    if not is_folder(path):
        raise UsageError(f"{location}: no such shard directory; `make preprocess` writes one")
    try:
        data = read_bytes(path / MANIFEST)
    except FileNotFoundError:
        raise UsageError(f"{location}: no {MANIFEST}, so no finished shard directory") from None
    return parse_manifest(data, path, location)


def is_folder(path: Path) -> bool:
    """Return whether the path is a folder; False for invalid paths."""
    try:
        return path.is_dir()
    except OSError:  # the name is too long, or permission is denied
        return False


def parse_manifest(data: bytes, path: Path, location: str) -> ShardDirectory:
    """Return the shard directory that a manifest describes; its files are in `path`.

    Raises:
        UsageError: wrong version, an invalid value, or contradictory values.
    """
    manifest = headct.manifest.parse_manifest(data, f"{location}/{MANIFEST}")
    return ShardDirectory(path, location, manifest, hashlib.sha256(data).hexdigest())


def check_files(shards: ShardDirectory, splits: tuple[Split, ...]) -> None:
    """Compare the size of every shard on disk with the manifest.

    Raises:
        UsageError: a shard is missing or has another size.
    """
    for shard in (shard for split in splits for shard in split.shards):
        path = shards.path / shard.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
        if size != shard.bytes:
            raise UsageError(
                f"{path}: {size} bytes where the manifest has {shard.bytes};"
                " `make verify` says what else is wrong"
            )
