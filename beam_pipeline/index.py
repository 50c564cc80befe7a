"""The index of examples: a row an example, as Parquet; a part a shard until the end."""

import io
from collections.abc import Iterable, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

LABEL_PREFIX = "label_"
_ROW_GROUP = 1 << 14

_BEFORE_LABELS = {
    "image_id": pa.string(),
    "split": pa.string(),
    "shard": pa.string(),
    "record": pa.int32(),
    "offset": pa.int64(),
    "bytes": pa.int32(),
}
_AFTER_LABELS = {
    "patient_id": pa.string(),
    "study_id": pa.string(),
    "series_id": pa.string(),
    "position_z": pa.float64(),
    "rows": pa.int32(),
    "columns": pa.int32(),
    "transfer_syntax": pa.string(),
    "repair": pa.string(),
    "resized": pa.bool_(),
    "source": pa.string(),
}


def index_schema(labels: Sequence[str]) -> pa.Schema:
    """The index's columns."""
    of_labels = {LABEL_PREFIX + label: pa.int8() for label in labels}
    return pa.schema([*(_BEFORE_LABELS | of_labels | _AFTER_LABELS).items()])


def encode_index(rows: pd.DataFrame, labels: Sequence[str]) -> bytes:
    """Rows of an index as Parquet, ordered by split, shard and record."""
    schema = index_schema(labels)
    ordered = rows.sort_values(["split", "shard", "record"], ignore_index=True)
    table = pa.Table.from_pandas(ordered[schema.names], schema, preserve_index=False)
    return _write([table.replace_schema_metadata()], schema)


def decode_index(data: bytes) -> pd.DataFrame:
    """The rows of an index."""
    rows: pd.DataFrame = pq.read_table(io.BytesIO(data)).to_pandas()
    return rows


def join_indexes(parts: Iterable[bytes], labels: Sequence[str]) -> bytes:
    """One index of several, in their order; a few parts at a time are in memory as rows."""
    return _write((pq.read_table(io.BytesIO(part)) for part in parts), index_schema(labels))


def _write(tables: Iterable[pa.Table], schema: pa.Schema) -> bytes:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for table in tables:
            waiting.append(table)
            if sum(map(len, waiting)) >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
    return buffer.getvalue()
