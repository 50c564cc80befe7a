"""Label files of any form, read as `Labels`: ids, and a value per image and class."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipeline.options import LabelLevel, LabelOptions
from beam_pipeline.planning.text_tables import TextTable, open_table
from beam_pipeline.shards.unfinished import Unfinished, table_metadata
from headct.errors import UsageError
from headct.layout import LABELS_TABLE, MAX_LABELS, check_label_names
from headct.printable import quoted
from headct.reasons import Reason
from headct.stores import DEFAULT_PATIENCE

# RSNA Intracranial Hemorrhage Detection 2019: five subtypes, and any hemorrhage.
RSNA_LABELS = (
    "epidural",
    "intraparenchymal",
    "intraventricular",
    "subarachnoid",
    "subdural",
    "any",
)
# Values of a class other than 0 and 1, as reason and detail: -1, -2 and -3.
PROBLEMS = (
    (Reason.LABEL_INVALID, "a value is neither 0 nor 1"),
    (Reason.LABEL_INVALID, "not a value for each class"),
    (Reason.LABEL_CONFLICT, "rows contradict each other"),
)
_INVALID, _MISSING, _CONFLICT = -1, -2, -3
_CELLS = 1 << 24  # label values that always fit in memory
_AROUND = ' \t"'  # stripped from texts: CSV keeps quotes that follow a space

_TRUTHS = {"true": 1, "false": 0}  # of pandas, R and Parquet; the case is ignored
# Values that identify nobody, as long numbers and names may.
_HARMLESS = re.compile(
    r"(?i)[-+]?\d{1,3}([.,]\d*)?|true|false|t|f|yes|no|y|n|pos(itive)?|neg(ative)?"
)
# Values in place of a header: numbers, dates and UIDs may identify somebody, and are not shown.
_DATUM = re.compile(rf"(?i){_HARMLESS.pattern.removeprefix('(?i)')}|nan|[-+]?\d[-+\d.,:/e ]*")
_LONG = ("ID", "Label")
# Names of a wide file's id columns, without blanks and punctuation; the case is ignored.
_ID_NAMES = ("imageid", "image", "id", "sopinstanceuid", "filename", "file")
_SCAN_ID_NAMES = {
    LabelLevel.SERIES: ("seriesinstanceuid", "seriesuid", "seriesid", "series"),
    LabelLevel.STUDY: ("studyinstanceuid", "studyuid", "studyid", "study"),
    LabelLevel.PATIENT: ("patientid", "patient"),
}
_NO_CLASSES = {name for names in (_ID_NAMES, *_SCAN_ID_NAMES.values()) for name in names}
# pandas' names for an index and for unnamed columns of a CSV file.
_INDEX = re.compile(r"Unnamed: 0(\.\d+)?|__index_level_\d+__")
_UNNAMED = re.compile(rf"(Unnamed: \d+|{_INDEX.pattern})?")
_NO_ROWS = "it has no rows"
_COLUMNS_SHOWN = 8  # in a message
_WANTED = (
    "want 'ID' and 'Label', with rows like ID_0123abcde_subdural,0, or a column of ids "
    "(--id_column) and a column for each class"
)
# A label may name a converted image, or have a suffix where the file has none.
_IMAGE_SUFFIX = r"(?i)([^/])\.(?:dcm|dicom|ima|png|jpe?g)$"


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Attributes:
        names: names of the classes, in the order of the columns.
        ids: large_string [images], by `plain_ids`; unique.
        values: int8 [images, classes], 0 or 1, or -1 - n for PROBLEMS[n].
    """

    names: tuple[str, ...]
    ids: pa.Array
    values: NDArray[np.int8]

    def keep(self, unfinished: Unfinished) -> None:
        """Write the labels for the step that plans the shards.

        Raises:
            OutputError: the labels cannot be written.
            StoreError: the output's store fails.
        """
        values = pa.FixedSizeListArray.from_arrays(pa.array(self.values.ravel()), len(self.names))
        table = pa.table({"image_id": self.ids, "values": values})
        unfinished.write(LABELS_TABLE, table, {"names": self.names})

    @classmethod
    def find(cls, unfinished: Unfinished) -> "Labels | None":
        """Return the labels that `keep` wrote, or None."""
        table = unfinished.find(LABELS_TABLE)
        if table is None:
            return None
        names = tuple(table_metadata(table)["names"])
        values = table["values"].combine_chunks().flatten().to_numpy()
        return cls(
            names, table["image_id"].combine_chunks(), values.reshape(len(table), len(names))
        )


