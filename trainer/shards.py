"""What a shard directory says of itself: labels, windows, image, splits.

Reads the manifest and the index, without TensorFlow: a wrong directory is known at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import BadInput

SCHEMA_VERSION = 1
FOLD = re.compile(r"fold(\d+)")


@dataclass(frozen=True)
class Window:
    """A display window in Hounsfield units; without numbers where each file brought its own."""

    name: str
    center: float | None
    width: float | None


@dataclass(frozen=True)
class ImageSpec:
    """The stored image: [height, width, channels] of `dtype` (uint8 or uint16).

    A uint16 image holds Hounsfield units: HU = value + hu_offset.
    """

    height: int
    width: int
    channels: int
    dtype: str
    hu_offset: float

    @property
    def is_hounsfield(self) -> bool:
        """Whether windows are still to be chosen."""
        return self.dtype == "uint16"


@dataclass(frozen=True)
class Shard:
    """One TFRecord file and what the manifest says is in it."""

    path: Path
    examples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """A named part of the data; `label_counts` is in the order of the labels."""

    name: str
    examples: int
    patients: int
    label_counts: tuple[int, ...]
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class ShardDirectory:
    """A finished shard directory."""

    path: Path
    labels: tuple[str, ...]
    windows: tuple[Window, ...]
    image: ImageSpec
    splits: tuple[Split, ...]
    manifest_sha256: str

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
            BadInput: there is none.
        """
        for each in self.splits:
            if each.name == name:
                return each
        names = ", ".join(each.name for each in self.splits)
        raise BadInput(f"{self.path}: no split {name!r}; there are {names}")

    def folds(self) -> tuple[Split, ...]:
        """The cross-validation folds, by number."""
        found = [(FOLD.fullmatch(each.name), each) for each in self.splits]
        numbered = [(int(match.group(1)), each) for match, each in found if match]
        return tuple(each for _, each in sorted(numbered, key=lambda pair: pair[0]))

    def training_and_validation(self, fold: int) -> tuple[tuple[Split, ...], Split]:
        """The folds to train on, and the one to validate on.

        Raises:
            BadInput: there is no such fold, or no other, or one of them is empty.
        """
        names = [each.name for each in self.folds()]
        if not names:
            raise BadInput(f"{self.path}: no labelled folds, so nothing to train on")
        if f"fold{fold}" not in names:
            raise BadInput(f"--fold {fold}: there is no such fold; there are {', '.join(names)}")
        validation = self.split(f"fold{fold}")
        others = (each for each in self.folds() if each is not validation)
        training = tuple(each for each in others if each.examples)
        for each, use in ((validation.examples, "validate"), (count(training), "train")):
            if not each:
                raise BadInput(f"--fold {fold}: no examples are left to {use} on")
        return training, validation

    def prevalence(self, fold: int) -> tuple[float, ...]:
        """The share of positives of each label in what is trained on without `fold`."""
        training, _ = self.training_and_validation(fold)
        totals = [sum(counts) for counts in zip(*(s.label_counts for s in training), strict=True)]
        return tuple(total / count(training) for total in totals)

    def digest(self) -> str:
        """A sha256 of what is in the directory, whenever and by whatever it was made."""
        content = {
            "labels": self.labels,
            "windows": [asdict(each) for each in self.windows],
            "image": asdict(self.image),
            "splits": {s.name: [each.sha256 for each in s.shards] for s in self.splits},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def count(splits: tuple[Split, ...]) -> int:
    """Examples in all of `splits`."""
    return sum(each.examples for each in splits)


def read_shard_directory(path: Path) -> ShardDirectory:
    """Reads and checks the manifest.

    Raises:
        BadInput: no directory, no manifest, or one of another schema.
    """
    if not path.is_dir():
        raise BadInput(f"{path}: no such shard directory; `make preprocess` writes one")
    try:
        text = (path / "manifest.json").read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: no manifest.json, so no finished shard directory") from None
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{path}/manifest.json: not JSON ({error})") from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise BadInput(
            f"{path}/manifest.json: schema_version {version!r}; this trainer reads {SCHEMA_VERSION}"
        )
    try:
        return parse_manifest(path, manifest, hashlib.sha256(text).hexdigest())
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}/manifest.json: incomplete ({error!r})") from None


def parse_manifest(path: Path, manifest: dict[str, Any], sha256: str) -> ShardDirectory:
    """Makes a ShardDirectory of a manifest of the right version.

    Raises:
        KeyError, TypeError, ValueError: a key is missing, or not of its type.
        BadInput: the image is of a kind that cannot be read.
    """
    image = manifest["image"]
    spec = ImageSpec(
        height=int(image["height"]),
        width=int(image["width"]),
        channels=int(image["channels"]),
        dtype=str(image.get("dtype", "uint8")),
        # Null where the images are windowed already.
        hu_offset=float(image.get("hu_offset") or 0),
    )
    if spec.dtype not in ("uint8", "uint16") or not 1 <= spec.channels <= 4:
        raise BadInput(f"{path}: images of {spec.channels} channels of {spec.dtype} are not known")
    labels = tuple(str(each) for each in manifest["labels"])
    windows = tuple(parse_window(each) for each in manifest["windows"])
    splits = (parse_split(path, name, each, labels) for name, each in manifest["splits"].items())
    return ShardDirectory(path, labels, windows, spec, tuple(splits), sha256)


def parse_window(window: dict[str, Any]) -> Window:
    """Makes a Window of its entry in the manifest."""
    center, width = (
        None if window[key] is None else float(window[key]) for key in ("center", "width")
    )
    return Window(str(window["name"]), center, width)


def parse_split(path: Path, name: str, split: dict[str, Any], labels: tuple[str, ...]) -> Split:
    """Makes a Split of its entry in the manifest."""
    shards = tuple(
        Shard(path / each["file"], int(each["examples"]), int(each["bytes"]), str(each["sha256"]))
        for each in split["shards"]
    )
    counts = split.get("label_counts") or {}
    return Split(
        name=name,
        examples=int(split["examples"]),
        patients=int(split["patients"]),
        label_counts=tuple(int(counts.get(label, 0)) for label in labels),
        shards=shards,
    )


def check_files(splits: tuple[Split, ...]) -> None:
    """Compares each shard's size on disk with the manifest.

    Raises:
        BadInput: a shard is missing or of another size.
    """
    for shard in (shard for split in splits for shard in split.shards):
        try:
            size = shard.path.stat().st_size
        except FileNotFoundError:
            raise BadInput(f"{shard.path}: this shard is missing") from None
        if size != shard.bytes:
            raise BadInput(
                f"{shard.path}: {size} bytes where the manifest has {shard.bytes};"
                " `make verify` says what else is wrong"
            )
