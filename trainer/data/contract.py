"""The shard directory as the trainer reads it: what `make preprocess` writes, and no more of it.

The two packages share no code, so that this says once more what it needs; the README describes the
whole, and `tests/test_contract.py` holds the three against each other.
"""

from __future__ import annotations

import re

SCHEMA_VERSION = 1

MANIFEST = "manifest.json"
INDEX = "index.parquet"
REJECTS = "rejects.jsonl"
FILES = (MANIFEST, INDEX, REJECTS)
CARD = "report.html"  # the data card, which may be absent

# A cross-validation fold, by its number. In other splits, labels may be missing.
FOLD = re.compile(r"fold(\d+)")
UNLABELED_SPLIT = "test"
UNLABELED = -1  # in place of a label that is missing

# Of an example: what training needs, and what evaluation needs beside it.
IMAGE, LABEL = "image", "label"
POSITION = "position_z"
TEXTS = ("image_id", "patient_id", "study_id", "series_id")
FEATURES = (IMAGE, LABEL, POSITION, *TEXTS)

# Of the index: where each record lies, and its labels.
SHARD, RECORD, OFFSET, BYTES = INDEX_COLUMNS = ("shard", "record", "offset", "bytes")

# Of the index, beside them: whose each example is.
PATIENT, IMAGE_ID = ID_COLUMNS = ("patient_id", "image_id")

# The kind of ids that mean nothing outside their directory.
ORDINAL = "ordinal"

REJECT_COLUMNS = ("source", "image_id", "reason", "detail")

# Options of the pipeline that an image depends on, beside the windows, in the manifest.
PREPROCESSING = ("voi", "hu", "image_size", "hu_repair", "image_id")


def fold_split(number: int) -> str:
    """The name of a fold."""
    return f"fold{number}"


def label_column(label: str) -> str:
    """The column of a label in the index."""
    return f"label_{label}"
