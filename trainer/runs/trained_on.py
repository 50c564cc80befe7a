"""Whom a run was trained on: hashes, so that no run holds an id, and what they say of others.

trained_on.parquet has one row per training example: hashes of its patient's id and of its own. They
are keyed with the digest of the shards, so that the files of two runs tell nothing together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from headct.errors import UsageError
from headct.layout import IMAGE_ID, ORDINAL, PATIENT_ID
from trainer.data.index import COMPARED_IDS, read_ids
from trainer.data.shards import ShardDirectory, Split
from trainer.files import write_whole
from trainer.runs.run_directory import RunDirectory, read_description

# 10^6 ids against 10^6 others: one in 10^7 finds an equal hash of another id.
_BYTES = 8
Hashes = npt.NDArray[np.uint64]


def hash_ids(ids: Iterable[str], column: str, digest: str) -> Hashes:
    """The hash of each id of a column, [N]; `digest` is that of the training shards."""
    key, numbers, texts = digest.encode()[:64], *pd.factorize(np.asarray(ids, object))
    hashes = [
        blake2b(each.encode(), digest_size=_BYTES, key=key, person=column.encode()).digest()
        for each in texts
    ]
    return np.frombuffer(b"".join(hashes), np.dtype("<u8")).astype(np.uint64)[numbers]


def hash_examples(shards: ShardDirectory, splits: tuple[Split, ...]) -> pd.DataFrame:
    """The hashes of the examples of some splits, one row per example.

    Raises:
        UsageError: the index of the shards does not say whose they are.
    """
    ids, digest = read_ids(shards, splits), shards.digest()
    return pd.DataFrame({name: hash_ids(ids[name], name, digest) for name in COMPARED_IDS})


def write_trained_on(path: Path, hashes: pd.DataFrame) -> None:
    """Writes the hashes of training examples, whole or not at all."""
    write_whole(path, lambda unfinished: hashes.to_parquet(unfinished, index=False))


def read_trained_on(path: Path) -> pd.DataFrame:
    """Reads what `write_trained_on` wrote.

    Raises:
        FileNotFoundError: it is not there.
        UsageError: it is damaged, or something else.
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


@dataclass(frozen=True)
class Overlap:
    """How much of what is measured a run was trained on.

    Attributes:
        patients: how many of them.
        all_patients: of how many.
        examples: of these patients.
        by: the columns of ids that told.
    """

    patients: int
    all_patients: int
    examples: int
    by: tuple[str, ...]

    @property
    def trained_on(self) -> bool | int:
        """Whether all patients were trained on, or none; else how many."""
        return self.patients if 0 < self.patients < self.all_patients else self.patients > 0


def comparable_ids(described: dict[str, Any], shards: ShardDirectory) -> tuple[str, ...]:
    """The columns whose ids mean the same where a run was trained and in other shards.

    Args:
        described: `shards` of run.json.
        shards: the others.
    """
    if described["digest"] == shards.digest():
        return COMPARED_IDS
    before = (described.get("patient_ids", ""), described.get("image_ids", ""))
    kinds = zip(COMPARED_IDS, before, (shards.patient_ids, shards.image_ids), strict=True)
    found = [
        name
        for name, there, here in kinds
        if ORDINAL not in (there, here) and (there == here or not (there and here))
    ]
    # File names may be those of other images elsewhere: patients, where they are known, decide.
    certain = PATIENT_ID in found and before[0] and shards.patient_ids
    return (PATIENT_ID,) if certain else tuple(found)


def find_overlap(
    run: RunDirectory, shards: ShardDirectory, texts: dict[str, npt.NDArray[np.str_]]
) -> Overlap | None:
    """Looks for the patients of a run's training, and of the runs that it continues, among others.

    A patient is known by the own id, or by any image. None where ids tell nothing, or a run does
    not say whom it was trained on.

    Args:
        run: that was trained.
        shards: that the examples are of.
        texts: ids of the examples, [N] each.

    Raises:
        UsageError: what the run says is damaged.
    """
    runs = [_find_examples(each, shards, texts) for each in _lineage(run)]
    known = np.logical_or.reduce([found for _, found in runs])
    if not known.any() and not all(columns for columns, _ in runs):
        return None
    patients = np.unique(texts[PATIENT_ID][known])
    examples = int(np.isin(texts[PATIENT_ID], patients).sum())
    by = tuple(name for name in COMPARED_IDS if any(name in columns for columns, _ in runs))
    return Overlap(len(patients), len(np.unique(texts[PATIENT_ID])), examples, by)


def _lineage(run: RunDirectory) -> Iterator[RunDirectory]:
    """A run, the run whose model it started from, and so on."""
    seen = set()
    while (place := run.path.resolve()) not in seen:
        yield run
        seen.add(place)
        if not run.description.is_file() or not (
            origin := read_description(run).get("continued_from")
        ):
            return
        run = RunDirectory(Path(origin["run"]))


def _find_examples(
    run: RunDirectory, shards: ShardDirectory, texts: dict[str, npt.NDArray[np.str_]]
) -> tuple[tuple[str, ...], npt.NDArray[np.bool_]]:
    """The columns that tell, and which examples one run was trained on, [N]; none if unknown."""
    known = np.zeros(len(texts[IMAGE_ID]), np.bool_)
    try:
        trained = read_trained_on(run.trained_on)
    except FileNotFoundError:  # of an earlier version, or of shards without an index
        return (), known
    described = read_description(run)["shards"]
    columns = comparable_ids(described, shards)
    for name in columns:
        hashes = hash_ids(texts[name], name, described["digest"])
        known |= np.isin(hashes, trained[name].to_numpy()) & (texts[name] != "")
    return columns, known


def describe_overlap(overlap: Overlap | None, by_split: bool | None) -> dict[str, Any]:
    """What figures say of it.

    Args:
        overlap: as found by ids.
        by_split: whether the split was trained on, as far as it is known without ids.
    """
    if overlap is None:
        return {"trained_on": by_split, "overlap": None}
    return {
        "trained_on": overlap.trained_on,
        "overlap": {
            "patients": overlap.patients,
            "examples": overlap.examples,
            "by": list(overlap.by),
        },
    }
