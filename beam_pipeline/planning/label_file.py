"""Label files in long or wide form, read as `Labels`."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipeline.options import Files, LabelOptions
from beam_pipeline.planning.labels import AROUND, RSNA_LABELS, Labels, Values, collect
from beam_pipeline.planning.text_tables import TextTable, open_table
from headct.errors import UsageError
from headct.layout import MAX_LABELS, check_label_names
from headct.printable import quoted
from headct.stores import DEFAULT_PATIENCE

_TRUTHS = {"true": 1, "false": 0}  # of pandas, R and Parquet; the case is ignored
# Words that identify nobody.
_ANSWERS = {"yes", "no", "y", "n", "t", "f", "positive", "negative", "pos", "neg"}


def parse_values(texts: pa.StringArray) -> NDArray[np.int8]:
    """Return texts as 0 and 1, and -1 for any other text: int8 [n]."""
    encoded = texts.dictionary_encode()
    different = np.array([_value(text) for text in encoded.dictionary.to_pylist()], np.int8)
    return np.asarray(different[encoded.indices.to_numpy()])


def check_values(column: str, texts: pa.StringArray, values: NDArray[np.int8]) -> None:
    """Raise a ValueError if most values of a column are neither 0 nor 1.

    Args:
        column: name of the column.
        texts: [n].
        values: [n], the texts parsed by `parse_values`.
    """
    wrong = values < 0
    if wrong.sum() * 2 > len(wrong):
        raise ValueError(
            f"column {quoted(column)} is not of 0 and 1"
            f"{_instance(texts.filter(pa.array(wrong)))}; write 0 and 1, or true and false, or "
            "name the columns of the classes with --label_columns"
        )


def is_like_a_value(text: str) -> bool:
    """Return whether a text is a label's value, a number, or an answer such as yes."""
    return _value(text) >= 0 or text.lower() in _ANSWERS or _is_number(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _instance(texts: pa.Array) -> str:
    """Return an example value; long numbers and other text may identify a patient."""
    for text in texts.unique().to_pylist():
        with suppress(ValueError):
            if text.lower() in _ANSWERS or abs(float(text)) < 1000:
                return f", but for instance {text}"
    return ""


def _value(text: str) -> int:
    plain = text.strip(AROUND).lower()
    if plain in _TRUTHS:
        return _TRUTHS[plain]
    try:
        number = float(plain.replace(",", "."))  # as half of Europe writes 1.0
    except ValueError:
        return -1
    return int(number) if number in (0, 1) else -1


_LONG = ("ID", "Label")
# Names of a wide file's id column; the case is ignored.
_ID_NAMES = ("image_id", "image", "id", "sopinstanceuid", "sop_instance_uid", "filename", "file")
# pandas' names for an index and for unnamed columns of a CSV file.
_INDEX = re.compile(r"Unnamed: 0(\.\d+)?|__index_level_\d+__")
_UNNAMED = re.compile(rf"(Unnamed: \d+|{_INDEX.pattern})?")
_COLUMNS_SHOWN = 8  # in a message
_WANTED = (
    "want 'ID' and 'Label', with rows like ID_0123abcde_subdural,0, or a column of ids "
    "(--id_column) and a column for each class"
)


@dataclass(frozen=True)
class WideColumns:
    """Column indices of a wide label file.

    Attributes:
        ids: column of image ids.
        names: names of the classes.
        classes: one column per class.
        empty: unnamed columns, which must be empty.
    """

    ids: int
    names: tuple[str, ...]
    classes: tuple[int, ...]
    empty: tuple[int, ...]


def find_long(columns: Sequence[str]) -> tuple[int, ...] | None:
    """Return the indices of `ID` and `Label` (Kaggle's long form), or None.

    Raises:
        ValueError: the file has two columns of one name.
    """
    if not set(_LONG) <= set(columns):
        return None
    return tuple(_place(columns, name) for name in _LONG)


def find_wide(
    columns: Sequence[str], id_column: str | None, label_columns: tuple[str, ...]
) -> WideColumns:
    """Find the columns of the image ids and of the classes.

    Args:
        columns: names of all columns.
        id_column: name of the id column; None to try the usual names.
        label_columns: names of the classes; empty for RSNA's six if present, else all other
            named columns.

    Raises:
        ValueError: a column is missing; the message lists the columns of the file.
    """
    ids = _find_ids(columns, id_column)
    names = _find_classes(columns, ids, label_columns)
    classes = tuple(_place(columns, name) for name in names)
    check_label_names(names)
    if label_columns:
        return WideColumns(ids, names, classes, ())
    unnamed = (place for place, name in enumerate(columns) if _UNNAMED.fullmatch(name))
    empty = (p for p in unnamed if p != ids and not _is_index(p, columns[p]))
    return WideColumns(ids, names, classes, tuple(empty))


def _find_ids(columns: Sequence[str], id_column: str | None) -> int:
    if id_column in columns:
        return _place(columns, str(id_column))
    if id_column is None:
        plain = (re.sub("[ -]", "_", name.lower()) for name in columns)
        found = [place for place, name in enumerate(plain) if name in _ID_NAMES]
        found += [place for place, name in enumerate(columns) if _is_index(place, name)]
        if found and len(columns) > 1:
            return found[0]
    if any(map(is_like_a_value, columns)):
        raise ValueError(f"its first row holds values, not the names of columns; {_WANTED}")
    raise ValueError(f"it has {_listed(columns)}; {_WANTED}")


def _find_classes(
    columns: Sequence[str], ids: int, label_columns: tuple[str, ...]
) -> tuple[str, ...]:
    others = [name for place, name in enumerate(columns) if place != ids]
    missing = [name for name in label_columns if name not in others]
    if missing:
        raise ValueError(f"it has {_listed(columns)}, not {quoted(missing[0])}")
    if label_columns:
        return label_columns
    if set(RSNA_LABELS) <= set(others):
        return RSNA_LABELS
    names = tuple(name for name in others if not _UNNAMED.fullmatch(name))
    if not names:
        raise ValueError(f"it has {_listed(columns)}, and none of a class")
    if len(names) > MAX_LABELS:
        raise ValueError(
            f"it has {len(names)} columns beside the ids, and there can be {MAX_LABELS} classes; "
            "name the columns of the classes with --label_columns"
        )
    return names


def _is_index(place: int, name: str) -> bool:
    """Return whether a column is an index that pandas wrote."""
    return bool(_INDEX.fullmatch(name)) or (place == 0 and not name)


def _listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - _COLUMNS_SHOWN} more" if len(columns) > _COLUMNS_SHOWN else ""
    return f"the columns {', '.join(map(quoted, columns[:_COLUMNS_SHOWN]))}{more}"


