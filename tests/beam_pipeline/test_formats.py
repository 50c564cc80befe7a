import io
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_pipeline.shards.formats import index_schema, index_table, table_of_rows, write_index


def row(shard: str, number: int, **other: Any) -> dict[str, Any]:
    return {
        "image_id": f"{shard}{number}",
        "split": "fold0",
        "shard": shard,
        "record": number,
        "offset": 10 * number,
        "bytes": 10,
        "image_offset": 10 * number + 3,
        "image_bytes": 5,
        "label_any": 1,
        "patient_id": "p",
        "study_id": "s",
        "series_id": "e",
        "position_z": 2.5,
        "row_spacing": 0.5,
        "column_spacing": float("nan"),
        "rows": 2,
        "columns": 2,
        "transfer_syntax": "1.2",
        "repair": "none",
        "resized": False,
        "source": "x",
    } | other


def rows(shard: str, count: int) -> list[dict[str, Any]]:
    return [row(shard, number) for number in range(count)]


def written(parts: Iterable[pa.Table], labels: tuple[str, ...] = ("any",)) -> bytes:
    file = io.BytesIO()
    write_index(file, parts, labels)
    return file.getvalue()


def test_rows_are_kept_in_order_with_the_columns_of_an_index() -> None:
    known = {"column_spacing": 0.5}
    given = [row("a", 2, header="secret", **known), row("a", 0, label_any=-1, **known)]
    table = index_table(given, ["any"])
    assert table.schema.equals(index_schema(["any"]))
    assert table.to_pylist() == [row("a", 2, **known), row("a", 0, label_any=-1, **known)]
    assert table.schema.field("label_any").type == pa.int8()


def test_rows_become_what_pyarrow_makes_of_them() -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a", "path": b"\xff", "count": -1, "print": 2**64 - 1, "z": 1.5, "yes": True},
        {"text": "", "path": b"", "count": 2, "print": 0, "z": float("nan"), "yes": False},
        {"text": "\u00e9\0", "path": b"x/y", "count": 3, "print": 1, "z": -0.0, "yes": True},
    ] * 4
    types = [pa.string(), pa.binary(), pa.int8(), pa.uint64(), pa.float64(), pa.bool_()]
    schema = pa.schema([*zip(rows[0], types, strict=True)])
    schema = schema.append(pa.field("repeated", pa.dictionary(pa.int32(), pa.string())))
    rows = [each | {"repeated": each["text"]} for each in rows]
    for some in (rows, rows[:1], []):
        table = table_of_rows(some, schema)
        table.validate(full=True)
        expected = [[each[name] for each in some] for name in schema.names]
        columns = [
            pa.array(c, f.type, from_pandas=True) for c, f in zip(expected, schema, strict=True)
        ]
        assert table.equals(pa.table(columns, schema=schema))


def test_labels_keep_their_order() -> None:
    names = index_schema(["zebra", "ant"]).names
    assert names[8:10] == ["label_zebra", "label_ant"]
    assert (names[7], names[10]) == ("image_bytes", "patient_id")


def test_a_position_that_is_not_known_is_null() -> None:
    table = index_table([row("a", 0, position_z=float("nan")), row("a", 1)], ["any"])
    assert table["position_z"].to_pylist() == [None, 2.5]
    frame = pd.read_parquet(io.BytesIO(written([table])))
    assert frame["position_z"].isna().tolist() == [True, False]


def test_parts_joined_are_the_whole() -> None:
    parts = [index_table(rows(shard, 40_000), ["any"]) for shard in "abc"]
    joined = written(iter(parts))
    whole = pd.DataFrame([row for shard in "abc" for row in rows(shard, 40_000)])
    found = pd.read_parquet(io.BytesIO(joined))
    pd.testing.assert_frame_equal(found, whole, check_dtype=False)
    assert joined == written(parts)


def test_small_parts_are_gathered_and_what_belongs_to_a_part_is_left_out() -> None:
    parts = [
        index_table(rows(str(shard), 1000), ["any"]).replace_schema_metadata({"of": str(shard)})
        for shard in range(40)
    ]
    file = pq.ParquetFile(io.BytesIO(written(parts)))
    # 17 parts are the first to have 16384 rows.
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert groups == [17_000, 17_000, 6_000]
    assert file.schema_arrow.equals(index_schema(["any"]), check_metadata=True)


def test_16384_rows_are_enough_for_a_row_group() -> None:
    parts = [index_table(rows(shard, 8192), ["any"]) for shard in "abc"]
    metadata = pq.ParquetFile(io.BytesIO(written(parts))).metadata
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert groups == [16_384, 8_192]


@pytest.mark.parametrize("parts", [0, 2])
def test_an_index_may_be_empty(parts: int) -> None:
    empty = index_table([], ["any"])
    assert empty.schema.equals(index_schema(["any"]))
    frame = pd.read_parquet(io.BytesIO(written([empty] * parts)))
    assert frame.empty
    assert list(frame.columns) == index_schema(["any"]).names
