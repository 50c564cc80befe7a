"""Slices of a shard directory with a model's probabilities: filters and orders for mistakes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_numeric_dtype

from headct.errors import UsageError
from headct.layout import (
    ID_COLUMNS,
    IMAGE_ID,
    OUT_OF_FOLD,
    PATIENT_ID,
    POSITION,
    PREDICTIONS,
    SERIES_ID,
    UNLABELED,
    label_column,
)
from headct.reader import Shards

Rows = npt.NDArray[np.int64]

PROBABILITY = "probability_"  # prefix of columns of predictions
PRESENT, ABSENT, FALSE_NEGATIVE, FALSE_POSITIVE = (
    "present",
    "absent",
    "false_negative",
    "false_positive",
)
LARGEST_LOSS, HIGHEST, LOWEST = "largest_loss", "highest", "lowest"
_CLIP = 1e-15  # as in the losses of the trainer


@dataclass(frozen=True)
class Choice:
    """Filters and order of slices; empty texts choose all.

    Attributes:
        split: name of a split.
        label: label that `finding` and `order` use; empty for any label.
        finding: present or absent; false_negative or false_positive by the model's probability and
            the threshold.
        id: image, patient, study or series id.
        order: largest_loss, highest or lowest probability first; empty for patient, series and
            position, from bottom to top.
        threshold: probability from which a label counts as predicted.
    """

    split: str = ""
    label: str = ""
    finding: str = ""
    id: str = ""
    order: str = ""
    threshold: float = 0.5


class Slices:
    """The slices of a shard directory, N rows in the order of the index, for filters.

    Args:
        shards: all examples of the directory.
        predictions: tables of a model's probabilities, from `read_predictions`.

    Attributes:
        names: labels of the shards, and then those of the predictions that the shards lack, L.
        labels: int8 [N, L]; 1 or 0, -1 where unknown.
        probabilities: float64 [N, L]; NaN where unknown.
        predicted: number of slices with probabilities.
        losses: log loss of each label, nats, [N, L]; NaN without label or probability.

    Raises:
        UsageError: no table has slices of these shards.
    """

    def __init__(self, shards: Shards, predictions: list[pd.DataFrame] | None = None) -> None:
        frame = shards.columns(IMAGE_ID, "split", *ID_COLUMNS, POSITION)
        self._images = pd.Index(frame[IMAGE_ID])
        self._texts = {name: frame[name].astype("category") for name in ("split", *ID_COLUMNS)}
        self._position = frame[POSITION].to_numpy(np.float64)
        given = [table.columns for table in predictions or []]
        named = [
            c.removeprefix(PROBABILITY) for cs in given for c in cs if c.startswith(PROBABILITY)
        ]
        self.names = [*dict.fromkeys([*shards.labels, *named])]
        self.labels = np.full((len(shards), len(self.names)), UNLABELED, np.int8)
        self.labels[:, : len(shards.labels)] = shards.label_values.to_numpy()
        self.probabilities = np.full(self.labels.shape, np.nan)
        for table in predictions or []:
            self._add(table)
        self.predicted = int(np.isfinite(self.probabilities).any(axis=1).sum())
        if predictions is not None and not self.predicted:
            raise UsageError("--run: has no predictions of slices of these shards")
        right = np.where(self.labels == 1, self.probabilities, 1 - self.probabilities)
        self.losses = -np.log(np.maximum(right, _CLIP))
        self.losses[self.labels == UNLABELED] = np.nan
        keys = (self._texts[name].cat.codes.to_numpy() for name in (SERIES_ID, PATIENT_ID))
        self._in_volumes: Rows = np.lexsort((self._position, *keys))

    def _add(self, table: pd.DataFrame) -> None:
        """Add a table's probabilities to slices that have none; ignore tables for other shards."""
        rows = self._images.get_indexer(pd.Index(table[IMAGE_ID]))
        table, rows = table[rows >= 0], rows[rows >= 0]
        for name in {*ID_COLUMNS} & {*table.columns}:  # ordinal image ids fit any shards
            if not (self._texts[name].iloc[rows].astype(str).array == table[name].array).all():
                return
        for number, name in enumerate(self.names):
            ours = self.labels[rows, number]
            theirs = table.get(label_column(name), pd.Series(UNLABELED, table.index)).to_numpy()
            if ((ours != theirs) & (ours != UNLABELED) & (theirs != UNLABELED)).any():
                return
        free = ~np.isfinite(self.probabilities[rows]).any(axis=1)
        for number, name in enumerate(self.names):
            if PROBABILITY + name in table:
                values = table[PROBABILITY + name].to_numpy(np.float64)
                self.probabilities[rows[free], number] = values[free]

    def __len__(self) -> int:
        return len(self._images)

    def series(self, row: int) -> Rows:
        """Return the rows of a row's series, from bottom to top."""
        codes = self._texts[SERIES_ID].cat.codes.to_numpy()
        rows = np.flatnonzero(codes == codes[row])
        return rows[np.argsort(self._position[rows], kind="stable")]

    def rows(self, choice: Choice) -> Rows:
        """Return the rows of the chosen slices, in order."""
        wanted = np.ones(len(self), bool)
        if choice.split:
            wanted &= (self._texts["split"] == choice.split).to_numpy()
        if choice.id:
            found = self._images == choice.id
            for name in ID_COLUMNS:
                found |= (self._texts[name] == choice.id).to_numpy()
            wanted &= found
        columns = slice(None)
        if choice.label:
            number = self.names.index(choice.label)
            columns = slice(number, number + 1)
        if choice.finding:
            wanted &= self._have(choice.finding, columns, choice.threshold)
        rows = self._in_volumes[wanted[self._in_volumes]]
        if not choice.order:
            return rows
        values = self.losses if choice.order == LARGEST_LOSS else self.probabilities
        key = np.fmax.reduce(values[:, columns], axis=1)[rows]  # NaN is sorted behind all others
        return rows[np.argsort(key if choice.order == LOWEST else -key, kind="stable")]

    def _have(self, finding: str, columns: slice, threshold: float) -> npt.NDArray[np.bool_]:
        """Return which slices have a finding: [N]."""
        labels, probabilities = self.labels[:, columns], self.probabilities[:, columns]
        if finding == ABSENT:
            return np.asarray((labels == 0).all(axis=1))
        cells = {
            PRESENT: labels == 1,
            FALSE_NEGATIVE: (labels == 1) & (probabilities < threshold),
            FALSE_POSITIVE: (labels == 0) & (probabilities >= threshold),
        }[finding]
        return np.asarray(cells.any(axis=1))


