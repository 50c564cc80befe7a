"""index.parquet against the manifest, and its rows shared out to the shards."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beam_pipeline.dicom.hounsfield import Repair
from beam_pipeline.directory.index import index_schema
from beam_pipeline.verify.claims import Claims
from beam_pipeline.verify.description import read_listed
from beam_pipeline.verify.findings import Check, Findings, printable
from headct.layout import INDEX
from headct.stores import Folder


@dataclass(frozen=True)
class IndexRows:
    """Rows of the index, taken out of it only when they are used or sent to another process."""

    table: pa.Table  # the index
    places: NDArray[np.int64]  # [n], of the rows

    def __len__(self) -> int:
        return len(self.places)

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexRows, (self._taken(), np.arange(len(self.places)))

    def by_record(self) -> dict[int, dict[str, Any]]:
        """The rows by their record number; of equal numbers the last row."""
        return {row["record"]: row for row in self._taken().to_pylist()}

    def _taken(self) -> pa.Table:
        return self.table.take(pa.array(self.places))


def read_index(folder: Folder, claims: Claims, findings: Findings) -> pa.Table | None:
    """The index, checked as far as that needs no shard.

    Returns:
        The rows that have a value in every column, or None if it cannot be read or lacks columns.
    """
    data = read_listed(folder, INDEX, Check.INDEX, claims, findings)
    if data is None:
        return None
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"cannot be read: {type(error).__name__}: {printable(error)}"
        findings.add(Check.INDEX, message, INDEX)
        return None
    if not _check_columns(table, claims.at("labels") or (), findings):
        return None
    table = _without_nulls(table, findings)
    repairs = table["repair"].to_pandas().value_counts().drop(Repair.NONE, errors="ignore")
    found = {
        "written": len(table),
        "resized": pc.sum(table["resized"], min_count=0).as_py(),
        "repaired": repairs.to_dict(),
    }
    for name, value in found.items():
        findings.compare(Check.INDEX, INDEX, name, value, claims.at("counts", name))
    return table


def _check_columns(table: pa.Table, labels: Sequence[str], findings: Findings) -> bool:
    """Whether each column is there once, with the type that it is written with."""
    found, wanted = {}, {column.name: str(column.type) for column in index_schema(labels)}
    for name in wanted:
        places = table.schema.get_all_field_indices(name)
        found[name] = " and ".join(str(table.schema.types[place]) for place in places) or "missing"
    findings.compare(Check.INDEX, INDEX, "columns", found, wanted)
    return found == wanted


def _without_nulls(table: pa.Table, findings: Findings) -> pa.Table:
    # Arrow writes the NaN of an unknown position or spacing as null.
    filled = table
    for column, field in enumerate(table.schema):
        if pa.types.is_float64(field.type):
            numbers = pc.fill_null(table[field.name], float("nan"))
            filled = filled.set_column(column, field.name, numbers)
    complete = filled.drop_null()
    if len(complete) < len(filled):
        message = f"{len(filled) - len(complete)} rows have empty cells"
        findings.add(Check.INDEX, message, INDEX)
    return complete


def rows_by_shard(table: pa.Table, claims: Claims, findings: Findings) -> dict[str, IndexRows]:
    """The index's rows of every listed shard; rows of other shards become findings.

    That no record has two rows need not be checked: there are as many rows as records, and every
    record has to have one.
    """
    findings.checked[Check.INDEX] += len(table)
    shards = table["shard"].combine_chunks().dictionary_encode().to_pandas()
    places: dict[Any, Any] = pd.Series(range(len(shards))).groupby(shards, observed=True).indices
    for file in sorted(places.keys() - claims.shards.keys()):
        message = f"{len(places[file])} rows are of {printable(file)}, which is not listed"
        findings.add(Check.INDEX, message, INDEX)
    table = table.combine_chunks()  # rows are taken for each shard, which looks through all chunks
    return {
        file: IndexRows(table, np.asarray(places.get(file, ()), np.int64)) for file in claims.shards
    }
