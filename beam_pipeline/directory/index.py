"""The index of examples: one row per example, as Parquet; a part per shard until the end."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from headct.layout import index_columns

_ROW_GROUP = 1 << 14


def index_schema(labels: Sequence[str]) -> pa.Schema:
    """The index's columns."""
    return pa.schema([(name, pa.type_for_alias(dtype)) for name, dtype in index_columns(labels)])


def index_table(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> pa.Table:
    """Rows of an index, in order; what else they hold is left out."""
    schema = index_schema(labels)
    columns = [
        # No position is null, as pandas has it.
        pa.array([row[field.name] for row in rows], field.type, from_pandas=True)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def write_index(file: BinaryIO, parts: Iterable[pa.Table], labels: Sequence[str]) -> None:
    """Write one index of several, in their order; a few parts at a time are in memory."""
    schema = index_schema(labels)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for part in parts:
            waiting.append(part.replace_schema_metadata())
            if sum(map(len, waiting)) >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
