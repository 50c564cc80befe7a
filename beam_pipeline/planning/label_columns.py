"""Which columns of a label file hold what, by their names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from beam_pipeline.planning.label_values import is_like_a_value
from beam_pipeline.planning.labels import RSNA_LABELS
from headct.layout import MAX_LABELS, check_label_names
from headct.printable import quoted

_LONG = ("ID", "Label")
# What the column of ids of a wide file may be called, whatever the case.
_ID_NAMES = ("image_id", "image", "id", "sopinstanceuid", "sop_instance_uid", "filename", "file")
# As pandas writes an index, and calls the columns of a CSV file that have no name.
_INDEX = re.compile(r"Unnamed: 0(\.\d+)?|__index_level_\d+__")
_UNNAMED = re.compile(rf"(Unnamed: \d+|{_INDEX.pattern})?")
_COLUMNS_SHOWN = 8  # in a message
_WANTED = (
    "want 'ID' and 'Label', with rows like ID_0123abcde_subdural,0, or a column of ids "
    "(--id_column) and a column for each class"
)


@dataclass(frozen=True)
class WideColumns:
    """The columns of a wide label file, by their places.

    Attributes:
        ids: the column of image ids.
        names: of the classes.
        classes: the column of each class.
        empty: columns that no name tells what to do with, and that must be empty.
    """

    ids: int
    names: tuple[str, ...]
    classes: tuple[int, ...]
    empty: tuple[int, ...]


def find_long(columns: Sequence[str]) -> tuple[int, ...] | None:
    """Return the places of `ID` and `Label` if a file has both, as Kaggle's long form.

    Raises:
        ValueError: one of them is there twice.
    """
    if not set(_LONG) <= set(columns):
        return None
    return tuple(_place(columns, name) for name in _LONG)


def find_wide(
    columns: Sequence[str], id_column: str | None, label_columns: tuple[str, ...]
) -> WideColumns:
    """Find the columns of the image ids and of the classes.

    Args:
        columns: the names of all columns.
        id_column: None to find it by its name.
        label_columns: none for RSNA's six if they are there, else all others that have a name.

    Raises:
        ValueError: there are no such columns; the message says which there are.
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
    """Whether a column is the index that pandas writes beside the columns of a table."""
    return bool(_INDEX.fullmatch(name)) or (place == 0 and not name)


def _listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - _COLUMNS_SHOWN} more" if len(columns) > _COLUMNS_SHOWN else ""
    return f"the columns {', '.join(map(quoted, columns[:_COLUMNS_SHOWN]))}{more}"


def _place(columns: Sequence[str], name: str) -> int:
    """A column's place; it must be the only one of that name."""
    if columns.count(name) > 1:
        raise ValueError(f"it has two columns {quoted(name)}; remove or rename one")
    return columns.index(name)
