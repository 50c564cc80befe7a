"""CSV and Parquet tables, read as columns of text.

Compression, encoding and separator of files from spreadsheets, pandas or R are detected from the
content, not the file name. A file is in memory as a whole; its rows are parsed in blocks.
"""

import codecs
import csv
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from headct.stores import DEFAULT_PATIENCE, open_file
from headct.stores.archives import decompressed

_BLOCK_BYTES = 1 << 22  # of CSV that are parsed together; limits the length of a row
# Of a compressed file, which may be a million times as small: a table is in memory as a whole. Rows
# of Parquet take 30 bytes or more in memory, and some bits in the file.
_MOST_UNPACKED, _MOST_ROWS = 1 << 30, 1 << 27
_SEPARATORS = ",;\t|"
_WINDOWS_1252 = "headct-windows-1252"  # how bytes that are not UTF-8 are decoded
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Beginnings of files mistaken for tables, and of texts, perhaps after blanks.
_OTHERS = (
    (b"\xd0\xcf\x11\xe0", "an Excel workbook"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"ARROW1", "an Arrow file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF file"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"{", "JSON"),
    (b"[", "JSON"),
    (b"<", "HTML or XML"),
)
_HEAD_BYTES = 1 << 12  # searched for signs of other formats
_TEXT_BYTES = 1 << 16  # decoded together

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextTable:
    """An open table.

    Attributes:
        columns: stripped column names; may be empty or repeated.
        read: yields blocks of rows as text (large_string), for the columns at some indices; missing
            values are empty, and blank rows are dropped.
    """

    columns: tuple[str, ...]
    read: Callable[[Sequence[int]], Iterator[list[pa.Array]]]


def _decode_others(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error(_WINDOWS_1252, _decode_others)


@contextmanager
def open_table(path: str, patience: float = DEFAULT_PATIENCE) -> Iterator[TextTable]:
    """Open a table to read it once.

    Args:
        path: path or URL of CSV in any dialect, or Parquet, compressed or not.
        patience: seconds to retry a failing request.

    Raises:
        FileNotFoundError: the table does not exist.
        OSError: the table cannot be read, also raised in the block; the message names the format
            and the remedy.
        StoreError: the store fails.
    """
    data = bytearray()
    with open_file(path, patience) as file, decompressed(file) as content:
        while part := content.read(_BLOCK_BYTES):
            data += part
            if len(data) > max(_MOST_UNPACKED, file.tell()):
                most = f"{_MOST_UNPACKED >> 20} MiB"
                raise OSError(f"it unpacks to more than {most}; use the unpacked file")
    try:
        yield _open_parquet(data) if data.startswith(b"PAR1") else _open_csv(_to_utf_8(data, path))
    except UnicodeError:
        raise OSError("it is no text, or damaged") from None
    except pa.ArrowException as error:
        # Arrow's messages quote rows.
        raise OSError(f"it is damaged, or no table ({type(error).__name__})") from None


def _open_parquet(data: bytearray) -> TextTable:
    file = pq.ParquetFile(pa.BufferReader(data))
    names, rows = file.schema_arrow.names, file.metadata.num_rows
    if rows > _MOST_ROWS:
        raise OSError(f"it has {rows} rows, more than {_MOST_ROWS}")

    def read(places: Sequence[int]) -> Iterator[list[pa.Array]]:
        for batch in file.iter_batches(columns=[names[place] for place in dict.fromkeys(places)]):
            yield [_texts(batch[names[place]], names[place]) for place in places]

    return TextTable(tuple(name.strip() for name in names), read)


def _texts(values: pa.Array, column: str) -> pa.Array:
    try:
        return pc.fill_null(pc.cast(values, pa.large_string()), "")
    except pa.ArrowException:
        raise OSError(f"column {column!r} holds {values.type}, not texts or numbers") from None


def _to_utf_8(data: bytearray, path: str) -> bytes | bytearray:
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    if not encoding.startswith("utf-8"):
        return data.decode(encoding).encode()
    if data.startswith(codecs.BOM_UTF8):
        del data[: len(codecs.BOM_UTF8)]  # in place: a copy would double the memory
    head = data[:_HEAD_BYTES]
    for magic, what in _OTHERS:
        if head.startswith(magic) or head.lstrip().startswith(magic):
            raise OSError(f"it is {what}; save it as CSV")
    if b"\0" in head:
        raise OSError("it is no text; save it as CSV in UTF-8")
    decoder = codecs.getincrementaldecoder("utf-8")()  # decoding at once doubles the memory
    try:
        for start in range(0, len(data), _TEXT_BYTES):
            decoder.decode(data[start : start + _TEXT_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        _logger.warning("%s is not UTF-8, and is read as Windows-1252", path)
        return data.decode(errors=_WINDOWS_1252).encode()
    return data


def _open_csv(data: bytes | bytearray) -> TextTable:
    if data.count(b'"') % 2:
        raise OSError('it has a double quote (") that is not closed')
    lines = io.TextIOWrapper(pa.BufferReader(data), "utf-8", newline="")
    skipped, separator = 0, ""
    for first in lines:
        excel = re.fullmatch(r'"?sep=(.)"?', first.strip())
        if first.strip() and not first.startswith("#") and not excel:
            break
        separator = excel[1] if excel else separator
        skipped += 1
    else:
        raise OSError("it is empty")
    separator = separator or max(_SEPARATORS, key=re.sub('"[^"]*"', "", first).count)
    header = csv.reader(chain([first], lines), delimiter=separator, skipinitialspace=True)
    try:
        names = next(header)
    except csv.Error:
        raise OSError("its first row is no header") from None
    skipped += header.line_num
    has_rows = any(line.strip() for line in lines)

    def read(places: Sequence[int]) -> Iterator[list[pa.Array]]:
        blocks = _parse(data, separator, len(names), places, skipped) if has_rows else ()
        for block in blocks:
            yield _without_blank_rows([block[str(place)] for place in places])

    return TextTable(tuple(name.strip() for name in names), read)


def _without_blank_rows(columns: list[pa.Array]) -> list[pa.Array]:
    """Return the rows with a value; spreadsheets write blank rows as commas."""
    blank = pc.equal(columns[0], "")
    if not pc.any(blank).as_py():
        return columns
    for column in columns[1:]:
        blank = pc.and_(blank, pc.equal(column, ""))
    return [column.filter(pc.invert(blank)) for column in columns]


def _parse(
    data: bytes | bytearray, separator: str, columns: int, places: Sequence[int], skipped: int
) -> Iterator[pa.RecordBatch]:
    """Yield blocks of some columns, named by their indices, from a line on.

    Arrow gets bytes in memory and no threads: threads that read a Python file abort the process if
    the interpreter exits first.
    """
    ragged: list[pyarrow.csv.InvalidRow] = []

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"

    included = [str(place) for place in dict.fromkeys(places)]
    blocks = pyarrow.csv.open_csv(
        pa.BufferReader(data),
        pyarrow.csv.ReadOptions(
            use_threads=False,
            block_size=_BLOCK_BYTES,
            skip_rows=skipped,
            column_names=[*map(str, range(columns))],
        ),
        pyarrow.csv.ParseOptions(
            delimiter=separator, newlines_in_values=True, invalid_row_handler=skip
        ),
        pyarrow.csv.ConvertOptions(
            include_columns=included, column_types=dict.fromkeys(included, pa.large_string())
        ),
    )
    for block in chain(blocks, [None]):
        if ragged:
            raise OSError(
                f"row {ragged[0].number - skipped} after the header has "
                f"{ragged[0].actual_columns} values, the header {columns}"
            )
        if block is not None:
            yield block