def read_predictions(path: Path) -> list[pd.DataFrame]:
    """Read predictions: a table that `predict` wrote, or all of a run or a cross-validation.

    Of a run, the tables of plain splits come before those of variants (test-time augmentation).

    Raises:
        UsageError: there are none, or a file is damaged.
    """
    if path.is_dir():
        pooled = path / OUT_OF_FOLD
        found = sorted(path.glob(PREDICTIONS.format("*")), key=lambda each: len(each.name))
        files = [pooled] if pooled.is_file() else found
    elif path.exists():
        files = [path]
    else:
        raise UsageError(f"--run {path}: no such run or table")
    if not files:
        raise UsageError(
            f"--run {path}: has no predictions-*.parquet; `headct evaluate` writes them"
        )
    return [_read_table(file) for file in files]


def _read_table(file: Path) -> pd.DataFrame:
    try:
        table: pd.DataFrame = pd.read_parquet(file).rename(columns=str)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no Parquet table"
        raise UsageError(f"--run {file}: cannot be read ({reason})") from None
    predicted = [name for name in map(str, table) if name.startswith(PROBABILITY)]
    if IMAGE_ID not in table or not predicted:
        raise UsageError(f"--run {file}: want the columns {IMAGE_ID} and {PROBABILITY}LABEL")
    for name in predicted:
        values = table[name].dropna()
        if not (is_numeric_dtype(values) and values.between(0, 1).all()):
            raise UsageError(f"--run {file}: {name}: want probabilities, numbers from 0 to 1")
    return table.drop_duplicates(IMAGE_ID)
