"""Hashes of training patients, and comparison with the patients of other splits.

trained_on.parquet has one row per training example: hashes of the patient id and the image id. The
hashes are keyed with the digest of the shards, so that the files of two runs cannot be joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from headct.errors import UsageError
from headct.layout import IMAGE_ID, ORDINAL, PATIENT_ID, fold_split
from trainer.data.shards import ALL_FOLDS, ALL_LABELED, ShardDirectory, Split
from trainer.runs.run import Run, TrainingShards

# Ids for comparing the examples of two directories.
COMPARED_IDS = (PATIENT_ID, IMAGE_ID)
# Collision probability of 10^6 ids with 10^6 others: 10^-7.
_BYTES = 8
Texts = dict[str, npt.NDArray[np.str_]]


def hash_ids(ids: Iterable[str], column: str, digest: str) -> npt.NDArray[np.uint64]:
    """Hash the ids of a column, [N], keyed with the digest of the training shards."""
    key, numbers, texts = digest.encode()[:64], *pd.factorize(np.asarray(ids, object))
    hashes = [
        blake2b(text.encode(), digest_size=_BYTES, key=key, person=column.encode()).digest()
        for text in texts
    ]
    return np.frombuffer(b"".join(hashes), np.dtype("<u8")).astype(np.uint64)[numbers]


def read_ids(shards: ShardDirectory, splits: tuple[Split, ...]) -> pd.DataFrame:
    """Return patient_id and image_id of `splits`, one row per example.

    Raises:
        UsageError: index.parquet is missing or damaged, or has no ids.
    """
    return shards.examples(splits).columns(*COMPARED_IDS).astype(str)


def hash_examples(shards: ShardDirectory, splits: tuple[Split, ...]) -> pd.DataFrame:
    """Hash the ids of all examples of the splits, one row per example.

    Raises:
        UsageError: the index of the shards has no ids.
    """
    ids, digest = read_ids(shards, splits), shards.digest()
    return pd.DataFrame({name: hash_ids(ids[name], name, digest) for name in COMPARED_IDS})


def read_trained_on(path: Path) -> pd.DataFrame:
    """Read the hashes of training examples.

    Raises:
        FileNotFoundError: the file is missing.
        UsageError: the file is damaged, or not such a file.
    """
    try:
        hashes = pd.read_parquet(path, columns=[*COMPARED_IDS])
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        told = str(error).splitlines()[0]
        raise UsageError(f"{path}: cannot be read ({told})") from None
    if not (hashes.dtypes == np.uint64).all():
        raise UsageError(f"{path}: must hold hashes of 64 bits")
    return hashes


def comparable_ids(trained: TrainingShards, shards: ShardDirectory) -> tuple[str, ...]:
    """Return the id columns that are comparable between a run's shards and other shards."""
    if trained.digest == shards.digest():
        return COMPARED_IDS
    manifest = shards.manifest
    before = trained.patient_ids, trained.image_ids
    here = manifest.patient_ids, manifest.image_ids
    comparable = [
        name
        for name, one, other in zip(COMPARED_IDS, before, here, strict=True)
        if ORDINAL not in (one, other) and (one == other or not (one and other))
    ]
    # Prefer patient ids: image ids may be file names, and other images can have the same names.
    certain = PATIENT_ID in comparable and trained.patient_ids and manifest.patient_ids
    return (PATIENT_ID,) if certain else tuple(comparable)


def find_overlap(
    run: Run, shards: ShardDirectory, texts: Texts, by_split: bool | None = None
) -> dict[str, Any]:
    """Find the patients of a split that a run, or any run before it, was trained on.

    A patient matches by the patient id or by the id of any image.

    Args:
        run: the trained run.
        shards: the shards of the split.
        texts: ids of the split's examples by column, [N].
        by_split: whether the run was trained on the split, if known without ids.

    Returns:
        The entries for the figures. `trained_on`: true for all patients, false for no patient, else
        their number; null if unknown. `overlap`: numbers of patients and examples, and the compared
        columns; null if ids are not comparable, or a run does not record its training examples.

    Raises:
        UsageError: a file of the run is damaged.
    """
    known, compared = _known_examples(run, shards, texts)
    if known is None:
        return {"trained_on": by_split, "overlap": None}
    patients = np.unique(texts[PATIENT_ID][known])
    count, everyone = len(patients), len(np.unique(texts[PATIENT_ID]))
    return {
        "trained_on": count if 0 < count < everyone else count > 0,
        "overlap": {"patients": count, "examples": int(known.sum()), "by": compared},
    }


def find_known(
    run: Run, shards: ShardDirectory, split: Split, texts: Texts
) -> npt.NDArray[np.bool_] | None:
    """Return for each example of a split whether a run was trained on its patient, [N].

    None if that is not known; arguments as for `find_overlap`.
    """
    known, _ = _known_examples(run, shards, texts)
    if known is None and (by_split := trained_on_split(run, shards, split)) is not None:
        return np.full(len(texts[PATIENT_ID]), by_split)
    return known


def trained_on_split(run: Run, shards: ShardDirectory, split: Split) -> bool | None:
    """Return whether a run was trained on a split, by names; None if these do not tell."""
    if shards.digest() != run.record.shards.digest or run.record.continued_from is not None:
        return None
    left_out = fold_split(run.record.options.fold)
    others = [fold.name for fold in shards.folds() if fold.name != left_out]
    return split.name in (*others, ALL_LABELED, ALL_FOLDS)


def _known_examples(
    run: Run, shards: ShardDirectory, texts: Texts
) -> tuple[npt.NDArray[np.bool_] | None, list[str]]:
    """Return whether a run was trained on each example's patient, [N], and the compared columns.

    None instead of the array if ids cannot tell.
    """
    runs = [_find_examples(ancestor, shards, texts) for ancestor in _lineage(run)]
    known = np.logical_or.reduce([examples for _, examples in runs])
    if not known.any() and not all(columns for columns, _ in runs):
        return None, []
    compared = [name for name in COMPARED_IDS if any(name in columns for columns, _ in runs)]
    return np.isin(texts[PATIENT_ID], np.unique(texts[PATIENT_ID][known])), compared


def _lineage(run: Run) -> Iterator[Run]:
    """Yield a run, the run that it continues, and so on."""
    seen = set()
    while (path := run.path.resolve()) not in seen:
        yield run
        seen.add(path)
        if not run.description.is_file() or run.record.continued_from is None:
            return
        run = Run(Path(run.record.continued_from.run))


def _find_examples(
    run: Run, shards: ShardDirectory, texts: Texts
) -> tuple[tuple[str, ...], npt.NDArray[np.bool_]]:
    """Return the compared columns, none without a record; whether trained on each example, [N]."""
    known = np.zeros(len(texts[IMAGE_ID]), np.bool_)
    try:
        hashes = read_trained_on(run.trained_on)
    except FileNotFoundError:  # an earlier version, or shards without an index
        return (), known
    trained = run.record.shards
    columns = comparable_ids(trained, shards)
    for name in columns:
        of_split = hash_ids(texts[name], name, trained.digest)
        known |= np.isin(of_split, hashes[name].to_numpy()) & (texts[name] != "")
    return columns, known
