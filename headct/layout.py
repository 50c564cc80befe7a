"""The shard directory, the contract with whoever reads it; and the names of an unfinished one.

Every file, split, feature and column is named here, and only here; `tests/test_contract.py` checks
a directory that was written and the README's tables against this module.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from headct.printable import quoted

SCHEMA_VERSION = 1  # of the manifest; bump when existing readers would misread it

DATASET = "ich"
FILE_FORMAT = "tfrecord"
# How TensorFlow Datasets makes a shard's name of the above.
SHARD_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"

MANIFEST = "manifest.json"  # written last: a directory that has it is complete
INDEX = "index.parquet"
REJECTS = "rejects.jsonl"
FEATURES = "features.json"
DATASET_INFO = "dataset_info.json"
FILES = (MANIFEST, INDEX, REJECTS, FEATURES, DATASET_INFO)  # beside the shards
CARD = "report.html"  # not reproducible (date, speed), so not in the digest; may be absent

ORDINAL = "ordinal"  # a kind of ids: numbers that mean nothing outside their directory

UNLABELED_SPLIT = "test"
UNLABELED = -1  # in place of a missing label
HOLDOUT_SPLIT = "holdout"

# The manifest's keys: what is in the directory, and how it came to be.
MANIFEST_CONTENT = (
    *("schema_version", "labels", "windows", "image", "counts", "splits", "files"),
    *("image_id", "labels_joined_by", "notes"),
)
MANIFEST_ORIGIN = ("created", "software", "options", "run", "digest")


def fold_split(number: int) -> str:
    """The name of a cross-validation fold, numbered from 0."""
    return f"fold{number}"


def fold_number(split: str) -> int | None:
    """Return a fold's number; None for other splits, whose labels may be missing."""
    match = re.fullmatch(r"fold(\d+)", split)
    return int(match[1]) if match else None


_SHARD_NAME = re.compile(
    rf"{DATASET}-(fold(?:0|[1-9]\d?)|{HOLDOUT_SPLIT}|{UNLABELED_SPLIT})"
    rf"\.{FILE_FORMAT}-(\d{{5,9}})-of-(\d{{5,9}})",
    re.ASCII,
)


@dataclass(frozen=True)
class ShardFile:
    """A shard's place in its split.

    Attributes:
        split: its name.
        number: of the shard, from 0.
        of: how many shards the split has.
    """

    split: str
    number: int
    of: int

    @property
    def name(self) -> str:
        """The shard's file name, as TensorFlow Datasets expects it."""
        return f"{DATASET}-{self.split}.{FILE_FORMAT}-{self.number:05d}-of-{self.of:05d}"

    @classmethod
    def parse(cls, name: str) -> "ShardFile":
        """Return the shard of a file name.

        Raises:
            ValueError: `name` makes no such file name.
        """
        found = _SHARD_NAME.fullmatch(name)
        if found:
            shard = cls(found[1], int(found[2]), int(found[3]))
            if shard.number < shard.of and shard.name == name:
                return shard
        raise ValueError(f"not the name of a shard: {name}")


