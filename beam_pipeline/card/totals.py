"""What the index says of all slices at once, column by column: no row is held as an object."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beam_pipeline.dicom.hounsfield import Repair
from headct.layout import LABEL_PREFIX

_DISTANCE_STEP = 0.1  # mm, of what is counted as the same distance
_ROWS_AT_ONCE = 1 << 16
_UNKNOWN = -1  # in place of a label


@dataclass(frozen=True)
class Spread:
    """How some numbers are spread: the least, the quartiles and the greatest."""

    least: float
    lower: float
    median: float
    upper: float
    greatest: float

    @classmethod
    def of(cls, numbers: NDArray[Any]) -> "Spread | None":
        """The spread of some numbers; None if there are none."""
        if not len(numbers):
            return None
        return cls(*map(float, np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1])))


@dataclass(frozen=True)
class SplitTotals:
    """What a split holds.

    Attributes:
        name: of the split.
        slices: how many.
        patients: how many.
        studies: how many.
        series: how many.
    """

    name: str
    slices: int
    patients: int
    studies: int
    series: int


@dataclass(frozen=True)
class Totals:
    """What an index says of all its slices.

    Attributes:
        splits: in the order of their names.
        slices_a_study: how they are spread.
        slice_distance: between neighbors of a series, mm: the median of each series.
        common_distances: of the series' medians, rounded to 0.1 mm, the most common with how many
            series have them.
        co_occurrence: int64 [labels, labels], how many slices have both; with itself: have it.
        matrices: rows and columns as the files have them, with how many slices have them.
        transfer_syntaxes: UIDs, with how many slices have them.
        patients_with: for each label, how many patients have a slice with it.
        studies_with: for each label, how many studies have.
        positives: for each label the slices that have it, as numbers of rows, ascending.
        negatives: the slices that have none.
        repaired: for each repair the slices it was applied to.
        rows: how many slices there are.
        labeled: how many of them have labels.
    """

    splits: tuple[SplitTotals, ...]
    slices_a_study: Spread | None
    slice_distance: Spread | None
    common_distances: tuple[tuple[float, int], ...]
    co_occurrence: NDArray[np.int64]
    matrices: tuple[tuple[str, int], ...]
    transfer_syntaxes: tuple[tuple[str, int], ...]
    patients_with: tuple[int, ...]
    studies_with: tuple[int, ...]
    positives: tuple[NDArray[np.int64], ...]
    negatives: NDArray[np.int64]
    repaired: dict[str, NDArray[np.int64]]
    rows: int
    labeled: int


@dataclass(frozen=True)
class _Coded:
    """A column of texts: a code for each row, and the texts."""

    codes: NDArray[np.int64]
    names: list[str]

    @classmethod
    def read(cls, index: pq.ParquetFile, column: str) -> "_Coded":
        texts = index.read([column])[column].combine_chunks().dictionary_encode()
        return cls(texts.indices.to_numpy().astype(np.int64), texts.dictionary.to_pylist())

    def distinct(self, rows: NDArray[np.int64]) -> int:
        """How many texts some rows have."""
        return len(np.unique(self.codes[rows]))

    def counted(self) -> tuple[tuple[str, int], ...]:
        """The texts and how many rows have them, the most common first."""
        counts = np.bincount(self.codes, minlength=len(self.names)).tolist()
        return _ranked(zip(self.names, counts, strict=True))


def _ranked(pairs: Any) -> tuple[tuple[Any, int], ...]:
    return tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def add_up(index: pq.ParquetFile, labels: Sequence[str]) -> Totals:
    """The totals of an index.

    Args:
        index: of a shard directory.
        labels: names of the classes.
    """
    splits = _Coded.read(index, "split")
    ids = {name: _Coded.read(index, f"{name}_id") for name in ("patient", "study", "series")}
    distances = _slice_distances(ids["series"].codes, _numbers(index, "position_z"))
    matrix = _label_matrix(index, labels)
    has_labels = (matrix != _UNKNOWN).all(axis=1) & bool(labels)
    positive = (matrix == 1) & has_labels[:, None]
    positives = tuple(np.flatnonzero(column) for column in positive.T)
    return Totals(
        splits=tuple(_count_splits(splits, ids)),
        slices_a_study=Spread.of(np.bincount(ids["study"].codes)),
        slice_distance=Spread.of(distances),
        common_distances=_common(distances),
        co_occurrence=_co_occurrence(positive),
        matrices=_matrices(index),
        transfer_syntaxes=_Coded.read(index, "transfer_syntax").counted(),
        patients_with=tuple(ids["patient"].distinct(rows) for rows in positives),
        studies_with=tuple(ids["study"].distinct(rows) for rows in positives),
        positives=positives,
        negatives=np.flatnonzero(has_labels & ~positive.any(axis=1)),
        repaired=_repaired(_Coded.read(index, "repair")),
        rows=len(matrix),
        labeled=int(has_labels.sum()),
    )


def _numbers(index: pq.ParquetFile, column: str) -> NDArray[np.float64]:
    values = index.read([column])[column].combine_chunks()
    return np.asarray(pc.fill_null(values, float("nan")).to_numpy(), np.float64)


def _count_splits(splits: _Coded, ids: dict[str, _Coded]) -> list[SplitTotals]:
    slices = np.bincount(splits.codes, minlength=len(splits.names))
    distinct = {
        name: np.bincount(
            np.unique(splits.codes * len(column.names) + column.codes) // len(column.names),
            minlength=len(splits.names),
        )
        for name, column in ids.items()
    }
    return [
        SplitTotals(
            name,
            int(slices[place]),
            int(distinct["patient"][place]),
            int(distinct["study"][place]),
            int(distinct["series"][place]),
        )
        for place, name in sorted(enumerate(splits.names), key=lambda pair: pair[1])
    ]


def _slice_distances(
    series: NDArray[np.int64], positions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The median distance of neighbors in each series that has any, mm."""
    known = np.isfinite(positions)
    series, positions = series[known], positions[known]
    order = np.lexsort((positions, series))
    series, distances = series[order], np.diff(positions[order])
    # The same position twice is a second reconstruction or a copy, no neighbor.
    neighbors = (np.diff(series) == 0) & (distances > 0)
    medians = pd.Series(distances[neighbors]).groupby(series[1:][neighbors]).median()
    return medians.to_numpy(np.float64)