def read_labels(
    path: str, options: LabelOptions | None = None, patience: float = DEFAULT_PATIENCE
) -> Labels:
    """Read a label file in long or wide form; the order of the rows has no effect.

    The long form, as Kaggle distributes it, has the columns `ID` and `Label` and a row
    `<image id>_<class>,<0 or 1>` per image and class. The wide form has a column of image ids and
    a column of 0 and 1 per class.

    If `label_columns` is given, other columns of a wide file are ignored, and other classes of a
    long file; class names of a long file may then contain `_`. Unnamed columns, such as the index
    that pandas writes, are always ignored. Identical repeated rows count once.

    Args:
        path: path of a table that `open_table` reads.
        options: names of the columns.
        patience: seconds to retry a failing request.

    Raises:
        UsageError: the file is missing, unreadable or without rows, or columns or values are
            wrong; the message quotes no row.
        StoreError: the store fails.
    """
    options = options or LabelOptions()
    try:
        return _read_rows(path, options, patience).collect()
    except FileNotFoundError:
        raise UsageError(f"label file {path} does not exist") from None
    except OSError as error:
        raise UsageError(f"cannot read label file {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"label file {path}: {error}") from None


def _read_rows(path: str, options: LabelOptions, patience: float) -> "_Rows":
    with open_table(path, patience) as table:
        columns = table.columns
        if {*_LONG} <= {*columns} and not {*options.label_columns} & {*columns}:
            return _read_long(table, options.label_columns)
        return _read_wide(table, *find_columns(columns, options))


def plain_ids(texts: pa.Array) -> pa.Array:
    """Return normalized ids: with slashes, without a leading `./` and an image suffix."""
    # Few ids need a replacement, and the check takes a tenth of the time.
    if pc.any(pc.match_substring(texts, "\\")).as_py():
        texts = pc.replace_substring(texts, "\\", "/")
    if pc.any(pc.or_(pc.starts_with(texts, "/"), pc.starts_with(texts, "./"))).as_py():
        texts = pc.replace_substring_regex(texts, r"^(?:\.?/)+", "")
    if pc.any(pc.match_substring_regex(texts, _IMAGE_SUFFIX)).as_py():
        texts = pc.replace_substring_regex(texts, _IMAGE_SUFFIX, r"\1")
    return texts


def parse_values(texts: pa.Array) -> NDArray[np.int8]:
    """Return texts as 0 and 1, and -1 for any other text: int8 [n]."""
    encoded = texts.dictionary_encode()
    different = np.array([_value(text) for text in encoded.dictionary.to_pylist()], np.int8)
    return np.asarray(different[encoded.indices.to_numpy()])


def _value(text: str) -> int:
    plain = text.strip(_AROUND).lower()
    if plain in _TRUTHS:
        return _TRUTHS[plain]
    try:
        number = float(plain.replace(",", "."))  # as half of Europe writes 1.0
    except ValueError:
        return _INVALID
    return int(number) if number in (0, 1) else _INVALID


def check_values(column: str, texts: pa.Array, values: NDArray[np.int8]) -> None:
    """Raise a ValueError if most values of a column, parsed, are neither 0 nor 1."""
    wrong = values < 0
    if wrong.sum() * 2 <= len(wrong):
        return
    different = texts.filter(pa.array(wrong)).unique().to_pylist()
    harmless = [f", but for instance {text}" for text in different if _HARMLESS.fullmatch(text)]
    example = next(iter(harmless), "")
    raise ValueError(
        f"column {quoted(column)} is not of 0 and 1{example}; write 0 and 1, or true and false, or "
        "name the columns of the classes with --label_columns"
    )


def find_columns(
    columns: Sequence[str], options: LabelOptions
) -> tuple[int, dict[str, int], list[int]]:
    """Find the columns of a wide label file.

    Returns:
        The index of the column of image ids, of the column of each class, and of the unnamed
        columns that must be empty.

    Raises:
        ValueError: a column is missing; the message lists the columns of the file.
    """
    ids = _find_ids(columns, options)
    others = [name for place, name in enumerate(columns) if place != ids]
    named = [
        name for name in others if not _UNNAMED.fullmatch(name) and _plain(name) not in _NO_CLASSES
    ]
    if missing := [name for name in options.label_columns if name not in others]:
        raise ValueError(f"it has {_listed(columns)}, not {quoted(missing[0])}")
    rsna = RSNA_LABELS if {*RSNA_LABELS} <= {*others} else ()
    names = options.label_columns or rsna or named
    if not names:
        raise ValueError(f"it has {_listed(columns)}, and none of a class")
    if len(names) > MAX_LABELS:  # before a search for each name takes minutes
        raise ValueError(
            f"it has {len(names)} columns beside the ids, and there can be {MAX_LABELS} classes; "
            "name the columns of the classes with --label_columns"
        )
    classes = {name: _place(columns, name) for name in names}
    check_label_names([*classes])
    unnamed = [
        place
        for place, name in enumerate(columns)
        if _UNNAMED.fullmatch(name) and place != ids and not _is_index(place, name)
    ]
    return ids, classes, [] if options.label_columns else unnamed


def _plain(name: str) -> str:
    return re.sub("[ _-]", "", name.lower())


def _find_ids(columns: Sequence[str], options: LabelOptions) -> int:
    """Return the place of the column of ids: `--label_level`'s, or else the finest level's."""
    if options.id_column in columns:
        return _place(columns, str(options.id_column))
    of_level = _SCAN_ID_NAMES.get(options.label_level, ())
    wanted = [of_level, _ID_NAMES, *_SCAN_ID_NAMES.values()]
    found = [i for names in wanted for i, name in enumerate(columns) if _plain(name) in names]
    found += [place for place, name in enumerate(columns) if _is_index(place, name)]
    if options.id_column is None and found and len(columns) > 1:
        return found[0]
    if any(map(_DATUM.fullmatch, columns)):
        raise ValueError(f"its first row holds values, not the names of columns; {_WANTED}")
    raise ValueError(f"it has {_listed(columns)}; {_WANTED}")


def _is_index(place: int, name: str) -> bool:
    """Return whether a column is an index that pandas wrote."""
    return bool(_INDEX.fullmatch(name)) or (place == 0 and not name)


def _listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - _COLUMNS_SHOWN} more" if len(columns) > _COLUMNS_SHOWN else ""
    return f"the columns {', '.join(map(quoted, columns[:_COLUMNS_SHOWN]))}{more}"


