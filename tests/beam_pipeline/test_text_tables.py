import codecs
import csv
import gzip
import io
import itertools
import logging
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipeline.planning import text_tables
from beam_pipeline.planning.text_tables import open_table

TABLE = "image_id,site,any\na,x,1\nb,y,0\n"


def read(path: Path) -> list[list[str]]:
    """The header and all rows."""
    with open_table(str(path)) as table:
        parts = [*table.read(range(len(table.columns)))]
    columns = [
        [text for part in parts for text in part[i].to_pylist()] for i in range(len(parts[0]))
    ]
    return [[*table.columns], *map(list, zip(*columns, strict=True))]


def content(folder: Path, data: bytes, name: str = "table.csv") -> list[list[str]]:
    (folder / name).write_bytes(data)
    return read(folder / name)


ROWS = [line.split(",") for line in TABLE.splitlines()]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|", ", ", "; "])
def test_a_dialect_is_recognized_by_the_content(
    tmp_path: Path, encoding: str, end: str, separator: str
) -> None:
    text = TABLE.replace(",", separator).replace("\n", end)
    found = content(tmp_path, text.encode(encoding))
    assert [[text.strip() for text in row] for row in found] == ROWS
    assert found[0] == ROWS[0]
    assert content(tmp_path, text.removesuffix(end).encode(encoding))[-1] == found[-1]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_in_either_order_of_bytes(tmp_path: Path, encoding: str) -> None:
    assert content(tmp_path, f"\ufeff{TABLE}".encode(encoding)) == ROWS


texts = st.text(st.characters(exclude_categories=["C"], exclude_characters="\u2028\u2029\x85"))
tables = st.integers(2, 4).flatmap(
    lambda columns: st.lists(st.lists(texts, min_size=columns, max_size=columns), min_size=1)
)