class Feature(NamedTuple):
    """A feature of an example.

    Attributes:
        name: of the feature.
        dtype: "PNG" or "string" (one value of bytes), "int64" or "float32".
        shape: of its values; "labels" stands for the number of labels.
        meaning: with its unit.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str


IMAGE, IMAGE_ID, LABEL, POSITION = "image", "image_id", "label", "position_z"
PATIENT_ID, STUDY_ID, SERIES_ID = ID_COLUMNS = ("patient_id", "study_id", "series_id")
EXAMPLE_FEATURES = (
    Feature(IMAGE, "PNG", (), "uint8 [height, width, windows], or with `--hu` uint16: HU + 1024"),
    Feature(IMAGE_ID, "string", (), "the file's name without suffix, or by `--image_id`"),
    Feature(PATIENT_ID, "string", (), "ordinal, hash or original, by `--identifiers`"),
    Feature(STUDY_ID, "string", (), "the same"),
    Feature(SERIES_ID, "string", (), "the same"),
    Feature(LABEL, "int64", ("labels",), "1 or 0, in the manifest's order; none without labels"),
    Feature(POSITION, "float32", (), "z of Image Position (Patient), mm; NaN if absent"),
    Feature(
        "pixel_spacing", "float32", (2,), "between rows and columns of the image, mm; NaN if absent"
    ),
)


class Column(NamedTuple):
    """A column of the index.

    Attributes:
        name: of the column; one that stands for a column per label ends in `LABEL`.
        dtype: by Arrow's name.
        meaning: with its unit.
    """

    name: str
    dtype: str
    meaning: str


MAX_LABELS = 1000
MAX_LABEL_LENGTH = 100
LABEL_PREFIX = "label_"
LABEL_PLACEHOLDER = "LABEL"  # in a column's name, in place of a label

INDEX_COLUMNS = (
    Column("image_id", "string", "as in the example"),
    Column("split", "string", "`fold0` and so on, `holdout`, or `test` if unlabeled"),
    Column("shard", "string", "the shard's file name"),
    Column("record", "int32", "number of the record in its shard, from 0"),
    Column("offset", "int64", "of the record's frame in the shard, bytes"),
    Column("bytes", "int32", "size of the record with its frame"),
    Column("image_offset", "int64", "of the PNG in the shard, bytes"),
    Column("image_bytes", "int32", "size of the PNG"),
    Column(f"{LABEL_PREFIX}{LABEL_PLACEHOLDER}", "int8", "1 or 0; a column for each label, if any"),
    Column("patient_id", "string", "as in the example"),
    Column("study_id", "string", "as in the example"),
    Column("series_id", "string", "as in the example"),
    Column("position_z", "double", "as in the example; null if absent"),
    Column("row_spacing", "double", "between rows of the image, mm; null if absent"),
    Column("column_spacing", "double", "between columns of the image, mm; null if absent"),
    Column("rows", "int32", "height of the file's matrix, pixels"),
    Column("columns", "int32", "width of the file's matrix, pixels"),
    Column("transfer_syntax", "string", "its UID"),
    Column("repair", "string", "of the stored values: `none`, or which"),
    Column("resized", "bool", "whether the file's matrix had another size than the image"),
    Column("source", "string", "the file, relative to the input"),
)
REJECT_COLUMNS = ("source", "image_id", "reason", "detail")  # texts, of a line of rejects


def check_label_names(names: Sequence[str]) -> None:
    """Raise a ValueError, which says what is right, for names that labels cannot have.

    They end up in columns, file formats, plots and on the terminal, and some of these make no
    difference between upper and lower case.
    """
    if len(names) > MAX_LABELS:
        raise ValueError(f"there are {len(names)} classes; want at most {MAX_LABELS}")
    seen: dict[str, str] = {}
    for name in names:
        if not 0 < len(name) <= MAX_LABEL_LENGTH or not name.isprintable() or name != name.strip():
            raise ValueError(
                f"a class is called {quoted(name)}; want 1 to {MAX_LABEL_LENGTH} printable "
                "characters without a space at either end"
            )
        if name.casefold() in seen:
            other = seen[name.casefold()]
            raise ValueError(f"two classes are called {other!r} and {name!r}; want different names")
        seen[name.casefold()] = name


def count_input(counts: Mapping[str, Any]) -> int:
    """How many files the input has, by a manifest's counts; `files_seen` is without skipped ones.

    Older manifests count no skipped files.
    """
    return int(counts.get("files_seen", 0)) + int(counts.get("unlabeled_skipped", 0))


def ordinal(noun: str, number: int) -> str:
    """Return an id that leads nowhere: `patient_000001` for number 0 of `patient`."""
    return f"{noun}_{number + 1:06d}"


def label_column(label: str) -> str:
    """The column of a label."""
    return f"{LABEL_PREFIX}{label}"


def labels_of(columns: Iterable[str]) -> list[str]:
    """The labels that some columns are of, in their order."""
    return [name.removeprefix(LABEL_PREFIX) for name in columns if name.startswith(LABEL_PREFIX)]


def index_columns(labels: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and type of each column of an index with some labels."""
    names = [*labels]
    for column in INDEX_COLUMNS:
        if column.name == label_column(LABEL_PLACEHOLDER):
            yield from ((label_column(label), column.dtype) for label in names)
        else:
            yield column.name, column.dtype


# What follows is of an output folder that is not finished, and of no concern to readers.
# `UNFINISHED` holds what steps leave to others until then.
UNFINISHED = ".unfinished"
PLAN = f"{UNFINISHED}/plan.json"
STARTS = f"{UNFINISHED}/starts.json"  # of runs
JOB = f"{UNFINISHED}/job.json"  # that writes the folder, on a runner that outlives its launcher
OPTIONS = f"{UNFINISHED}/options.json"  # that the folder was begun with
REFUSAL = f"{UNFINISHED}/refusal.json"  # why the run ended
CARD_ATTEMPTS = f"{UNFINISHED}/card_attempts"  # how often the card was begun
RESERVE = f"{UNFINISHED}/reserve"  # room on a full disk for the word of why

# Tables in it; see `unfinished`.
REJECTS_TABLE = "rejects"
LABELS_TABLE = "labels"
# Shards in one table of the plan. A task reads all of it for the sake of one: 1 % of what the
# shard's files have, and an eighth of the requests that planning needs.
SHARDS_A_PART = 8


def listing_table(part: int) -> str:
    """A part of the input's listing."""
    return f"listing/{part:05d}"


def inventory_table(part: int) -> str:
    """The same part of the inventory."""
    return f"inventory/{part:05d}"


def plan_table(part: int) -> str:
    """The slices of some shard files, a record batch each."""
    return f"plan/{part:05d}"


def written_table(shard: str) -> str:
    """The rows of a shard file's index, and what else is to be said of it."""
    return f"written/{shard}"
