"""A label file to a table of labels by image id."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from beam_pipeline.errors import Reason, UsageError

# RSNA Intracranial Hemorrhage Detection 2019: the five subtypes, and whether there is any.
RSNA_LABELS = (
    "epidural",
    "intraparenchymal",
    "intraventricular",
    "subarachnoid",
    "subdural",
    "any",
)
_LONG_COLUMNS = ("ID", "Label")
# What the id's column of a wide file may be called, whatever the case.
_ID_NAMES = ("image_id", "image", "id", "sopinstanceuid", "sop_instance_uid", "filename", "file")

_CONFLICT = (Reason.LABEL_CONFLICT, "rows contradict each other")
_MISSING_CLASS = (Reason.LABEL_INVALID, "not a value for each class")
_BAD_VALUE = (Reason.LABEL_INVALID, "a value is neither 0 nor 1")


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Attributes:
        names: of the classes, in the order of the columns.
        table: int8, 0 or 1, a column a class, indexed by image id (unique).
        unusable: the reason and its detail for every image id whose rows cannot be used.
    """

    names: tuple[str, ...]
    table: pd.DataFrame
    unusable: dict[str, tuple[Reason, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelFile:
    """A label file, in one of two forms.

    The long form, as Kaggle distributes it, has the columns `ID` and `Label` and a row
    `<image id>_<class>,<0 or 1>` for each class of an image. The wide form has a column of image
    ids and a column of 0 and 1 for each class.

    Attributes:
        path: CSV (also compressed) or Parquet; local or a URL.
        id_column: of the wide form; None to find it by its name.
        label_columns: of the wide form; none for RSNA's six if they are there, else all others.
    """

    path: str
    id_column: str | None = None
    label_columns: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise at once if the file is missing or has other columns.

        Raises:
            UsageError: with what was found.
        """
        columns = self._columns()
        if not self._is_long(columns):
            self._wide_columns(columns)

    def read(self) -> Labels:
        """The labels, whatever the order of the rows.

        Identical repeated rows count once. An image id with contradicting rows, with a value other
        than 0 and 1, or without a value for each class is unusable.

        Raises:
            UsageError: the file cannot be read, or has other columns or no rows.
        """
        columns = self._columns()
        if self._is_long(columns):
            labels = self._read_long()
        else:
            labels = self._read_wide(*self._wide_columns(columns))
        if labels.table.empty and not labels.unusable:
            raise UsageError(f"label file {self.path} has no rows")
        return labels

    def _is_long(self, columns: Sequence[str]) -> bool:
        return not self.label_columns and set(_LONG_COLUMNS) <= set(columns)

    def _wide_columns(self, columns: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        found = ", ".join(map(repr, columns))
        id_column = self.id_column or next((c for c in columns if c.lower() in _ID_NAMES), None)
        if id_column not in columns:
            raise UsageError(
                f"label file {self.path} has the columns {found}; expected 'ID' and 'Label', with "
                "rows like ID_0123abcde_subdural,0, or --id_column and a column a class"
            )
        others = tuple(column for column in columns if column != id_column)
        default = RSNA_LABELS if set(RSNA_LABELS) <= set(others) else others
        names = self.label_columns or default
        missing = [name for name in names if name not in others]
        if missing or not names:
            raise UsageError(f"label file {self.path} has the columns {found}, not {missing}")
        return str(id_column), names

    def _columns(self) -> list[str]:
        with self._open() as file:
            if self.path.endswith(".parquet"):
                return list(pq.read_schema(file).names)
            return list(csv.open_csv(file).schema.names)

    def _table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns as text; empty where there is no value."""
        with self._open() as file:
            if self.path.endswith(".parquet"):
                table = pq.read_table(file, columns=list(columns))
            else:
                types = dict.fromkeys(columns, pa.string())
                convert = csv.ConvertOptions(include_columns=list(columns), column_types=types)
                table = csv.read_csv(file, convert_options=convert)
        texts = {name: pc.fill_null(pc.cast(table[name], pa.string()), "") for name in columns}
        return pa.table(texts)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with fsspec.open(self.path, "rb", compression="infer") as file:
                yield file
        except FileNotFoundError:
            raise UsageError(f"label file {self.path} does not exist") from None
        except (OSError, EOFError, pa.ArrowException) as error:
            raise UsageError(f"cannot read label file {self.path}: {error}") from None

    def _read_long(self) -> Labels:
        rows = self._table(_LONG_COLUMNS)
        parts = pc.split_pattern(rows["ID"], "_", max_splits=1, reverse=True)
        if not pc.all(pc.equal(pc.list_value_length(parts), 2), min_count=0).as_py():
            raise UsageError(f"label file {self.path}: an ID is not of the form <image id>_<class>")
        images, image_ids = _encode(pc.list_element(parts, 0))
        columns, found = _encode(pc.list_element(parts, 1))
        order = RSNA_LABELS if set(found) == set(RSNA_LABELS) else tuple(found)
        places = np.array([order.index(name) for name in found], np.int64)
        return _labels(order, image_ids, images, places[columns], _values(rows["Label"]))

    def _read_wide(self, id_column: str, names: tuple[str, ...]) -> Labels:
        rows = self._table([id_column, *names])
        images, image_ids = _encode(rows[id_column])
        values = np.concatenate([_values(rows[name]) for name in names])
        columns = np.repeat(np.arange(len(names)), len(rows))
        return _labels(names, image_ids, np.tile(images, len(names)), columns, values)


def _encode(texts: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Each text's position among the different texts, and these."""
    encoded = texts.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _values(texts: pa.ChunkedArray) -> NDArray[np.int8]:
    """0 and 1 as they are, all else -1."""
    codes, different = _encode(texts)
    return np.array([_value(text) for text in different], np.int8)[codes]


def _value(text: str) -> int:
    if text in ("true", "false"):  # of a Parquet file
        return int(text == "true")
    try:
        number = float(text)
    except ValueError:
        return -1
    return int(number) if number in (0, 1) else -1


def _labels(
    names: tuple[str, ...],
    image_ids: Sequence[str],
    images: NDArray[np.int64],
    columns: NDArray[np.int64],
    values: NDArray[np.int8],
) -> Labels:
    """Part the images whose values are all there, 0 or 1, and agree, from the others.

    Args:
        names: of the classes.
        image_ids: each once.
        images: [n], of each value, as a position in `image_ids`.
        columns: [n], the class of each value, as a position in `names`.
        values: [n], 0, 1 or -1.
    """
    lowest = np.full((len(image_ids), len(names)), 2, np.int8)
    highest = np.full_like(lowest, -2)
    np.minimum.at(lowest, (images, columns), values)
    np.maximum.at(highest, (images, columns), values)
    missing = np.asarray((lowest > highest).any(axis=1))
    conflict = np.asarray((lowest < highest).any(axis=1))
    invalid = np.asarray((lowest < 0).any(axis=1))
    index = pd.Index(image_ids, dtype=str)
    unusable = dict.fromkeys(index[invalid], _BAD_VALUE)
    unusable |= dict.fromkeys(index[missing], _MISSING_CLASS)
    unusable |= dict.fromkeys(index[conflict], _CONFLICT)
    usable = ~(missing | conflict | invalid)
    table = pd.DataFrame(lowest[usable], index=index[usable], columns=list(names))
    return Labels(names, table.sort_index(), unusable)
