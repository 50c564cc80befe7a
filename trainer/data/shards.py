"""The labels, windows, image format and splits of a shard directory, from its manifest.

Does not import TensorFlow, so an invalid directory fails immediately.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import headct.manifest
from headct.errors import UsageError
from headct.json_documents import read_bytes
from headct.layout import (
    INDEX,
    MANIFEST,
    ORDINAL,
    UNLABELED_SPLIT,
    fold_number,
    fold_split,
)
from headct.manifest import ImageSpec, Manifest, Window
from headct.printable import LONGEST_SHOWN

# Pipeline options in the manifest that affect the images, besides the windows.
PREPROCESSING = ("voi", "hu", "image_size", "hu_repair", "image_id")


@dataclass(frozen=True)
class File:
    """The manifest's entry of a file next to it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """A TFRecord file and its entry in the manifest."""

    path: Path
    examples: int
    bytes: int
    sha256: str


# Name that selects all labeled splits together.
ALL_LABELED = "all"


@dataclass(frozen=True)
class Split:
    """A named subset of the data.

    Attributes:
        label_counts: positives per label, [L]; None if not in the manifest.
    """

    name: str
    examples: int
    patients: int
    label_counts: tuple[int | None, ...]
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class ShardDirectory:
    """A finished shard directory.

    Attributes:
        path: the local folder with its files.
        location: the path or URL that the user gave.
        index: the manifest's entry of index.parquet, if any.
        preprocessing: the pipeline options of the images that the manifest records.
        patient_ids: kind of patient ids; ids of the same kind are comparable between directories,
            except ordinals. Empty if the manifest does not say.
        image_ids: kind of image ids, likewise.
        lease: keeps the files of a cached copy while this object exists.
    """

    path: Path
    labels: tuple[str, ...]
    windows: tuple[Window, ...]
    image: ImageSpec
    splits: tuple[Split, ...]
    manifest_sha256: str
    location: str
    index: File | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    patient_ids: str = ""
    image_ids: str = ""
    lease: object = field(default=None, compare=False, repr=False)

    def split(self, name: str) -> Split:
        """Return the split called `name`, or all labeled splits as one.

        Raises:
            UsageError: there is no such split.
        """
        if name == ALL_LABELED:
            return _together(self.labeled())
        for each in self.splits:
            if each.name == name:
                return each
        names = ", ".join(each.name for each in self.splits)
        raise UsageError(f"{self.location}: no split {name!r}; there are {names}")

    def first_shard(self) -> Split:
        """Return the first shard with examples, as a split.

        Raises:
            UsageError: no shard has any.
        """
        for split in self.splits:
            for shard in split.shards:
                if shard.examples:
                    return replace(split, shards=(shard,), examples=shard.examples)
        raise UsageError(f"{self.location}: no split has examples")

    def labeled(self) -> tuple[Split, ...]:
        """Return the folds and the hold-out, without empty ones."""
        return tuple(s for s in self.splits if s.name != UNLABELED_SPLIT and s.examples)

    @property
    def is_unlabeled(self) -> bool:
        """Whether no slice has a label; older versions list RSNA's labels even then."""
        counts = [number for each in self.splits for number in each.label_counts]
        return not self.labels or not (self.labeled() or any(number != 0 for number in counts))

    def folds(self) -> tuple[Split, ...]:
        """Return the cross-validation folds by number."""
        numbers = {split.name: fold_number(split.name) for split in self.splits}
        folds = [split for split in self.splits if numbers[split.name] is not None]
        return tuple(sorted(folds, key=lambda split: numbers[split.name] or 0))

    def training_and_validation(self, fold: int) -> tuple[tuple[Split, ...], Split]:
        """Return the folds to train on and the fold to validate on.

        Raises:
            UsageError: no such fold, no other fold, or no examples in either set.
        """
        names = [each.name for each in self.folds()]
        if not names:
            raise UsageError(f"{self.location}: no labeled folds, so nothing to train on")
        if fold_split(fold) not in names:
            raise UsageError(f"--fold {fold}: there is no such fold; there are {', '.join(names)}")
        validation = self.split(fold_split(fold))
        others = (each for each in self.folds() if each is not validation)
        training = tuple(each for each in others if each.examples)
        for each, use in ((validation.examples, "validate"), (count(training), "train")):
            if not each:
                raise UsageError(f"--fold {fold}: no examples are left to {use} on")
        return training, validation

    def prevalence(self, fold: int) -> tuple[float, ...]:
        """Return the fraction of positives per label in the training folds.

        Raises:
            UsageError: counts are unknown; call `index.with_label_counts` first.
        """
        training, _ = self.training_and_validation(fold)
        shares = []
        for label, total in zip(self.labels, _add_counts(training), strict=True):
            if total is None:
                raise UsageError(f"{self.location}: no label_counts of {label} in {MANIFEST}")
            shares.append(total / count(training))
        return tuple(shares)

    def digest(self) -> str:
        """Return a SHA-256 of the content alone, not of date or software version."""
        content = {
            "labels": self.labels,
            "windows": [asdict(each) for each in self.windows],
            "image": asdict(self.image),
            "splits": {s.name: [each.sha256 for each in s.shards] for s in self.splits},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _together(splits: tuple[Split, ...]) -> Split:
    return Split(
        name=ALL_LABELED,
        examples=count(splits),
        patients=sum(each.patients for each in splits),  # no patient is in two splits
        label_counts=_add_counts(splits),
        shards=tuple(shard for each in splits for shard in each.shards),
    )


def _add_counts(splits: tuple[Split, ...]) -> tuple[int | None, ...]:
    """Return positives per label in all `splits`, [L]; None if a split has no count."""
    each = zip(*(split.label_counts for split in splits), strict=True)
    return tuple(None if None in counts else sum(filter(None, counts)) for counts in each)


def count(splits: tuple[Split, ...]) -> int:
    """Return the number of examples in `splits`."""
    return sum(each.examples for each in splits)


def read_shard_directory(path: Path, location: str = "", lease: object = None) -> ShardDirectory:
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
    return parse_manifest(data, path, location, lease)


def is_folder(path: Path) -> bool:
    """Return whether the path is a folder; False for invalid paths."""
    try:
        return path.is_dir()
    except OSError:  # the name is too long, or permission is denied
        return False


def parse_manifest(data: bytes, path: Path, location: str, lease: object = None) -> ShardDirectory:
    """Return the shard directory that a manifest describes; its files are in `path`.

    Raises:
        UsageError: wrong version, an invalid value, or contradictory values.
    """
    manifest = headct.manifest.parse_manifest(data, f"{location}/{MANIFEST}")
    index, options = manifest.files.get(INDEX), manifest.options
    return ShardDirectory(
        path=path,
        labels=tuple(manifest.labels),
        windows=tuple(manifest.windows),
        image=manifest.image,
        splits=tuple(_split(path, manifest, name) for name in manifest.splits),
        manifest_sha256=hashlib.sha256(data).hexdigest(),
        location=location,
        index=File(INDEX, index.bytes, index.sha256) if index else None,
        preprocessing={name: options[name] for name in PREPROCESSING if name in options},
        patient_ids=_kind_of_ids(options),
        image_ids=_kind_of_image_ids(options, manifest.image_id),
        lease=lease,
    )


def _split(path: Path, manifest: Manifest, name: str) -> Split:
    entry = manifest.splits[name]
    counts = entry.label_counts or {}
    return Split(
        name=name,
        examples=entry.examples,
        patients=entry.patients,
        label_counts=tuple(counts.get(label) for label in manifest.labels),
        shards=tuple(
            Shard(path / shard.file, shard.examples, shard.bytes, shard.sha256)
            for shard in entry.shards
        ),
    )


def _kind_of_ids(options: dict[str, Any]) -> str:
    """Return the kind of DICOM header ids; every hash key is a kind of its own."""
    kind, key = options.get("identifiers"), options.get("identifier_key_check")
    if kind == "hash":
        return f"hash {key}"[:LONGEST_SHOWN] if key else ORDINAL
    return kind if kind in ("keep", ORDINAL) else ""


def _kind_of_image_ids(options: dict[str, Any], identity: Any) -> str:
    """Return the kind of image ids; `identity` is the source of unique ids."""
    kind = options.get("image_id")
    if kind == "auto" and identity == "sop_instance_uid":
        of_header = _kind_of_ids(options)
        return of_header if of_header != "keep" else identity
    if kind == "auto":
        return "file_name"
    return kind if kind in ("file_name", "sop_instance_uid", ORDINAL) else ""


def check_files(splits: tuple[Split, ...]) -> None:
    """Compare the size of every shard on disk with the manifest.

    Raises:
        UsageError: a shard is missing or has another size.
    """
    for shard in (shard for split in splits for shard in split.shards):
        try:
            size = shard.path.stat().st_size
        except FileNotFoundError:
            raise UsageError(f"{shard.path}: this shard is missing") from None
        except OSError as error:
            raise UsageError(f"{shard.path}: cannot be read ({error.strerror})") from None
        if not shard.path.is_file():
            raise UsageError(f"{shard.path}: must be a file")
        if size != shard.bytes:
            raise UsageError(
                f"{shard.path}: {size} bytes where the manifest has {shard.bytes};"
                " `make verify` says what else is wrong"
            )
