"""index.parquet against the manifest, and its rows shared out to the shards."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beam_pipeline.dicom.hounsfield import Repair
from beam_pipeline.layout import INDEX, LABEL_PREFIX
from beam_pipeline.storage import Folder
from beam_pipeline.verify.claims import Claims
from beam_pipeline.verify.description import check_recorded_file, compare, read_described
from beam_pipeline.verify.findings import Check, Finding, Findings, printable

# Columns of the index by kind; there are also position_z, resized and one for each label.
_TEXTS = (
    "image_id",
    "split",
    "shard",
    "patient_id",
    "study_id",
    "series_id",
    "transfer_syntax",
    "repair",
    "source",
)
_INTEGERS = ("record", "offset", "bytes", "rows", "columns")


@dataclass(frozen=True)
class IndexRows:
    """Rows of the index, taken out of it only when they are used or sent to another process.

    Attributes:
        table: the index.
        places: int64 [n], of the rows.
    """

    table: pa.Table
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexRows, (self._taken(), np.arange(len(self.places)))

    def by_record(self) -> dict[int, dict[str, Any]]:
        """The rows by their record number; of equal numbers the first row."""
        rows: dict[int, dict[str, Any]] = {}
        for row in self._taken().to_pylist():
            rows.setdefault(row["record"], row)
        return rows

    def _taken(self) -> pa.Table:
        return self.table.take(pa.array(self.places))


def read_index(folder: Folder, claims: Claims, findings: Findings) -> pa.Table | None:
    """The index, checked as far as that needs no shard.

    Returns:
        The rows that have a value in every column, or None if it cannot be read or lacks columns.
    """
    data = read_described(folder, INDEX, Check.INDEX, findings)
    if data is None:
        return None
    check_recorded_file(INDEX, data, Check.INDEX, claims, findings)
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"cannot be read: {type(error).__name__}: {printable(error)}"
        findings.add(Finding(Check.INDEX, message, INDEX))
        return None
    if not _check_columns(table, claims.labels, findings):
        return None
    complete = _without_nulls(table, findings)
    _check_index_counts(complete, claims, findings)
    return complete


def _check_columns(table: pa.Table, labels: tuple[str, ...] | None, findings: Findings) -> bool:
    wanted: dict[str, Any] = dict.fromkeys(_TEXTS, _is_text)
    wanted |= dict.fromkeys(_INTEGERS, pa.types.is_integer)
    wanted |= {LABEL_PREFIX + label: pa.types.is_integer for label in labels or ()}
    wanted |= {"position_z": pa.types.is_floating, "resized": pa.types.is_boolean}
    wrong = []
    for name, has_kind in wanted.items():
        found = table.schema.get_all_field_indices(name)
        if len(found) != 1:
            wrong.append(f"column {printable(name)} is there {len(found)} times")
        elif not has_kind(table.schema.types[found[0]]):
            wrong.append(f"column {printable(name)} has type {table.schema.types[found[0]]}")
    for message in wrong:
        findings.add(Finding(Check.INDEX, message, INDEX))
    return not wrong


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _without_nulls(table: pa.Table, findings: Findings) -> pa.Table:
    # Arrow writes the NaN of an unknown position as null.
    column = table.schema.get_field_index("position_z")
    positions = pc.fill_null(table["position_z"], float("nan"))
    filled = table.set_column(column, "position_z", positions)
    complete = filled.drop_null()
    if len(complete) < len(filled):
        message = f"{len(filled) - len(complete)} rows have empty cells"
        findings.add(Finding(Check.INDEX, message, INDEX))
    return complete


def _check_index_counts(table: pa.Table, claims: Claims, findings: Findings) -> None:
    counted = pc.value_counts(table["repair"]).to_pylist()
    repairs = {each["values"]: each["counts"] for each in counted if each["values"] != Repair.NONE}
    resized = pc.sum(table["resized"], min_count=0).as_py()
    counts, stated = claims.counts, claims.tables.get("repaired")
    compare(Check.INDEX, INDEX, "rows", len(table), counts.get("written"), findings)
    compare(Check.INDEX, INDEX, "resized", resized, counts.get("resized"), findings)
    compare(Check.INDEX, INDEX, "repaired", repairs, stated, findings)


def rows_by_shard(table: pa.Table, claims: Claims, findings: Findings) -> dict[str, IndexRows]:
    """The index's rows of every listed shard; rows of other shards become findings."""
    findings.checked[Check.INDEX] += len(table)
    shards = table["shard"].combine_chunks().dictionary_encode()
    codes = shards.indices.to_numpy()  # a number a row, not a text
    places = pd.Series(codes).groupby(codes).indices
    found = {file: places[code] for code, file in enumerate(shards.dictionary.to_pylist())}
    rows = {
        shard.file: IndexRows(table, np.asarray(found.pop(shard.file, []), np.int64))
        for shard in {shard.file: shard for shard in claims.shards}.values()
    }
    for file, others in sorted(found.items()):
        message = f"{len(others)} rows are of {printable(file)}, which the manifest does not list"
        findings.add(Finding(Check.INDEX, message, INDEX))
    _check_repeated(table, codes, findings)
    return rows


def _check_repeated(table: pa.Table, shards: NDArray[np.int32], findings: Findings) -> None:
    keys = pd.DataFrame({"shard": shards, "record": table["record"].to_numpy()})
    for place in np.flatnonzero(keys.duplicated()):
        row = table.slice(int(place), 1).to_pylist()[0]
        message = f"record {row['record']} of {printable(row['shard'])} has two rows"
        findings.add(Finding(Check.INDEX, message, INDEX, image_id=row["image_id"]))