@given(
    tables,
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_a_writer_of_csv_wrote_is_read(
    rows: list[list[str]], separator: str, end: str, encoding: str, quoting: int
) -> None:
    header = [f"column {number}" for number in range(len(rows[0]))]
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([header, *rows])
    with tempfile.TemporaryDirectory() as folder:
        expected = [header, *filter(any, rows)]
        assert content(Path(folder), file.getvalue().encode(encoding)) == expected


def test_a_line_end_in_quotes_ends_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'image_id,note\na,"one\ntwo"\nb,"three\n\n"\nc,"a ""b"" c"\n'
    expected = [["image_id", "note"], ["a", "one\ntwo"], ["b", "three\n\n"], ["c", 'a "b" c']]
    for block in (24, 30, 1 << 20):
        monkeypatch.setattr(text_tables, "_BLOCK_BYTES", block)
        assert content(tmp_path, text.encode()) == expected


@pytest.mark.parametrize(
    "text",
    [
        f"# exported by somebody\n#\n{TABLE}",
        f"\n\n{TABLE}",
        f"sep=;\r\n{TABLE.replace(',', ';')}",
        f'"sep=|"\n{TABLE.replace(",", "|")}',
    ],
)
def test_what_stands_before_the_header_is_left_out(tmp_path: Path, text: str) -> None:
    assert content(tmp_path, text.encode()) == ROWS


def test_what_is_not_utf_8_is_read_as_windows_1252_and_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "image_id,h\u00e4matom\na,1\n\u0153,0\n"
    assert content(tmp_path, text.encode("cp1252")) == [
        ["image_id", "h\u00e4matom"],
        ["a", "1"],
        ["\u0153", "0"],
    ]
    assert caplog.record_tuples == [
        (
            text_tables.__name__,
            logging.WARNING,
            f"{tmp_path}/table.csv is not UTF-8, and is read as Windows-1252",
        )
    ]
    marked = content(tmp_path, codecs.BOM_UTF8 + text.encode("cp1252"))
    assert marked[0] == ["image_id", "h\u00e4matom"]
    # Files that were put together from files in two encodings.
    mixed = content(tmp_path, text.encode() + "\u00e9,1\n".encode("cp1252"))
    assert [row[0] for row in mixed] == ["image_id", "a", "\u0153", "\u00e9"]
    caplog.clear()
    assert content(tmp_path, text.encode())[0] == ["image_id", "h\u00e4matom"]
    assert not caplog.records


def test_columns_are_read_by_their_places_whatever_their_names(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("x,,x,y\n1,2,3,4\n")
    with open_table(str(path)) as table:
        assert table.columns == ("x", "", "x", "y")
        (columns,) = table.read([2, 0, 2, 1])
    assert [column.to_pylist() for column in columns] == [["3"], ["1"], ["3"], ["2"]]


def test_parquet_is_recognized_by_its_content(tmp_path: Path) -> None:
    frame = pd.DataFrame({" a ": ["x", None], "b": [True, False], "c": [1.0, np.nan], "d": [1, 0]})
    file = io.BytesIO()
    frame.to_parquet(file)
    expected = [["a", "b", "c", "d"], ["x", "true", "1", "1"], ["", "false", "", "0"]]
    assert content(tmp_path, file.getvalue()) == expected
    assert content(tmp_path, gzip.compress(file.getvalue())) == expected


def archive(*names: str, data: bytes = TABLE.encode()) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name in names:
            written.writestr(name, data)
    return file.getvalue()


def test_an_archive_may_hold_a_compressed_table_and_what_macos_adds(tmp_path: Path) -> None:
    thrice = gzip.compress(gzip.compress(gzip.compress(TABLE.encode())))
    assert content(tmp_path, thrice) == content(tmp_path, TABLE.encode())
    data = archive("a.csv.gz", "__MACOSX/._a.csv.gz", data=gzip.compress(TABLE.encode()))
    assert content(tmp_path, data) == ROWS


def saved(write: str) -> bytes:
    file = io.BytesIO()
    getattr(pd.DataFrame({"a": ["x"], "b": [1]}), write)(file)
    return file.getvalue()


def numpy_file(save: str) -> bytes:
    file = io.BytesIO()
    getattr(np, save)(file, np.zeros(9))
    return file.getvalue()


def unsupported_archive() -> bytes:
    data = bytearray(archive("a.csv"))
    for place in (8, data.index(b"PK\x01\x02") + 10):  # the method in both headers
        data[place : place + 2] = (9).to_bytes(2, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (archive("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook; save its sheet"),
        (archive("mimetype", "content.xml"), "an OpenDocument file; save its sheet as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "an Excel workbook; save it as CSV"),
        (saved("to_json"), "it is JSON; save"),
        (b"\n<table><tr><td>a</td></tr></table>", "it is HTML or XML; save"),
        (saved("to_pickle"), "a Python pickle; save"),
        (saved("to_feather"), "an Arrow file; save"),
        (numpy_file("save"), "a NumPy array; save"),
        (numpy_file("savez"), "a NumPy array; save"),
        (saved("to_parquet")[:200], "damaged, or no table"),
        (bytes(128) + b"DICM", "it is no text; save"),
        (TABLE.encode("utf-16-le"), "it is no text; save it as CSV in UTF-8"),
        (f"\ufeff{TABLE}".encode("utf-16-le")[:-1], "it is no text, or damaged"),
        (archive("a.csv", "b.csv"), "the archive holds 2 files, not one"),
        (unsupported_archive(), "the archive's compression is not supported"),
        (b"", "it is empty"),
        (b"\n\r\n", "it is empty"),
        (gzip.compress(b""), "it is empty"),
        (TABLE.encode() + b'"c,z,1\n', "a double quote .* not closed"),
        (b"x" * 200_000 + b",y\n1,2\n", "its first row is no header"),
    ],
    ids=itertools.count(),
)
def test_what_is_no_table_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(OSError, match=message):
        content(tmp_path, data)


@pytest.mark.parametrize(("row", "values"), [("Doe^John,1", 2), ("Doe^John,x,1,1,1", 5)])
@pytest.mark.parametrize("block", [24, 1 << 20])
def test_a_ragged_row_is_counted_and_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, values: int, block: int
) -> None:
    monkeypatch.setattr(text_tables, "_BLOCK_BYTES", block)
    with pytest.raises(OSError, match=r"row 3 after") as caught:
        content(tmp_path, f"{TABLE}{row}\nc,z,1\n".encode())
    assert str(caught.value) == f"row 3 after the header has {values} values, the header 3"


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst", ".zip"])
def test_a_compressed_table_has_a_largest_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"table.csv{suffix}"
    frame = pd.DataFrame({"image_id": ["a"] * 100_000, "any": 0})
    frame.to_csv(path, index=False)
    monkeypatch.setattr(text_tables, "_MOST_UNPACKED", 1 << 17)
    monkeypatch.setattr(text_tables, "_BLOCK_BYTES", 1 << 16)
    with pytest.raises(OSError, match=r"unpacks to more than .*; use the unpacked file"):
        read(path)
    frame.to_csv(tmp_path / "table.csv", index=False)
    with open_table(str(tmp_path / "table.csv")) as table:
        assert sum(len(ids) for (ids,) in table.read([0])) == len(frame)


def test_a_parquet_table_has_a_largest_number_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tables, "_MOST_ROWS", 99)
    pd.DataFrame({"image_id": ["a"] * 100, "any": 0}).to_parquet(tmp_path / "table")
    with pytest.raises(OSError, match="it has 100 rows, more than 99"):
        read(tmp_path / "table")


def test_the_end_of_a_sheet_has_no_rows(tmp_path: Path) -> None:
    assert content(tmp_path, f"{TABLE},,\n,,\n,,x\n".encode()) == [*ROWS, ["", "", "x"]]
