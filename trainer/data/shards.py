"""What a shard directory says of itself: labels, windows, image, splits.

Reads the manifest and the index, without TensorFlow: a wrong directory is known at once.
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

# Options of the pipeline that an image depends on, beside the windows, in the manifest.
PREPROCESSING = ("voi", "hu", "image_size", "hu_repair", "image_id")


@dataclass(frozen=True)
class File:
    """What the manifest says of a file that lies beside it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One TFRecord file and what the manifest says is in it."""

    path: Path
    examples: int
    bytes: int
    sha256: str


# What stands for all labeled splits together, where a split is asked for.
ALL_LABELED = "all"


@dataclass(frozen=True)
class Split:
    """A named part of the data.

    Attributes:
        label_counts: positives of each label, [L]; None where the manifest has no number.
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
        path: the folder on this machine that its files are read from.
        location: the path or URL that the user gave.
        index: what the manifest says of index.parquet, if it says anything.
        preprocessing: by which options of the pipeline the images were made, as far as it says.
        patient_ids: of what kind they are; the ids of two directories of one kind can be compared,
            but for ordinals. Empty where the manifest does not say.
        image_ids: the same of images.
        lease: of a copy, keeps its files as long as it exists.
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
        """The split called `name`, or all labeled ones as one.

        Raises:
            UsageError: there is none.
        """
        if name == ALL_LABELED:
            return _together(self.labeled())
        for each in self.splits:
            if each.name == name:
                return each
        names = ", ".join(each.name for each in self.splits)
        raise UsageError(f"{self.location}: no split {name!r}; there are {names}")

    def first_shard(self) -> Split:
        """The first shard that has examples, as a split.

        Raises:
            UsageError: none has.
        """
        for split in self.splits:
            for shard in split.shards:
                if shard.examples:
                    return replace(split, shards=(shard,), examples=shard.examples)
        raise UsageError(f"{self.location}: no split has examples")

    def labeled(self) -> tuple[Split, ...]:
        """The folds and the hold-out, as far as they have examples."""
        return tuple(s for s in self.splits if s.name != UNLABELED_SPLIT and s.examples)

    @property
    def is_unlabeled(self) -> bool:
        """Whether no slice has a label; earlier versions name RSNA's labels all the same."""
        counts = [number for each in self.splits for number in each.label_counts]
        return not self.labels or not (self.labeled() or any(number != 0 for number in counts))

    def folds(self) -> tuple[Split, ...]:
        """The cross-validation folds, by number."""
        numbers = {split.name: fold_number(split.name) for split in self.splits}
        folds = [split for split in self.splits if numbers[split.name] is not None]
        return tuple(sorted(folds, key=lambda split: numbers[split.name] or 0))

    def training_and_validation(self, fold: int) -> tuple[tuple[Split, ...], Split]:
        """The folds to train on, and the one to validate on.

        Raises:
            UsageError: there is no such fold, or no other, or one of them is empty.
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
        """The share of positives of each label in what is trained on without `fold`.

        Raises:
            UsageError: the positives are not known; `index.with_label_counts` finds them.
        """
        training, _ = self.training_and_validation(fold)
        shares = []
        for label, total in zip(self.labels, _add_counts(training), strict=True):
            if total is None:
                raise UsageError(f"{self.location}: no label_counts of {label} in {MANIFEST}")
            shares.append(total / count(training))
        return tuple(shares)

    def digest(self) -> str:
        """A sha256 of what is in the directory, whenever and by whatever it was made."""
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
        patients=sum(each.patients for each in splits),  # none is in two
        label_counts=_add_counts(splits),
        shards=tuple(shard for each in splits for shard in each.shards),
    )


def _add_counts(splits: tuple[Split, ...]) -> tuple[int | None, ...]:
    """Positives of each label in all of `splits`, [L]; None where a split has no number."""
    each = zip(*(split.label_counts for split in splits), strict=True)
    return tuple(None if None in counts else sum(filter(None, counts)) for counts in each)


def count(splits: tuple[Split, ...]) -> int:
    """Examples in all of `splits`."""
    return sum(each.examples for each in splits)


def read_shard_directory(path: Path, location: str = "", lease: object = None) -> ShardDirectory:
    """Reads and checks the manifest of a directory on this machine.

    Raises:
        UsageError: no directory, no manifest, or one that is wrong.
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
    """Whether this is a folder; what cannot be a path is none."""
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, or a folder that may not be searched
        return False


def parse_manifest(data: bytes, path: Path, location: str, lease: object = None) -> ShardDirectory:
    """Return the shard directory that a manifest describes; its files lie in `path`.

    Raises:
        UsageError: it is of another version, a value is wrong, or two contradict each other.
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
    """What the pipeline wrote for ids of a header; hashes of two keys are of two kinds."""
    kind, key = options.get("identifiers"), options.get("identifier_key_check")
    if kind == "hash":
        return f"hash {key}"[:LONGEST_SHOWN] if key else ORDINAL
    return kind if kind in ("keep", ORDINAL) else ""


def _kind_of_image_ids(options: dict[str, Any], identity: Any) -> str:
    """What the pipeline wrote for ids of images; `identity` is what tells them apart."""
    kind = options.get("image_id")
    if kind == "auto" and identity == "sop_instance_uid":
        of_header = _kind_of_ids(options)
        return of_header if of_header != "keep" else identity
    if kind == "auto":
        return "file_name"
    return kind if kind in ("file_name", "sop_instance_uid", ORDINAL) else ""


def check_files(splits: tuple[Split, ...]) -> None:
    """Compares each shard's size on disk with the manifest.

    Raises:
        UsageError: a shard is missing or of another size.
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