def _common(distances: NDArray[np.float64]) -> tuple[tuple[float, int], ...]:
    steps, counts = np.unique(np.rint(distances / _DISTANCE_STEP), return_counts=True)
    return _ranked(zip((steps * _DISTANCE_STEP).round(1).tolist(), counts.tolist(), strict=True))


def _label_matrix(index: pq.ParquetFile, labels: Sequence[str]) -> NDArray[np.int8]:
    """int8 [rows, labels]."""
    matrix = np.empty((index.metadata.num_rows, len(labels)), np.int8)
    for place, label in enumerate(labels):
        matrix[:, place] = index.read([LABEL_PREFIX + label]).column(0).to_numpy()
    return matrix


def _co_occurrence(positive: NDArray[np.bool_]) -> NDArray[np.int64]:
    # Of counts below 2^53, which float64 has exactly, BLAS makes the products.
    products = np.zeros((positive.shape[1], positive.shape[1]))
    for start in range(0, len(positive), _ROWS_AT_ONCE):
        block = positive[start : start + _ROWS_AT_ONCE].astype(np.float64)
        products += block.T @ block
    return np.rint(products).astype(np.int64)


def _matrices(index: pq.ParquetFile) -> tuple[tuple[str, int], ...]:
    sizes = (
        index.read(["rows", "columns"]).group_by(["rows", "columns"]).aggregate([([], "count_all")])
    )
    return _ranked(
        (f"{size['rows']} x {size['columns']}", size["count_all"]) for size in sizes.to_pylist()
    )


def _repaired(repairs: _Coded) -> dict[str, NDArray[np.int64]]:
    return {
        name: np.flatnonzero(repairs.codes == code)
        for code, name in sorted(enumerate(repairs.names), key=lambda pair: pair[1])
        if name != Repair.NONE.value
    }
