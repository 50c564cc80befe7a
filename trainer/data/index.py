"""Reader of index.parquet: labels, ids and locations of the records."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from headct.errors import UsageError
from headct.layout import IMAGE_ID, INDEX, PATIENT_ID, label_column
from trainer.data.shards import ShardDirectory, Split, count

SHARD, RECORD, OFFSET, BYTES = ("shard", "record", "offset", "bytes")
# Ids for comparing the examples of two directories.
COMPARED_IDS = (PATIENT_ID, IMAGE_ID)

Labels = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """The examples of some splits, in the order of their shards and records.

    Attributes:
        labels: float32 [N, L].
        files: the shards.
        file: index into `files` per example, [N].
        offset: start of the record in the file, bytes, [N].
        size: of the record with its framing, bytes, [N].
    """

    labels: Labels
    files: tuple[Path, ...]
    file: Numbers
    offset: Numbers
    size: Numbers


def read_ids(shards: ShardDirectory, splits: tuple[Split, ...]) -> pd.DataFrame:
    """Return patient_id and image_id of `splits`, one row per example.

    Raises:
        UsageError: index.parquet is missing, damaged, or not of these shards.
    """
    path, files = shards.path / INDEX, {shard.path.name for each in splits for shard in each.shards}
    frame = _read(path, [SHARD, *COMPARED_IDS])
    ids = frame.loc[frame[SHARD].isin(files), [*COMPARED_IDS]]
    if len(ids) != count(splits):
        raise UsageError(f"{path}: has {len(ids)} of {count(splits)} examples")
    return ids.astype(str)


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read some columns of index.parquet.

    Raises:
        UsageError: the file is missing, damaged, or lacks a column.
    """
    try:
        return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{path}: cannot be read ({str(error).splitlines()[0]})")


def read_index(shards: ShardDirectory, splits: tuple[Split, ...]) -> Index:
    """Read the examples of `splits`.

    Raises:
        UsageError: index.parquet is missing, damaged, or not of these shards.
    """
    path = shards.path / INDEX
    names = [label_column(label) for label in shards.labels]
    frame = _read(path, [SHARD, RECORD, OFFSET, BYTES, *names])
    try:
        frame = frame.astype(dict.fromkeys(names, np.float32))
        frame = frame.astype(dict.fromkeys((RECORD, OFFSET, BYTES), np.int64))
    except (ValueError, TypeError) as error:
        raise _unreadable(path, error) from None
    groups = dict(list(frame.sort_values(RECORD).groupby(SHARD)))
    wanted = [shard for split in splits for shard in split.shards]
    parts = [groups.get(shard.path.name, frame.iloc[:0]) for shard in wanted]
    for shard, part in zip(wanted, parts, strict=True):
        if not np.array_equal(part[RECORD], np.arange(shard.examples)):
            raise UsageError(
                f"{path}: has {len(part)} of the {shard.examples} examples of {shard.path.name}"
            )
        ends = part[OFFSET] + part[BYTES]
        if len(part) and not (part[OFFSET].min() >= 0 and ends.max() <= shard.bytes):
            raise UsageError(f"{path}: has records beyond the {shard.bytes} of {shard.path.name}")
    joined = pd.concat(parts, ignore_index=True)
    return Index(
        labels=joined[names].to_numpy(np.float32),
        files=tuple(shard.path for shard in wanted),
        file=np.repeat(np.arange(len(wanted)), [len(part) for part in parts]),
        offset=joined[OFFSET].to_numpy(np.int64),
        size=joined[BYTES].to_numpy(np.int64),
    )


def with_label_counts(shards: ShardDirectory) -> ShardDirectory:
    """Return the same shards; take missing label counts from the index.

    Raises:
        UsageError: a count is missing, and index.parquet is missing or not of these shards.
    """

    def counted(split: Split) -> Split:
        if None not in split.label_counts or not split.examples:
            return split
        positives = (read_index(shards, (split,)).labels > 0).sum(axis=0)
        return replace(split, label_counts=tuple(map(int, positives)))

    labeled = shards.labeled()
    splits = (counted(each) if each in labeled else each for each in shards.splits)
    return replace(shards, splits=tuple(splits))
