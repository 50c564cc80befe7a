"""Slices with identical pixels: a patient under two names would be in two folds."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beam_pipeline.dicom import read_header
from beam_pipeline.errors import Rejected
from beam_pipeline.inventory import pixel_checksum
from beam_pipeline.storage import InputFiles

_READERS = 8  # threads: they wait for storage


@dataclass(frozen=True)
class TwinCounts:
    """How many slices have identical pixels.

    Attributes:
        groups: of slices that have the same pixels.
        slices: in these groups.
        groups_across_patients: with more than one patient.
        groups_with_conflicting_labels: whose slices differ in a label.
    """

    groups: int = 0
    slices: int = 0
    groups_across_patients: int = 0
    groups_with_conflicting_labels: int = 0


def find_twins(inventory: pd.DataFrame, files: InputFiles) -> pd.Series:
    """Which files have identical pixels.

    Only files with equal fingerprints are read: the others cannot be twins.

    Args:
        inventory: with the columns source, fingerprint and reason.
        files: where the sources are.

    Returns:
        str, indexed like the inventory: a checksum that twins share; empty for all others.
    """
    usable = (inventory["reason"] == "") & (inventory["fingerprint"] != "")
    candidates = inventory[usable & inventory["fingerprint"].duplicated(keep=False)]
    with ThreadPoolExecutor(_READERS) as readers:
        checksums = list(readers.map(lambda s: _checksum(s, files), candidates["source"]))
    found = pd.Series(checksums, index=candidates.index, dtype=str)
    found = found[(found != "") & found.duplicated(keep=False)]
    return found.reindex(inventory.index, fill_value="")


def _checksum(source: str, files: InputFiles) -> str:
    try:
        with files.open(source) as (file, size):
            return pixel_checksum(file, size, read_header(file, size))
    except (OSError, Rejected):  # it vanished or changed: writing its shard will say so
        return ""


def join_groups(groups: pd.Series, twins: pd.Series) -> NDArray[np.int64]:
    """Number groups so that those which share a twin have the same number.

    Args:
        groups: str, of each slice.
        twins: str, of each slice; empty for none.

    Returns:
        [n], from 0, in the order of first appearance.
    """
    numbers, _ = pd.factorize(groups)
    root = list(range(int(numbers.max(initial=-1)) + 1))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    for members in _members(numbers, twins):
        first, *others = sorted({find(member) for member in members})
        for other in others:
            root[other] = first
    return pd.factorize(np.array([find(number) for number in numbers.tolist()], np.int64))[0]


def _members(numbers: NDArray[np.int64], twins: pd.Series) -> Iterable[set[int]]:
    marked = (twins != "").to_numpy()
    frame = pd.DataFrame({"number": numbers[marked], "twin": twins.to_numpy()[marked]})
    return (set(part.tolist()) for _, part in frame.groupby("twin", sort=True)["number"])


def count_twins(twins: pd.Series, patients: pd.Series, labels: pd.DataFrame) -> TwinCounts:
    """Count twins.

    Args:
        twins: str, of each slice; empty for none.
        patients: of each slice.
        labels: of each slice, a column a label.
    """
    marked = (twins != "") & twins.duplicated(keep=False)  # the others' twins were rejected
    kinds = labels[marked].astype(str).agg("".join, axis=1) if marked.any() else twins[marked]
    frame = pd.DataFrame({"twin": twins[marked], "patient": patients[marked], "labels": kinds})
    distinct = frame.groupby("twin").nunique()
    return TwinCounts(
        groups=len(distinct),
        slices=len(frame),
        groups_across_patients=int((distinct["patient"] > 1).sum()),
        groups_with_conflicting_labels=int((distinct["labels"] > 1).sum()),
    )
