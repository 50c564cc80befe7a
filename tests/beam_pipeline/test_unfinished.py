from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipeline.errors import AlreadyComplete
from beam_pipeline.shards.unfinished import (
    Unfinished,
    decode_table,
    encode_table,
    table_metadata,
    with_metadata,
)
from headct.errors import OutputError
from headct.stores import Folder

TEXTS = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {"source": pa.binary(), "key": pa.uint64(), "reason": TEXTS, "place": pa.float64()}
)
ROWS = [
    {"source": b"\xff/a.dcm", "key": 2**64 - 1, "reason": "not_ct", "place": 0.5},
    {"source": b"", "key": 0, "reason": "", "place": None},
    {"source": b"b", "key": 1, "reason": "not_ct", "place": -1.0},
]
TABLE = pa.Table.from_pylist(ROWS, SCHEMA)
METADATA = {"shards": ["a", "b"], "options": None, "counts": {"é": 1.5}}


@pytest.fixture
def unfinished(tmp_path: Path) -> Unfinished:
    return Unfinished(Folder(str(tmp_path / "out")))


def path_of(unfinished: Unfinished, name: str) -> Path:
    return Path(unfinished.folder.url, ".unfinished", f"{name}.arrow")


def test_a_table_comes_back_with_its_metadata(unfinished: Unfinished) -> None:
    unfinished.write("written/some-shard", TABLE, METADATA)
    table = unfinished.read("written/some-shard")
    assert table.equals(TABLE)
    assert table.schema.equals(SCHEMA)
    assert table_metadata(table) == METADATA
    assert unfinished.find("written/some-shard").equals(TABLE)


