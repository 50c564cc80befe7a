"""Which slice goes to which shard: decided for all of them at once, from numbers alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beam_pipeline.errors import Reason
from beam_pipeline.layout import ID_COLUMNS, UNLABELED_SPLIT, ShardFile
from beam_pipeline.options import LeakCheck, SplitOptions
from beam_pipeline.planning.assignment import Splits, assign_splits
from beam_pipeline.planning.duplicates import join_groups
from beam_pipeline.planning.folds import assign_shards
from beam_pipeline.planning.image_keys import image_keys as keys_of_images
from beam_pipeline.planning.labels import PROBLEMS, RSNA_LABELS, Labels

UNLABELED = -1

# What a verdict stands for; below 0 is a file that is used, and one whose header says why not.
USED, BY_HEADER = -1, -2
VERDICTS = ((Reason.DUPLICATE_ID, ""), (Reason.LABEL_MISSING, ""), *PROBLEMS)
_DUPLICATE, _NO_LABEL, _FIRST_PROBLEM = range(3)


@dataclass(frozen=True)
class Keys:
    """What planning needs of the inventory: one row per file, in the order of their sources.

    Attributes:
        image_keys: uint64 [n], `image_keys` of the image ids.
        ids: int32 [n] for each of ID_COLUMNS: which id, numbered from 0.
        fingerprints: uint64 [n], equal for files whose pixels may be equal; 0 if unknown.
        usable: bool [n], as far as their headers tell.
    """

    image_keys: NDArray[np.uint64]
    ids: Mapping[str, NDArray[np.int32]]
    fingerprints: NDArray[np.uint64]
    usable: NDArray[np.bool_]


@dataclass(frozen=True)
class Judgement:
    """What files are used for.

    Attributes:
        verdicts: int8 [files], USED, BY_HEADER, or a place in VERDICTS.
        used: int64 [slices], the files that are used, in ascending order.
        names: of the labels.
        labels: int8 [slices, labels], UNLABELED where there are none.
        labels_without_file: how many labeled image ids have no file.
    """

    verdicts: NDArray[np.int8]
    used: NDArray[np.int64]
    names: tuple[str, ...]
    labels: NDArray[np.int8]
    labels_without_file: int


def judge(keys: Keys, labels: Labels | None) -> Judgement:
    """Decide which files are used: of equal image ids the first, and those with labels.

    Args:
        keys: of all files.
        labels: of the data set, or None if it has none.
    """
    verdicts = np.where(keys.usable, USED, BY_HEADER).astype(np.int8)
    usable = np.flatnonzero(keys.usable)
    image_keys, first = np.unique(keys.image_keys[usable], return_index=True)
    repeated = np.ones(len(usable), np.bool_)
    repeated[first] = False
    verdicts[usable[repeated]] = _DUPLICATE
    used = usable[first]  # in the order of their keys, as the labels are
    if labels is None:
        values = np.full((len(used), len(RSNA_LABELS)), UNLABELED, np.int8)
        return Judgement(verdicts, np.sort(used), RSNA_LABELS, values, 0)
    label_keys = keys_of_images(labels.image_ids)
    order = np.argsort(label_keys)
    place, labeled = _find(label_keys[order], image_keys)
    place = order[place]
    problem = labels.problems[place]
    verdicts[used[~labeled]] = _NO_LABEL
    verdicts[used[labeled]] = np.where(problem < 0, USED, _FIRST_PROBLEM + problem)[labeled]
    kept = np.flatnonzero(labeled & (problem < 0))
    kept = kept[np.argsort(used[kept])]
    with_file = _find(image_keys, label_keys)[1]
    with_file |= np.isin(label_keys, keys.image_keys[~keys.usable])
    return Judgement(
        verdicts, used[kept], labels.names, labels.values[place[kept]], int((~with_file).sum())
    )


def _find(
    known: NDArray[np.uint64], wanted: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The place of each wanted key among the known ones, and whether it is there; both sorted."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return place, known[place] == wanted


@dataclass(frozen=True)
class Deal:
    """Slices dealt to shards.

    Attributes:
        shards: in the order of their splits and numbers.
        starts: of each shard's slices in `slices`, and the end of the last one's.
        slices: places in `Judgement.used`, in the order to write them.
    """

    shards: tuple[ShardFile, ...]
    starts: tuple[int, ...]
    slices: NDArray[np.int64]


def deal(
    keys: Keys,
    judgement: Judgement,
    identical: NDArray[np.int64],
    options: SplitOptions,
    earlier: pd.Series | None = None,
) -> Deal:
    """Deal patients to splits and slices to shards.

    Args:
        keys: of all files.
        judgement: which of them are used.
        identical: [slices], the number of the set of slices with the same pixels that each belongs
            to, or NOT_IDENTICAL.
        options: how slices are dealt to splits and shards.
        earlier: the split of each image key in an earlier data set, to be kept.

    Raises:
        UsageError: they cannot be dealt as asked.
    """
    splits = _splits(keys, judgement, identical, options, earlier)
    shards: list[ShardFile] = []
    dealt: list[NDArray[np.int64]] = []
    for split, slices in splits:
        count = math.ceil(len(slices) / options.examples_per_shard)
        for number, rows in enumerate(assign_shards(judgement.labels[slices], count, options.seed)):
            shards.append(ShardFile(split, number, count))
            dealt.append(slices[rows])
    starts = np.cumsum([0, *map(len, dealt)]).tolist()
    order = np.concatenate(dealt) if dealt else np.empty(0, np.int64)
    return Deal(tuple(shards), tuple(starts), order)


def _splits(
    keys: Keys,
    judgement: Judgement,
    identical: NDArray[np.int64],
    options: SplitOptions,
    earlier: pd.Series | None,
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Each split's name, in alphabetical order, and its slices."""
    used = judgement.used
    if not len(used):
        return
    if (judgement.labels == UNLABELED).any():
        yield UNLABELED_SPLIT, np.arange(len(used))
        return
    groups = np.asarray(pd.factorize(keys.ids[f"{options.group_by.value}_id"][used])[0], np.int64)
    if options.leak_check is LeakCheck.JOIN:
        groups = join_groups(groups, identical)
    splits = Splits.of(options.folds, options.holdout)
    known = None if earlier is None else _known_splits(keys.image_keys[used], earlier)
    places = assign_splits(groups, judgement.labels, splits, options.seed, known)
    for name in sorted(splits.names):
        slices = np.flatnonzero(places == splits.names.index(name))
        if len(slices):
            yield name, slices


def _known_splits(image_keys: NDArray[np.uint64], earlier: pd.Series) -> Sequence[Any]:
    known = earlier.reindex(image_keys).to_numpy(object)
    return [None if pd.isna(split) else split for split in known]


def number_by_appearance(keys: Keys, judgement: Judgement) -> dict[str, NDArray[np.int64]]:
    """For each of ID_COLUMNS, each slice's id, numbered in the order of the slices: int64."""
    return {
        column: np.asarray(pd.factorize(keys.ids[column][judgement.used])[0], np.int64)
        for column in ID_COLUMNS
    }
