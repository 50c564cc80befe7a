"""Decisions of planning: files to slices, slices to splits and shards."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beam_pipeline.options import GroupBy, ImageId, LeakCheck, SplitOptions, Unlabeled
from beam_pipeline.planning.duplicates import NOT_IDENTICAL, join_groups
from beam_pipeline.planning.folds import Splits, assign_shards, assign_splits
from beam_pipeline.planning.image_ids import NO_UID, Identity
from beam_pipeline.planning.label_match import NO_LABEL, LabelMatch
from beam_pipeline.planning.labels import PROBLEMS, Labels
from headct.layout import ID_COLUMNS, UNLABELED_SPLIT, ShardFile
from headct.reasons import Reason

# Verdicts: below 0 a used file, a file rejected by its header, and a skipped file without a
# label; else an index into VERDICTS.
USED, BY_HEADER, SKIPPED = -1, -2, -3
VERDICTS = (
    (Reason.DUPLICATE_ID, ""),
    (Reason.MISSING_ATTRIBUTE, "SOPInstanceUID"),
    (Reason.LABEL_MISSING, ""),
    (Reason.LABEL_MISSING, "its row fits several slices: name paths or SOP Instance UIDs"),
    *PROBLEMS,
)
_DUPLICATE, _NO_UID, _NO_LABEL, _SHARED_LABEL, _FIRST_PROBLEM = range(5)


@dataclass(frozen=True)
class Keys:
    """Numbers from the inventory, one per file, in the order of the sources.

    Attributes:
        names: uint64 [n], `image_keys` of the file names.
        uids: uint64 [n], `image_keys` of the SOP Instance UIDs; NO_UID if absent.
        identity: the ids that distinguish slices.
        ids: int32 [n] per ID_COLUMNS, ids numbered from 0.
        fingerprints: uint64 [n], equal for files with possibly equal pixels; 0 if unknown.
        usable: bool [n], whether the header is valid.
        unnamed: bool [n], whether the study replaces a missing patient id.
    """

    names: NDArray[np.uint64]
    uids: NDArray[np.uint64]
    identity: Identity
    ids: Mapping[str, NDArray[np.int32]]
    fingerprints: NDArray[np.uint64]
    usable: NDArray[np.bool_]
    unnamed: NDArray[np.bool_]

    @property
    def image_keys(self) -> NDArray[np.uint64]:
        """Keys of the slices: uint64 [n], equal for files of the same slice."""
        return self.names if self.identity.by is ImageId.FILE_NAME else self.uids


@dataclass(frozen=True)
class Judgement:
    """Verdicts on all files, and the labels of used files.

    Attributes:
        verdicts: int8 [files], USED, BY_HEADER, SKIPPED, or an index into VERDICTS.
        used: int64 [slices], indices of the used files, ascending.
        names: names of the labels; empty without a label file.
        labels: int8 [slices, labels], 0 or 1.
        labels_without_file: number of labeled image ids without a file.
    """

    verdicts: NDArray[np.int8]
    used: NDArray[np.int64]
    names: tuple[str, ...]
    labels: NDArray[np.int8]
    labels_without_file: int


def find_slices(keys: Keys) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Find the files that are slices; of equal files, the first.

    Returns:
        The verdicts before labels are considered, int8 [files]; and the indices of the slices,
        ascending, int64.
    """
    verdicts = np.where(keys.usable, USED, BY_HEADER).astype(np.int8)
    if keys.identity.by is ImageId.SOP_INSTANCE_UID:
        verdicts[keys.usable & (keys.uids == NO_UID)] = _NO_UID
    usable = np.flatnonzero(verdicts == USED)
    first = np.unique(keys.image_keys[usable], return_index=True)[1]
    repeated = np.ones(len(usable), np.bool_)
    repeated[first] = False
    verdicts[usable[repeated]] = _DUPLICATE
    return verdicts, usable[np.sort(first)]