def _place(columns: Sequence[str], name: str) -> int:
    if columns.count(name) > 1:
        raise ValueError(f"it has two columns {quoted(name)}; remove or rename one")
    return columns.index(name)


def _read_long(table: TextTable, classes: tuple[str, ...]) -> "_Rows":
    images, names = list[pa.Array](), list[pa.Array]()
    values: list[NDArray[np.int8]] = []
    rows = 0
    for ids, texts in table.read([_place(table.columns, name) for name in _LONG]):
        parsed = parse_values(texts)
        rows += len(parsed)
        if not values:
            check_values("Label", texts, parsed)
        of_images, of_names, known = _split_ids(ids, classes)
        values.append(parsed[known])
        images.append(of_images.dictionary_encode())
        names.append(of_names.dictionary_encode())
    if not rows:
        raise ValueError(_NO_ROWS)
    found, columns = _number(names, _strip)
    known_names = found.to_pylist()
    if missing := [name for name in classes if name not in known_names]:
        raise ValueError(f"no ID ends in {quoted(f'_{missing[0]}')}, and no column has that name")
    if len(known_names) > MAX_LABELS:
        raise ValueError(
            f"it has {len(known_names)} classes, and there can be {MAX_LABELS}; an ID is to be "
            "<image id>_<class>"
        )
    check_label_names(known_names)
    rsna = {*known_names} == {*RSNA_LABELS}
    order = RSNA_LABELS if rsna else classes or tuple(known_names)
    place_of = np.array([order.index(name) for name in known_names], np.int32)
    return _Rows(order, images, place_of[columns], values)


