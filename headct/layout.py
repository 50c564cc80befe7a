"""Names in a shard directory, the contract with its readers, and in an unfinished directory.

Only this module names files, splits, features and columns; `tests/test_contract.py` compares a
written directory and the README's tables with this module.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from headct.printable import quoted

SCHEMA_VERSION = 1  # of the manifest; bump when existing readers would misread it

DATASET = "ich"
DATASET_VERSION = "1.0.0"  # for TensorFlow Datasets and Croissant
FILE_FORMAT = "tfrecord"
# Pattern of shard names for TensorFlow Datasets.
SHARD_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"

MANIFEST = "manifest.json"  # a directory that has it is complete
INDEX = "index.parquet"
REJECTS = "rejects.jsonl"
FEATURES = "features.json"
DATASET_INFO = "dataset_info.json"
CONFIG = "preprocess.toml"  # for `--config`: contains paths, so not in the digest
# For people and hubs: users edit them, so the manifest has no checksums of these files.
README = "README.md"
CROISSANT = "croissant.json"
DESCRIPTIONS = (README, CROISSANT)
# Beside the shards.
FILES = (MANIFEST, INDEX, REJECTS, FEATURES, DATASET_INFO, CONFIG, *DESCRIPTIONS)
CARD = "report.html"  # not reproducible (date, speed), so not in the digest; may be absent

ORDINAL = "ordinal"  # a kind of ids: numbers without meaning outside their directory

UNLABELED_SPLIT = "test"
UNLABELED = -1  # in place of a missing label
HOLDOUT_SPLIT = "holdout"

# The manifest's keys: content of the directory, and its origin.
MANIFEST_CONTENT = (
    *("schema_version", "labels", "windows", "image", "counts", "splits", "files"),
    *("acquisition", "image_id", "labels_joined_by", "label_level", "notes"),
)
MANIFEST_ORIGIN = ("created", "software", "options", "run", "digest")


def fold_split(number: int) -> str:
    """Return the name of a cross-validation fold, numbered from 0."""
    return f"fold{number}"


def fold_number(split: str) -> int | None:
    """Return a fold's number; None for other splits, which may lack labels."""
    match = re.fullmatch(r"fold(\d+)", split)
    return int(match[1]) if match else None


_SHARD_NAME = re.compile(
    rf"{DATASET}-(fold(?:0|[1-9]\d?)|{HOLDOUT_SPLIT}|{UNLABELED_SPLIT})"
    rf"\.{FILE_FORMAT}-(\d{{5,9}})-of-(\d{{5,9}})",
    re.ASCII,
)


@dataclass(frozen=True)
class ShardFile:
    """A shard's position in its split.

    Attributes:
        split: name of the split.
        number: of the shard, from 0.
        of: number of shards in the split.
    """

    split: str
    number: int
    of: int

    @property
    def name(self) -> str:
        """File name in the format of TensorFlow Datasets."""
        return f"{DATASET}-{self.split}.{FILE_FORMAT}-{self.number:05d}-of-{self.of:05d}"

    def converted(self, suffix: str) -> str:
        """Return the path of the shard's conversion, as Hugging Face names files of a split."""
        return f"{CONVERTED_DATA}/{self.split}-{self.number:05d}-of-{self.of:05d}.{suffix}"

    @classmethod
    def parse(cls, name: str) -> "ShardFile":
        """Return the shard of a file name.

        Raises:
            ValueError: `name` is not the file name of a shard.
        """
        found = _SHARD_NAME.fullmatch(name)
        if found:
            shard = cls(found[1], int(found[2]), int(found[3]))
            if shard.number < shard.of and shard.name == name:
                return shard
        raise ValueError(f"not the name of a shard: {name}")


def shard_pattern(split: str) -> str:
    """Return a glob pattern of the shard files of a split."""
    return f"{DATASET}-{split}.{FILE_FORMAT}-*"


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
        name: of the column; ends in `LABEL` if there is one column per label.
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
# Columns about the shards and the input: conversions omit them.
LOCAL_COLUMNS = (
    *("split", "shard", "record", "offset", "bytes", "image_offset", "image_bytes"),
    "source",  # may name a patient
)
REJECT_COLUMNS = ("source", "image_id", "reason", "detail")  # text fields of a line of rejects


def check_label_names(names: Sequence[str]) -> None:
    """Raise a ValueError for invalid label names; the message states the rule.

    Columns, file formats, plots and the terminal use the names, some without distinguishing
    upper and lower case.
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
    """Return the number of input files from a manifest's counts, including files without a row.

    Older manifests have no counts of skipped or not listed files.
    """
    names = ("files_seen", "unlabeled_skipped", "not_listed")
    return sum(int(counts.get(name, 0)) for name in names)


def ordinal(noun: str, number: int) -> str:
    """Return an anonymous id: `patient_000001` for number 0 of `patient`."""
    return f"{noun}_{number + 1:06d}"


def label_column(label: str) -> str:
    """Return the column of a label."""
    return f"{LABEL_PREFIX}{label}"


def labels_of(columns: Iterable[str]) -> list[str]:
    """Return the labels of the label columns, in order."""
    return [name.removeprefix(LABEL_PREFIX) for name in columns if name.startswith(LABEL_PREFIX)]


def index_columns(labels: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield name and type of the columns of an index with some labels."""
    names = [*labels]
    for column in INDEX_COLUMNS:
        if column.name == label_column(LABEL_PLACEHOLDER):
            yield from ((label_column(label), column.dtype) for label in names)
        else:
            yield column.name, column.dtype


# Predictions in a run directory, by split; and of all folds, in that of a cross-validation.
PREDICTIONS = "predictions-{}.parquet"
OUT_OF_FOLD = "out_of_fold.parquet"

# Names in a conversion of a shard directory for hubs, beside its `README`.
CONVERSION = "conversion.json"  # what is converted, and how: written first
CONVERTED_DATA = "data"

# Names in an unfinished output folder; readers do not need them.
# `UNFINISHED` holds intermediate data that steps pass to each other.
UNFINISHED = ".unfinished"
PLAN = f"{UNFINISHED}/plan.json"
STARTS = f"{UNFINISHED}/starts.json"  # of runs
JOB = f"{UNFINISHED}/job.json"  # writes the folder, on a runner that outlives its launcher
OPTIONS = f"{UNFINISHED}/options.json"  # of the first run
REFUSAL = f"{UNFINISHED}/refusal.json"  # why the run ended
RESERVE = f"{UNFINISHED}/reserve"  # space for the refusal on a full disk

# Tables in `UNFINISHED`; see `unfinished`.
REJECTS_TABLE = "rejects"
LABELS_TABLE = "labels"
FILES_TABLE = "files"
# Shards per table of the plan. A task reads a whole table for one shard, 1 % of the bytes of the
# shard's files; in return, planning needs an eighth of the requests.
SHARDS_A_PART = 8


def listing_table(part: int) -> str:
    """Return the table of a part of the input's listing."""
    return f"listing/{part:05d}"


def inventory_table(part: int) -> str:
    """Return the table of the same part of the inventory."""
    return f"inventory/{part:05d}"


def plan_table(part: int) -> str:
    """Return the table of slices of some shard files: one record batch per file."""
    return f"plan/{part:05d}"


def written_table(shard: str) -> str:
    """Return the table of a shard file's index rows and its description."""
    return f"written/{shard}"