def judge(
    verdicts: NDArray[np.int8],
    slices: NDArray[np.int64],
    labels: Labels | None,
    match: LabelMatch | None,
    unlabeled: Unlabeled = Unlabeled.REJECT,
) -> Judgement:
    """Decide which slices are used: labeled slices, or all slices without a label file.

    Args:
        verdicts: verdicts of all files, from `find_slices`.
        slices: slices, from `find_slices`.
        labels: labels of the data set, or None.
        match: labels matched to files, or None.
        unlabeled: treatment of slices without a label.
    """
    if labels is None or match is None:
        return Judgement(verdicts, slices, (), np.empty((len(slices), 0), np.int8), 0)
    place = match.places[slices]
    problem = labels.problems[place]
    verdict = np.where(problem < 0, USED, _FIRST_PROBLEM + problem)
    verdict[match.shared[place]] = _SHARED_LABEL
    missing = SKIPPED if unlabeled is Unlabeled.SKIP else _NO_LABEL
    verdict[place == NO_LABEL] = missing
    verdicts = verdicts.copy()
    verdicts[slices] = verdict
    kept = verdict == USED
    with_file = np.unique(match.places[match.places != NO_LABEL])
    return Judgement(
        verdicts,
        slices[kept],
        labels.names,
        labels.values[place[kept]],
        len(labels.problems) - len(with_file),
    )


@dataclass(frozen=True)
class Deal:
    """Slices dealt to shards.

    Attributes:
        shards: shards in the order of split and number.
        starts: start of each shard in `slices`, and the end of the last shard.
        slices: indices into `Judgement.used`, in writing order.
    """

    shards: tuple[ShardFile, ...]
    starts: tuple[int, ...]
    slices: NDArray[np.int64]


def deal(
    keys: Keys,
    judgement: Judgement,
    identical: NDArray[np.int64],
    options: SplitOptions,
    known: Sequence[str | None] | None = None,
) -> Deal:
    """Deal patients to splits and slices to shards.

    Args:
        keys: keys of all files.
        judgement: the used files.
        identical: [slices], number of the set of slices with identical pixels, or NOT_IDENTICAL.
        options: options of splits and shards.
        known: [slices], split in an earlier data set, to be kept.

    Raises:
        UsageError: too few patients for the options, or `known` cannot be kept.
    """
    splits = _splits(keys, judgement, identical, options, known)
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
    known: Sequence[str | None] | None,
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield name and slices per split, in alphabetical order."""
    used = judgement.used
    if not len(used):
        return
    if not judgement.names:
        yield UNLABELED_SPLIT, np.arange(len(used))
        return
    groups = np.asarray(pd.factorize(keys.ids[f"{options.group_by.value}_id"][used])[0], np.int64)
    if options.group_by is GroupBy.PATIENT:
        groups = _join_studies(groups, keys, used)
    if options.leak_check is LeakCheck.JOIN:
        groups = join_groups(groups, identical)
    splits = Splits.of(options.folds, options.holdout)
    places = assign_splits(groups, judgement.labels, splits, options.seed, known)
    for name in sorted(splits.names):
        slices = np.flatnonzero(places == splits.names.index(name))
        if len(slices):
            yield name, slices


def _join_studies(
    groups: NDArray[np.int64], keys: Keys, used: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Join patients that share a study in which some files lack the patient id.

    A study has one patient (DICOM PS3.3 7.3.1.2); other files of the study, also unused files, may
    have the patient id.
    """
    usable = np.flatnonzero(keys.usable)
    patients, studies = (keys.ids[f"{name}_id"][usable] for name in ("patient", "study"))
    unnamed = keys.unnamed[usable]
    if not unnamed.any():
        return groups
    shared = np.where(np.isin(studies, studies[unnamed]), studies, NOT_IDENTICAL)
    joined = np.zeros(len(keys.usable), np.int64)
    numbered = np.asarray(pd.factorize(patients)[0], np.int64)
    joined[usable] = join_groups(numbered, shared.astype(np.int64))
    return np.asarray(pd.factorize(joined[used])[0], np.int64)


def count_unnamed(keys: Keys, used: NDArray[np.int64]) -> dict[str, int]:
    """Count the used slices without a patient id, and their studies."""
    unnamed = keys.unnamed[used]
    studies = np.unique(keys.ids["study_id"][used][unnamed])
    return {"slices": int(unnamed.sum()), "studies": len(studies)}


def number_by_appearance(keys: Keys, judgement: Judgement) -> dict[str, NDArray[np.int64]]:
    """Return the ids per ID_COLUMNS, numbered by first appearance in the slices: int64."""
    return {
        column: np.asarray(pd.factorize(keys.ids[column][judgement.used])[0], np.int64)
        for column in ID_COLUMNS
    }
