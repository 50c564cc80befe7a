"""A label file to a table of labels by image id."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from beam_pipeline.directory.unfinished import Unfinished, table_metadata
from beam_pipeline.errors import Reason, UsageError
from beam_pipeline.layout import LABELS_TABLE
from beam_pipeline.options import Files, LabelOptions
from beam_pipeline.planning.image_keys import image_keys
from beam_pipeline.storage import open_file
from beam_pipeline.storage.compression import decompressed
from beam_pipeline.storage.retries import DEFAULT_PATIENCE

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

# Why an image's rows cannot be used, and the detail of it.
PROBLEMS = (
    (Reason.LABEL_INVALID, "a value is neither 0 nor 1"),
    (Reason.LABEL_INVALID, "not a value for each class"),
    (Reason.LABEL_CONFLICT, "rows contradict each other"),
)
_BAD_VALUE, _MISSING_CLASS, _CONFLICT = range(len(PROBLEMS))
_BLOCK_BYTES = 1 << 24  # of a label file that are parsed at a time


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Attributes:
        names: of the classes, in the order of the columns.
        image_ids: string [images], as the file has them; no two are the same.
        values: int8 [images, classes], 0 or 1 where there is no problem.
        problems: int8 [images], the place of the problem in PROBLEMS, -1 for none.
    """

    names: tuple[str, ...]
    image_ids: pa.ChunkedArray
    values: NDArray[np.int8]
    problems: NDArray[np.int8]

    def keep(self, unfinished: Unfinished) -> None:
        """Write the labels for the step that plans the shards, on whichever machine.

        Raises:
            OutputError: they cannot be written.
            StoreError: the output's store fails.
        """
        values = pa.FixedSizeListArray.from_arrays(pa.array(self.values.ravel()), len(self.names))
        columns = {"image_id": self.image_ids, "values": values, "problem": self.problems}
        unfinished.write(LABELS_TABLE, pa.table(columns), {"names": self.names})

    @classmethod
    def find(cls, unfinished: Unfinished) -> "Labels | None":
        """Return the labels that `keep` wrote, or None if there are none."""
        table = unfinished.find(LABELS_TABLE)
        if table is None:
            return None
        names = tuple(table_metadata(table)["names"])
        values = table["values"].combine_chunks().flatten().to_numpy()
        problems = table["problem"].to_numpy()
        return cls(names, table["image_id"], values.reshape(-1, len(names)), problems)


@dataclass(frozen=True)
class LabelFile:
    """A label file, in one of two forms.

    The long form, as Kaggle distributes it, has the columns `ID` and `Label` and a row
    `<image id>_<class>,<0 or 1>` for each class of an image. The wide form has a column of image
    ids and a column of 0 and 1 for each class.

    Other columns of a wide file are left alone if `label_columns` names those of the classes.

    Attributes:
        path: CSV (also compressed) or Parquet; local or a URL.
        id_column: of the wide form; None to find it by its name.
        label_columns: of the wide form; none for RSNA's six if they are there, else all others.
        patience: seconds after which a request that fails is given up.
    """

    path: str
    id_column: str | None = None
    label_columns: tuple[str, ...] = ()
    patience: float = DEFAULT_PATIENCE

    @classmethod
    def of(cls, files: Files, labels: LabelOptions) -> "LabelFile | None":
        """The label file that options name."""
        if files.labels is None:
            return None
        return cls(files.labels, labels.id_column, labels.label_columns, files.storage_patience)

    def _check_values(self, column: str, texts: pa.Array) -> None:
        wrong = _values(texts) < 0
        if wrong.sum() * 2 > len(wrong):
            raise UsageError(
                f"label file {self.path}: column {column!r} is not of 0 and 1"
                f"{_instance(texts.filter(pa.array(wrong)))}; name the columns of the classes with "
                "--label_columns"
            )

    def read(self) -> Labels:
        """The labels, whatever the order of the rows.

        Identical repeated rows count once. An image id with contradicting rows, with a value other
        than 0 and 1, or without a value for each class is unusable.

        Raises:
            UsageError: the file is missing or cannot be read, or has other columns, other values
                in them, or no rows; the message says what was found.
        """
        columns = self._columns()
        if self._is_long(columns):
            labels = self._read_long()
        else:
            labels = self._read_wide(*self._wide_columns(columns))
        if not len(labels.image_ids):
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
                "rows like ID_0123abcde_subdural,0, or --id_column and a column per class"
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

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns as text, empty where there is no value; a part of the rows at a time."""
        with self._open() as file:
            if self.path.endswith(".parquet"):
                batches = pq.ParquetFile(file).iter_batches(columns=list(columns))
            else:
                types = dict.fromkeys(columns, pa.string())
                batches = csv.open_csv(
                    file,
                    read_options=csv.ReadOptions(block_size=_BLOCK_BYTES),
                    convert_options=csv.ConvertOptions(
                        include_columns=list(columns), column_types=types
                    ),
                )
            for batch in batches:
                texts = {c: pc.fill_null(pc.cast(batch[c], pa.string()), "") for c in columns}
                yield pa.RecordBatch.from_pydict(texts)

    def _checked(self, columns: Sequence[str], values: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The batches of some columns, if the first one's values are those of labels."""
        for number, rows in enumerate(self._batches(columns)):
            for name in () if number else values:
                self._check_values(name, rows[name])
            yield rows

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with open_file(self.path, self.patience) as file, decompressed(file, self.path) as data:
                yield data
        except FileNotFoundError:
            raise UsageError(f"label file {self.path} does not exist") from None
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"cannot read label file {self.path}: {error}") from None

    def _read_long(self) -> Labels:
        names: dict[str, int] = {}
        values = []
        for rows in self._checked(_LONG_COLUMNS, ["Label"]):
            parts = self._split_ids(rows["ID"])
            images = pc.list_element(parts, 0).dictionary_encode()
            classes = _places(pc.list_element(parts, 1), names)
            values.append(_Values(images, classes, _values(rows["Label"])))
        order = RSNA_LABELS if set(names) == set(RSNA_LABELS) else tuple(names)
        columns = np.array([order.index(name) for name in names], np.int64)
        return _labels(order, values, columns)

    def _split_ids(self, ids: pa.Array) -> pa.ListArray:
        """Image id and class of each."""
        parts = pc.split_pattern(ids, "_", max_splits=1, reverse=True)
        if not pc.all(pc.equal(pc.list_value_length(parts), 2), min_count=0).as_py():
            raise UsageError(f"label file {self.path}: an ID is not of the form <image id>_<class>")
        return parts

    def _read_wide(self, id_column: str, names: tuple[str, ...]) -> Labels:
        values = []
        for rows in self._checked([id_column, *names], names):
            images = rows[id_column].dictionary_encode()
            every = np.stack([_values(rows[name]) for name in names], axis=1)
            values.append(_Values(images, np.arange(len(names), dtype=np.int16), every))
        return _labels(names, values, np.arange(len(names)))


