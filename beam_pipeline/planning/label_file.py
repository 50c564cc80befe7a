"""A label file to labels by image id."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipeline.options import Files, LabelOptions
from beam_pipeline.planning.label_columns import WideColumns, find_long, find_wide
from beam_pipeline.planning.label_values import check_values, parse_values
from beam_pipeline.planning.labels import AROUND, RSNA_LABELS, Labels, Values, collect
from beam_pipeline.planning.text_tables import TextTable, open_table
from headct.errors import UsageError
from headct.layout import MAX_LABELS, check_label_names
from headct.printable import quoted
from headct.stores import DEFAULT_PATIENCE

_BETWEEN = "\x1f"  # an image id and its class; no printable name holds it


@dataclass(frozen=True)
class LabelFile:
    """A label file, in one of two forms.

    The long form, as Kaggle distributes it, has the columns `ID` and `Label` and a row
    `<image id>_<class>,<0 or 1>` for each class of an image. The wide form has a column of image
    ids and a column of 0 and 1 for each class.

    Other columns of a wide file are left alone if `label_columns` names those of the classes; so
    are columns without a name, as pandas writes its index. In the long form `label_columns` tells
    where the class begins whose name holds `_`; rows of other classes are left alone.

    Attributes:
        path: of a table that `open_table` reads.
        id_column: of the wide form; None to find it by its name.
        label_columns: none for RSNA's six if they are there, else all others.
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

    def read(self) -> Labels:
        """The labels, whatever the order of the rows.

        Identical repeated rows count once. An image id without a value for each class, with
        contradicting rows, or with a value other than 0 and 1 is unusable.

        Raises:
            UsageError: the file is missing or cannot be read, or has other columns, other values
                in them, or no rows; the message says what was found, and quotes no row.
            StoreError: its store fails.
        """
        try:
            with open_table(self.path, self.patience) as table:
                labels = self._read(table)
        except FileNotFoundError:
            raise UsageError(f"label file {self.path} does not exist") from None
        except OSError as error:
            raise UsageError(
                f"cannot read label file {self.path}: {error.strerror or error}"
            ) from None
        except ValueError as error:
            raise UsageError(f"label file {self.path}: {error}") from None
        if not len(labels.image_ids):
            raise UsageError(f"label file {self.path} has no rows")
        return labels

    def _read(self, table: TextTable) -> Labels:
        long = find_long(table.columns)
        if long and not {*self.label_columns} & {*table.columns}:
            return _read_long(table, long, self.label_columns)
        return _read_wide(table, find_wide(table.columns, self.id_column, self.label_columns))


def _read_long(table: TextTable, places: Sequence[int], classes: tuple[str, ...]) -> Labels:
    names: dict[str, int] = {}
    parts: list[Values] = []
    for ids, texts in table.read(places):
        values = parse_values(texts)
        if not parts:
            check_values("Label", texts, values)
        if classes:
            ids, values = _split_known(ids, values, classes)
        split = pc.split_pattern(ids, _BETWEEN if classes else "_", max_splits=1, reverse=True)
        if not pc.all(pc.equal(pc.list_value_length(split), 2), min_count=0).as_py():
            raise ValueError(
                "an ID is not of the form <image id>_<class>; if each row is an image, name the "
                "columns of the classes with --label_columns"
            )
        images = pc.list_element(split, 0).dictionary_encode()
        parts.append(Values(images, _number(pc.list_element(split, 1), names), values))
    if missing := [name for name in classes if name not in names]:
        raise ValueError(f"no ID ends in {quoted(f'_{missing[0]}')}, and no column has that name")
    check_label_names([*names])
    order = RSNA_LABELS if set(names) == set(RSNA_LABELS) else classes or tuple(names)
    columns = np.array([order.index(name) for name in names], np.int64)
    return collect(order, parts, columns)


def _split_known(
    ids: pa.StringArray, values: NDArray[np.int8], classes: Sequence[str]
) -> tuple[pa.StringArray, NDArray[np.int8]]:
    """The rows of some classes, with another sign before the longest that an ID ends in."""
    longest_first = sorted(map(re.escape, classes), key=len, reverse=True)
    # Without `.*` before it, the leftmost match is that of the longest class.
    pattern = f"_({'|'.join(longest_first)})[{AROUND}]*$"
    known = pc.match_substring_regex(ids, pattern)
    marked = pc.replace_substring_regex(ids.filter(known), pattern, rf"{_BETWEEN}\1")
    return marked, values[known.to_numpy(zero_copy_only=False)]


def _number(texts: pa.StringArray, known: dict[str, int]) -> NDArray[np.int16]:
    """Each class's place among the known ones, to which new ones are added."""
    encoded = texts.dictionary_encode()
    names = (text.strip(AROUND) for text in encoded.dictionary.to_pylist())
    places = [known.setdefault(name, len(known)) for name in names]
    if len(known) > MAX_LABELS:
        raise ValueError(
            f"it has {len(known)} classes or more, and there can be {MAX_LABELS}; an ID is to be "
            "<image id>_<class>"
        )
    return np.asarray(np.array(places, np.int16)[encoded.indices.to_numpy()])


def _read_wide(table: TextTable, columns: WideColumns) -> Labels:
    parts: list[Values] = []
    classes = np.arange(len(columns.names))
    for ids, *texts in table.read([columns.ids, *columns.classes, *columns.empty]):
        values = np.stack([parse_values(column) for column in texts[: len(classes)]], axis=1)
        for place, name in enumerate(() if parts else columns.names):
            check_values(name, texts[place], values[:, place])
        for place, column in zip(columns.empty, texts[len(classes) :], strict=True):
            if pc.any(pc.not_equal(column, "")).as_py():
                raise ValueError(
                    f"column {place + 1} has values and no name; give it one, or name the columns "
                    "of the classes with --label_columns"
                )
        parts.append(Values(ids.dictionary_encode(), classes.astype(np.int16), values))
    return collect(columns.names, parts, classes)
