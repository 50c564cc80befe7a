"""Hashes of training patients, and comparison with the patients of other splits.

trained_on.parquet has one row per training example: hashes of the patient id and the image id. The
hashes are keyed with the digest of the shards, so that the files of two runs cannot be joined.
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
from trainer.data.shards import ShardDirectory, Split
from trainer.files import write_whole
from trainer.runs.run_directory import RunDirectory, read_description

# Ids for comparing the examples of two directories.
COMPARED_IDS = (PATIENT_ID, IMAGE_ID)
# Collision probability of 10^6 ids with 10^6 others: 10^-7.
_BYTES = 8
Hashes = npt.NDArray[np.uint64]


def hash_ids(ids: Iterable[str], column: str, digest: str) -> Hashes:
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


def write_trained_on(path: Path, hashes: pd.DataFrame) -> None:
    """Write the hashes of training examples atomically."""
    write_whole(path, lambda unfinished: hashes.to_parquet(unfinished, index=False))


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


@dataclass(frozen=True)
class Overlap:
    """Patients of a split that a run was trained on.

    Attributes:
        patients: number of these patients.
        all_patients: number of all patients of the split.
        examples: number of examples of these patients.
        by: compared id columns.
    """

    patients: int
    all_patients: int
    examples: int
    by: tuple[str, ...]

    @property
    def trained_on(self) -> bool | int:
        """True for all patients, False for no patient, else the number of patients."""
        return self.patients if 0 < self.patients < self.all_patients else self.patients > 0


def comparable_ids(described: dict[str, Any], shards: ShardDirectory) -> tuple[str, ...]:
    """Return the id columns that are comparable between a run's shards and other shards.

    Args:
        described: `shards` of run.json.
        shards: the other shards.
    """
    if described["digest"] == shards.digest():
        return COMPARED_IDS
    before = (described.get("patient_ids", ""), described.get("image_ids", ""))
    kinds = zip(COMPARED_IDS, before, (shards.patient_ids, shards.image_ids), strict=True)
    comparable = [
        name
        for name, there, here in kinds
        if ORDINAL not in (there, here) and (there == here or not (there and here))
    ]
    # Prefer patient ids: image ids may be file names, and other images can have the same names.
    certain = PATIENT_ID in comparable and before[0] and shards.patient_ids
    return (PATIENT_ID,) if certain else tuple(comparable)


def find_overlap(
    run: RunDirectory, shards: ShardDirectory, texts: dict[str, npt.NDArray[np.str_]]
) -> Overlap | None:
    """Find the patients of a split that a run, or any run before it, was trained on.

    A patient matches by the patient id or by the id of any image.

    Args:
        run: the trained run.
        shards: the shards of the split.
        texts: ids of the split's examples by column, [N].

    Returns:
        None if ids are not comparable, or a run does not record its training examples.

    Raises:
        UsageError: a file of the run is damaged.
    """
    runs = [_find_examples(ancestor, shards, texts) for ancestor in _lineage(run)]
    known = np.logical_or.reduce([examples for _, examples in runs])
    if not known.any() and not all(columns for columns, _ in runs):
        return None
    patients = np.unique(texts[PATIENT_ID][known])
    examples = int(np.isin(texts[PATIENT_ID], patients).sum())
    by = tuple(name for name in COMPARED_IDS if any(name in columns for columns, _ in runs))
    return Overlap(len(patients), len(np.unique(texts[PATIENT_ID])), examples, by)


def _lineage(run: RunDirectory) -> Iterator[RunDirectory]:
    """Yield a run, the run that it continues, and so on."""
    seen = set()
    while (path := run.path.resolve()) not in seen:
        yield run
        seen.add(path)
        if not run.description.is_file() or not (
            origin := read_description(run).get("continued_from")
        ):
            return
        run = RunDirectory(Path(origin["run"]))


def _find_examples(
    run: RunDirectory, shards: ShardDirectory, texts: dict[str, npt.NDArray[np.str_]]
) -> tuple[tuple[str, ...], npt.NDArray[np.bool_]]:
    """Return the compared columns, and whether the run was trained on the examples, [N].

    Without a record, the columns are empty.
    """
    known = np.zeros(len(texts[IMAGE_ID]), np.bool_)
    try:
        trained = read_trained_on(run.trained_on)
    except FileNotFoundError:  # an earlier version, or shards without an index
        return (), known
    described = read_description(run)["shards"]
    columns = comparable_ids(described, shards)
    for name in columns:
        hashes = hash_ids(texts[name], name, described["digest"])
        known |= np.isin(hashes, trained[name].to_numpy()) & (texts[name] != "")
    return columns, known


def describe_overlap(overlap: Overlap | None, by_split: bool | None) -> dict[str, Any]:
    """Return the entries about an overlap for the figures.

    Args:
        overlap: from `find_overlap`.
        by_split: whether the run was trained on the split, if known without ids.
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