def _place(columns: Sequence[str], name: str) -> int:
    """Return the index of a column; raise a ValueError if two columns have the name."""
    if columns.count(name) > 1:
        raise ValueError(f"it has two columns {quoted(name)}; remove or rename one")
    return columns.index(name)


_BETWEEN = "\x1f"  # separates image id and class; not printable, so in no name


@dataclass(frozen=True)
class LabelFile:
    """A label file in long or wide form.

    The long form, as Kaggle distributes it, has the columns `ID` and `Label` and a row
    `<image id>_<class>,<0 or 1>` per image and class. The wide form has a column of image ids and
    a column of 0 and 1 per class.

    If `label_columns` is given, other columns of a wide file are ignored, and other classes of a
    long file; class names of a long file may then contain `_`. Unnamed columns, such as the index
    that pandas writes, are always ignored.

    Attributes:
        path: path of a table that `open_table` reads.
        id_column: id column of the wide form; None to try the usual names.
        label_columns: names of the classes; empty for RSNA's six if present, else all others.
        patience: seconds to retry a failing request.
    """

    path: str
    id_column: str | None = None
    label_columns: tuple[str, ...] = ()
    patience: float = DEFAULT_PATIENCE

    @classmethod
    def of(cls, files: Files, labels: LabelOptions) -> "LabelFile | None":
        """Return the label file of the options, or None."""
        if files.labels is None:
            return None
        return cls(files.labels, labels.id_column, labels.label_columns, files.storage_patience)

    def read(self) -> Labels:
        """Read the labels; the order of the rows has no effect.

        Identical repeated rows count once. An image id is unusable if a class has no value, rows
        contradict, or a value is neither 0 nor 1.

        Raises:
            UsageError: the file is missing, unreadable or without rows, or columns or values are
                wrong; the message quotes no row.
            StoreError: the store fails.
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
    """Return the rows of some classes, with `_BETWEEN` between image id and class."""
    longest_first = sorted(map(re.escape, classes), key=len, reverse=True)
    # Without a leading `.*`, the leftmost match is the longest class.
    pattern = f"_({'|'.join(longest_first)})[{AROUND}]*$"
    known = pc.match_substring_regex(ids, pattern)
    marked = pc.replace_substring_regex(ids.filter(known), pattern, rf"{_BETWEEN}\1")
    return marked, values[known.to_numpy(zero_copy_only=False)]


def _number(texts: pa.StringArray, known: dict[str, int]) -> NDArray[np.int16]:
    """Return the number per class; new classes are added to `known`."""
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
