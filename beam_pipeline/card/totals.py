"""Sums over the index of a shard directory; random choice of the slices that a card shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beam_pipeline.dicom.hounsfield import Repair
from headct.layout import ID_COLUMNS, label_column

_TEXTS = ("split", *ID_COLUMNS, "transfer_syntax", "repair")
_NUMBERS = ("position_z", "rows", "columns")
_UNKNOWN = -1  # stands for a missing label

# Limits of the files to read again, independent of the data set's size.
MOST_EXAMPLES = 16
SAMPLED = 20
_PER_LABEL = 2
_UNLABELED = 4
_PER_REPAIR = 4

NO_LABEL = "no label"
UNLABELED = "slices"

Rows = NDArray[np.int64]  # row numbers of the index, ascending
Counts = list[tuple[str, int]]  # in descending order of counts


@dataclass(frozen=True)
class Totals:
    """Sums over all slices of an index."""

    rows: int
    labeled: int  # slices with labels
    splits: pd.DataFrame  # one row per split: patients, studies, series, slices
    slices_per_study: NDArray[np.int64]
    slice_distances: NDArray[np.float64]  # mm, median distance between neighbors, per series
    matrices: Counts  # slices per matrix size of their files
    transfer_syntaxes: Counts  # slices per transfer syntax UID
    co_occurrence: NDArray[np.int64]  # [labels, labels], slices with both labels
    patients_with: tuple[int, ...]  # patients per label
    studies_with: tuple[int, ...]  # studies per label
    positives: tuple[Rows, ...]  # positive slices per label
    negatives: Rows  # slices without a positive label
    repaired: dict[str, Rows]  # slices per repair


def add_up(index: pq.ParquetFile, labels: Sequence[str]) -> Totals:
    """Return the sums over an index; reads one column at a time."""
    frame = pd.DataFrame({name: _column(index, name) for name in (*_TEXTS, *_NUMBERS)})
    matrix = np.empty((len(frame), len(labels)), np.int8)
    for number, label in enumerate(labels):
        matrix[:, number] = index.read([label_column(label)]).column(0).to_numpy()
    labeled = (matrix != _UNKNOWN).all(axis=1) & bool(labels)
    positive = (matrix == 1) & labeled[:, None]
    positives = tuple(np.flatnonzero(column) for column in positive.T)
    both = [positive[rows].sum(axis=0, dtype=np.int64) for rows in positives]
    sizes: dict[Any, int] = frame.groupby(["rows", "columns"]).size().to_dict()
    repairs = sorted(set(frame["repair"].cat.categories) - {Repair.NONE.value})
    return Totals(
        rows=len(frame),
        labeled=int(labeled.sum()),
        splits=_count_splits(frame),
        slices_per_study=np.asarray(frame["study_id"].value_counts(), np.int64),
        slice_distances=_slice_distances(frame),
        matrices=_ranked({f"{size[0]} x {size[1]}": n for size, n in sizes.items()}),
        transfer_syntaxes=_ranked(frame["transfer_syntax"].value_counts().to_dict()),
        co_occurrence=np.array(both, np.int64).reshape(len(labels), len(labels)),
        patients_with=tuple(frame["patient_id"].iloc[rows].nunique() for rows in positives),
        studies_with=tuple(frame["study_id"].iloc[rows].nunique() for rows in positives),
        positives=positives,
        negatives=np.flatnonzero(labeled & ~positive.any(axis=1)),
        repaired={name: np.flatnonzero(frame["repair"] == name) for name in repairs},
    )


def _column(index: pq.ParquetFile, name: str) -> Any:
    values = index.read([name]).column(0)
    return (values.combine_chunks().dictionary_encode() if name in _TEXTS else values).to_pandas()


def _ranked(counts: dict[Any, int]) -> Counts:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _count_splits(frame: pd.DataFrame) -> pd.DataFrame:
    splits = frame.groupby("split", observed=True)
    counts = splits[list(ID_COLUMNS)].nunique().set_axis(["patients", "studies", "series"], axis=1)
    counts["slices"] = splits.size()
    return counts.set_axis(counts.index.astype(str)).sort_index()


def _slice_distances(frame: pd.DataFrame) -> NDArray[np.float64]:
    """Return the median distance between neighboring slices per series with neighbors, mm."""
    known = frame[np.isfinite(frame["position_z"])].sort_values(["series_id", "position_z"])
    distances = known.groupby("series_id", observed=True)["position_z"].diff()
    # Slices at one position are a second reconstruction or a copy, not neighbors.
    neighbors = distances > 0
    series = known["series_id"][neighbors]
    medians: Any = distances[neighbors].groupby(series, observed=True).median()
    return np.asarray(medians, np.float64)


@dataclass(frozen=True)
class Choice:
    """Slices to read again, as row numbers of the index."""

    examples: dict[str, list[int]]  # slices to show, per label, NO_LABEL, UNLABELED or repair
    sample: list[int]  # sample of all slices
    repaired: list[int]

    @property
    def rows(self) -> list[int]:
        """All rows, ascending."""
        shown = (row for rows in self.examples.values() for row in rows)
        return sorted({*shown, *self.sample, *self.repaired})


def choose(totals: Totals, labels: Sequence[str], seed: int) -> Choice:
    """Return the slices that a card shows: the same slices for the same totals and seed."""
    random = np.random.default_rng(seed)
    repaired = {name: _pick(random, rows, _PER_REPAIR) for name, rows in totals.repaired.items()}
    examples = _examples(random, totals, labels)
    examples |= {f"repair: {name}": rows[:1] for name, rows in repaired.items()}
    return Choice(
        examples=examples,
        sample=_pick(random, np.arange(totals.rows), SAMPLED),
        repaired=[row for rows in repaired.values() for row in rows],
    )


def _examples(
    random: np.random.Generator, totals: Totals, labels: Sequence[str]
) -> dict[str, list[int]]:
    if not totals.labeled:
        return {UNLABELED: _pick(random, np.arange(totals.rows), _UNLABELED)}
    groups = dict(zip(labels, totals.positives, strict=True)) | {NO_LABEL: totals.negatives}
    names = [name for name, rows in groups.items() if len(rows)][:MOST_EXAMPLES]
    number = min(_PER_LABEL, MOST_EXAMPLES // len(names))
    chosen: dict[str, list[int]] = {}
    taken: list[int] = []
    # Rare labels first: their slices may have other labels too, and appear only once.
    for name in sorted(names, key=lambda name: (len(groups[name]), name)):
        free = groups[name][~np.isin(groups[name], taken)]
        chosen[name] = _pick(random, free if len(free) else groups[name], number)
        taken += chosen[name]
    return {name: chosen[name] for name in names}


def _pick(random: np.random.Generator, rows: Rows, number: int) -> list[int]:
    chosen = random.choice(rows, min(number, len(rows)), replace=False)
    return [int(row) for row in np.sort(chosen)]


def rows_at(index: pq.ParquetFile, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return rows of an index by ascending row numbers; reads one row group at a time."""
    rows: dict[int, dict[str, Any]] = {}
    start = 0
    for group in range(index.metadata.num_row_groups):
        end = start + index.metadata.row_group(group).num_rows
        wanted = [number for number in numbers if start <= number < end]
        if wanted:
            offsets = pa.array([number - start for number in wanted])
            taken = index.read_row_group(group).take(offsets).to_pylist()
            rows.update(zip(wanted, taken, strict=True))
        start = end
    return rows