def _split_ids(
    ids: pa.Array, classes: tuple[str, ...]
) -> tuple[pa.Array, pa.Array, NDArray[np.bool_]]:
    """Return image id and class per row, and a mask of the rows with one of the classes."""
    if classes:  # the shortest image id has the longest class that fits
        names = "|".join(map(re.escape, classes))
        pattern = rf"(?s)^(?P<image>.*?)_(?P<name>{names})[{_AROUND}]*$"
        split = pc.extract_regex(ids, pattern)
        known = split.is_valid().to_numpy(zero_copy_only=False)
        return *split.drop_null().flatten(), known
    # Ten times as fast as the pattern.
    split = pc.split_pattern(ids, "_", max_splits=1, reverse=True)
    if not pc.all(pc.equal(pc.list_value_length(split), 2), min_count=0).as_py():
        raise ValueError(
            "an ID is not of the form <image id>_<class>; if each row is an image, name the "
            "columns of the classes with --label_columns"
        )
    return pc.list_element(split, 0), pc.list_element(split, 1), np.ones(len(ids), np.bool_)


def _read_wide(
    table: TextTable, ids: int, classes: dict[str, int], unnamed: Sequence[int]
) -> "_Rows":
    images, values = list[pa.Array](), list[NDArray[np.int8]]()
    for of_images, *texts in table.read([ids, *classes.values(), *unnamed]):
        parsed = [parse_values(column) for column in texts[: len(classes)]]
        for name, column, numbers in zip(() if values else classes, texts, parsed, strict=False):
            check_values(name, column, numbers)
        for place, column in zip(unnamed, texts[len(classes) :], strict=True):
            if pc.any(pc.not_equal(column, "")).as_py():
                raise ValueError(
                    f"column {place + 1} has values and no name; give it one, or name the columns "
                    "of the classes with --label_columns"
                )
        images.append(of_images.dictionary_encode())
        values.append(np.stack(parsed, axis=1))
    return _Rows(tuple(classes), images, np.arange(len(classes)), values)


def _strip(texts: pa.Array) -> pa.Array:
    return pc.utf8_trim(texts, _AROUND)


def _number(
    parts: Sequence[pa.DictionaryArray], normalize: Callable[[pa.Array], pa.Array]
) -> tuple[pa.Array, NDArray[np.int32]]:
    """Return the different normalized texts, and the index of each text."""
    encoded = pa.chunked_array(parts).unify_dictionaries()
    different = normalize(encoded.chunk(0).dictionary).dictionary_encode()
    indices = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
    return different.dictionary, different.indices.to_numpy()[indices]


@dataclass(frozen=True)
class _Rows:
    """The rows of a label file.

    Attributes:
        names: names of the classes.
        images: image ids of the rows of each block.
        columns: class of each row of a long file, or of each column of a wide one.
        values: values of each block, [rows] or [rows, classes].
    """

    names: tuple[str, ...]
    images: Sequence[pa.DictionaryArray]
    columns: NDArray[np.integer]
    values: Sequence[NDArray[np.int8]]

    def collect(self) -> Labels:
        """Collect the values of each image; by then, the file should not be in memory."""
        if not sum(map(len, self.images)):
            raise ValueError(_NO_ROWS)
        ids, rows = _number(self.images, lambda ids: plain_ids(_strip(ids)))
        values, cells = np.concatenate(self.values), len(ids) * len(self.names)
        if cells > max(_CELLS, 2 * values.size):
            raise ValueError(  # few rows with many classes could exhaust memory
                f"it has {len(ids)} images and {len(self.names)} classes, but only {values.size} "
                "values; want a value for each class of an image"
            )
        places = rows.astype(np.int64) * len(self.names)
        places = (places if values.ndim == 1 else places[:, None]) + self.columns
        lowest = np.full(cells, np.iinfo(np.int8).max, np.int8)
        highest = np.full(cells, np.iinfo(np.int8).min, np.int8)
        np.minimum.at(lowest, places, values)
        np.maximum.at(highest, places, values)
        conflicting, missing = lowest < highest, lowest > highest
        lowest[conflicting] = _CONFLICT
        lowest[missing] = _MISSING
        return Labels(self.names, ids, lowest.reshape(len(ids), len(self.names)))