class _Values:
    """Values of a label file that were read together.

    Attributes:
        ids: string, the different images.
        keys: uint64, `image_keys` of them.
        images: int32 [n], of each row, as a place in `keys`.
        columns: int16, the class of each row [n], or of each of a row's values [classes].
        values: int8 [n] or [n, classes], 0, 1 or -1.
    """

    def __init__(
        self, images: pa.DictionaryArray, columns: NDArray[np.int16], values: NDArray[np.int8]
    ) -> None:
        self.ids = images.dictionary
        self.keys = image_keys(images.dictionary)
        self.images = images.indices.to_numpy()
        self.columns = columns
        self.values = values


def _places(texts: pa.Array, known: dict[str, int]) -> NDArray[np.int16]:
    """Each text's place among the known ones, to which new ones are added."""
    encoded = texts.dictionary_encode()
    places = [known.setdefault(text, len(known)) for text in encoded.dictionary.to_pylist()]
    return np.asarray(np.array(places, np.int16)[encoded.indices.to_numpy()])


def _values(texts: pa.Array) -> NDArray[np.int8]:
    """0 and 1 as they are, all else -1."""
    encoded = texts.dictionary_encode()
    different = np.array([_value(text) for text in encoded.dictionary.to_pylist()], np.int8)
    return np.asarray(different[encoded.indices.to_numpy()])


def _instance(texts: pa.Array) -> str:
    """A value to recognize a column by; long numbers and other text may say who somebody is."""
    for text in texts.drop_null().unique().to_pylist():
        with suppress(ValueError):
            if abs(float(text)) < 1000:
                return f", but for instance {text}"
    return ""


def _value(text: str) -> int:
    if text in ("true", "false"):  # of a Parquet file
        return int(text == "true")
    try:
        number = float(text)
    except ValueError:
        return -1
    return int(number) if number in (0, 1) else -1


def _labels(names: tuple[str, ...], parts: Sequence[_Values], columns: NDArray[np.int64]) -> Labels:
    """Part the images whose values are all there, 0 or 1, and agree, from the others.

    Args:
        names: of the classes.
        parts: of the file.
        columns: the place in `names` of each class in the parts.
    """
    every = np.concatenate([np.empty(0, np.uint64), *(part.keys for part in parts)])
    rows, found = pd.factorize(every)
    is_new = np.zeros(len(every), np.bool_)  # numbers grow as images appear
    is_new[np.searchsorted(np.maximum.accumulate(rows), np.arange(len(found)))] = True
    ids = []
    lowest = np.full((len(found), len(names)), 2, np.int8)
    highest = np.full_like(lowest, -2)
    first = 0
    for part in parts:
        some = slice(first, first + len(part.keys))
        ids.append(part.ids.filter(pa.array(is_new[some])))
        row = rows[some][part.images]
        place = (row[:, None] if part.values.ndim == 2 else row), columns[part.columns]
        np.minimum.at(lowest, place, part.values)
        np.maximum.at(highest, place, part.values)
        first += len(part.keys)
    problems = np.full(len(found), -1, np.int8)
    problems[(lowest < 0).any(axis=1)] = _BAD_VALUE
    problems[(lowest > highest).any(axis=1)] = _MISSING_CLASS
    problems[(lowest < highest).any(axis=1)] = _CONFLICT
    return Labels(names, pa.chunked_array(ids, pa.string()), lowest, problems)