@pytest.mark.parametrize("length", [0, 10, 1 << 15, 1 << 20])
def test_metadata_is_read_without_the_table(
    unfinished: Unfinished, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = METADATA | {"rejects": "x" * length}
    table = pa.table({"text": [f"{number:040}" for number in range(10_000)]})
    unfinished.write("written/some-shard", table, metadata)
    if length <= 10:
        monkeypatch.setattr(Unfinished, "read", None)
    assert unfinished.read_metadata("written/some-shard") == metadata


def test_tables_are_listed_by_their_kind(unfinished: Unfinished) -> None:
    assert unfinished.names("written") == set()
    for name in ("written/a-00000-of-00002", "written/b", "inventory/00000"):
        unfinished.write(name, TABLE)
    assert unfinished.names("written") == {"written/a-00000-of-00002", "written/b"}
    assert unfinished.names("inventory") == {"inventory/00000"}


def test_tables_that_are_gone_since_another_run_is_done(unfinished: Unfinished) -> None:
    reads: list[Callable[[], object]] = [
        lambda: unfinished.read("inventory/00000"),
        lambda: unfinished.find("inventory/00000"),
        lambda: unfinished.read_batch("plan/00000", 0),
        lambda: unfinished.read_metadata("inventory/00000"),
        lambda: list(unfinished.read_all(["inventory/00000"])),
        unfinished.read_plan,
    ]
    missing: list[object] = []
    for read in reads:
        try:
            missing.append(read())
        except FileNotFoundError:
            missing.append("missing")
    assert missing == ["missing", None, "missing", "missing", "missing", "missing"]
    unfinished.folder.write("manifest.json", b"{}")
    for read in reads:
        with pytest.raises(AlreadyComplete):
            read()


def test_a_table_is_where_the_folder_is_unfinished(unfinished: Unfinished) -> None:
    unfinished.write("inventory/00003", TABLE)
    path = path_of(unfinished, "inventory/00003")
    assert [file for file in Path(unfinished.folder.url).rglob("*") if file.is_file()] == [path]
    assert path.read_bytes() == encode_table(TABLE)


def test_a_table_without_metadata_has_none() -> None:
    assert table_metadata(TABLE) == table_metadata(decode_table(encode_table(TABLE))) == {}


def test_a_table_without_rows_comes_back(unfinished: Unfinished) -> None:
    unfinished.write("rejects", SCHEMA.empty_table(), METADATA)
    table = unfinished.read("rejects")
    assert table.equals(SCHEMA.empty_table())
    assert table_metadata(table) == METADATA


texts = st.text(max_size=5)
rows = st.fixed_dictionaries(
    {
        "source": st.binary(max_size=5),
        "key": st.integers(0, 2**64 - 1),
        "reason": texts,
        "place": st.none() | st.floats(allow_nan=False),
    }
)
metadata = st.dictionaries(texts, st.none() | st.integers() | texts | st.lists(texts))


@given(st.lists(rows), metadata)
def test_whatever_is_in_a_table_comes_back(rows: list[dict[str, Any]], known: Any) -> None:
    table = decode_table(encode_table(pa.Table.from_pylist(rows, SCHEMA), known))
    assert table.to_pylist() == rows
    assert table_metadata(table) == known


@given(st.lists(rows), metadata)
def test_the_same_table_is_the_same_bytes(rows: list[dict[str, Any]], known: Any) -> None:
    one, other = (pa.Table.from_pylist(rows, SCHEMA) for _ in range(2))
    assert encode_table(one, known) == encode_table(other, known)


def test_only_the_columns_asked_for_are_read(unfinished: Unfinished) -> None:
    unfinished.write("inventory/00000", TABLE, METADATA)
    table = unfinished.read("inventory/00000", ["key", "reason"])
    assert table.to_pydict() == {"key": [2**64 - 1, 0, 1], "reason": ["not_ct", "", "not_ct"]}
    assert table_metadata(table) == METADATA


def test_metadata_alone_may_be_read(unfinished: Unfinished) -> None:
    unfinished.write("written/a", TABLE, METADATA)
    table = unfinished.read("written/a", [])
    assert table.column_names == []
    assert table_metadata(table) == METADATA


def test_a_column_that_is_not_there_is_an_error(unfinished: Unfinished) -> None:
    unfinished.write("inventory/00000", TABLE)
    with pytest.raises(pa.ArrowException):
        unfinished.read("inventory/00000", ["key", "absent"])


def test_several_tables_are_read_in_the_order_asked_for(unfinished: Unfinished) -> None:
    names = [f"inventory/{number:05d}" for number in range(40)]
    for number, name in enumerate(names):
        unfinished.write(name, pa.table({"number": [number, -number], "other": ["", ""]}))
    asked = names[::-1] + names[3:5]
    found = [table.to_pydict() for table in unfinished.read_all(asked, ["number"])]
    assert found == [{"number": [n, -n]} for n in [*range(39, -1, -1), 3, 4]]
    assert [*unfinished.read_all([])] == []


def test_a_table_that_is_not_there_is_an_error_unless_it_is_looked_for(
    unfinished: Unfinished,
) -> None:
    unfinished.write("plan/00000", TABLE)
    with pytest.raises(FileNotFoundError):
        unfinished.read("plan/00001")
    with pytest.raises(FileNotFoundError):
        unfinished.read_batch("plan/00001", 0)
    with pytest.raises(FileNotFoundError):
        [*unfinished.read_all(["plan/00000", "plan/00001"])]
    assert unfinished.find("plan/00001") is None


def test_a_table_that_was_cut_counts_as_not_there(unfinished: Unfinished) -> None:
    unfinished.write("inventory/00000", TABLE, METADATA)
    path = path_of(unfinished, "inventory/00000")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert unfinished.find("inventory/00000") is None
    with pytest.raises(pa.ArrowException):
        unfinished.read("inventory/00000")


LARGE = pa.table(
    {
        "text": [f"text {number}" for number in range(2000)],
        "number": range(2000),
        "reason": pa.array([f"reason {number % 7}" for number in range(2000)], TEXTS),
    }
)


def test_a_table_with_a_page_that_never_reached_the_disk_counts_as_not_there(
    unfinished: Unfinished,
) -> None:
    unfinished.write("inventory/00000", LARGE, METADATA)
    path = path_of(unfinished, "inventory/00000")
    whole = path.read_bytes()
    for page in range(0, len(whole), 512):
        path.write_bytes(whole[:page] + bytes(len(whole[page : page + 512])) + whole[page + 512 :])
        assert unfinished.find("inventory/00000") is None


def test_batches_are_read_one_at_a_time(unfinished: Unfinished) -> None:
    batches = {
        "plan/00000": with_metadata([TABLE.slice(0, 1), TABLE.slice(1, 2)], {"shards": ["a", "b"]}),
        "plan/00001": with_metadata([TABLE.slice(2, 1)], {"shards": ["c"]}),
    }
    unfinished.write_all(iter(batches.items()))
    for name, tables in batches.items():
        for number, table in enumerate(tables):
            found = unfinished.read_batch(name, number)
            assert found.equals(table)
            assert table_metadata(found) == table_metadata(table)
    assert unfinished.read("plan/00000").equals(TABLE)


def test_a_batch_of_several_chunks_is_one(unfinished: Unfinished) -> None:
    chunks = pa.concat_tables([pa.table({"a": [1, 2]}), pa.table({"a": [3]})])
    unfinished.write_all([("plan/00000", with_metadata([chunks, chunks.slice(2)], {}))])
    assert unfinished.read_batch("plan/00000", 0).to_pydict() == {"a": [1, 2, 3]}
    assert unfinished.read_batch("plan/00000", 1).to_pydict() == {"a": [3]}


def test_a_table_that_cannot_be_written_is_an_error_of_the_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    unfinished = Unfinished(Folder(str(tmp_path / "file")))
    with pytest.raises(OutputError, match=r"cannot write \.unfinished/rejects\.arrow in .*file: "):
        unfinished.write("rejects", TABLE)
    with pytest.raises(OutputError, match=r"cannot write \.unfinished/plan/00000\.arrow"):
        unfinished.write_all([("plan/00000", [TABLE])])
