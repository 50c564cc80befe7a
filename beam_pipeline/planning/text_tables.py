"""CSV and Parquet tables, read as columns of text.

Compression, encoding and separator of files from spreadsheets, pandas or R are detected from the
content, not the file name. Rows are streamed in blocks.
"""

import codecs
import csv
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from headct.stores import DEFAULT_PATIENCE, open_file
from headct.stores.archives import decompressed

_HEAD_BYTES = 1 << 12  # read to detect the format
_BLOCK_BYTES = 1 << 24  # size of a block of CSV
_LONGEST_ROW = 1 << 26  # bytes
_MOST_COLUMNS = 100_000
_SEPARATORS = ",;\t|"
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Magic bytes of files mistaken for tables.
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
)
_OTHER_TEXTS = ((b"{", "JSON"), (b"[", "JSON"), (b"<", "HTML or XML"))
# Bytes that are not UTF-8 are decoded as surrogates; Windows-1252 extends Latin-1.
_WINDOWS_1252 = {
    0xDC00 + byte: bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(128, 256)
}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextTable:
    """An open table.

    Attributes:
        columns: stripped column names; may be empty or repeated.
        read: yields blocks of rows as text, for the columns at some indices; missing values are
            empty, and blank rows are dropped.
    """

    columns: tuple[str, ...]
    read: Callable[[Sequence[int]], Iterator[list[pa.StringArray]]]


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
    with open_file(path, patience) as file, decompressed(file) as content:
        try:
            if content.peek(4).startswith(b"PAR1"):
                yield _open_parquet(content.read())
            else:
                yield _open_csv(content, path)
        except UnicodeError:
            raise OSError("it is no text, or damaged") from None
        except pa.ArrowException as error:
            # Arrow's messages quote rows.
            raise OSError(f"it is damaged, or no table ({type(error).__name__})") from None


def _open_parquet(data: bytes) -> TextTable:
    file = pq.ParquetFile(pa.BufferReader(data))
    names = file.schema_arrow.names

    def read(places: Sequence[int]) -> Iterator[list[pa.StringArray]]:
        for batch in file.iter_batches(columns=[names[place] for place in dict.fromkeys(places)]):
            yield [_texts(batch[names[place]], names[place]) for place in places]

    return TextTable(tuple(name.strip() for name in names), read)


def _texts(values: pa.Array, column: str) -> pa.StringArray:
    try:
        return pc.fill_null(pc.cast(values, pa.string()), "")
    except pa.ArrowException:
        raise OSError(f"column {column!r} holds {values.type}, not texts or numbers") from None


def _open_csv(content: io.BufferedReader, path: str) -> TextTable:
    blocks = _blocks(_decode(content, path))
    first, separator = _skip_preamble(next(blocks, b""))
    if not first:
        raise OSError("it is empty")
    header, rest = _split_header(first)
    plain = re.sub('"[^"]*"', "", header)
    separator = separator or max(_SEPARATORS, key=plain.count)
    try:
        names = next(csv.reader([header], delimiter=separator, skipinitialspace=True))
    except csv.Error:
        raise OSError("its first row is no header") from None
    if len(names) > _MOST_COLUMNS:
        raise OSError(f"it has {len(names)} columns, more than {_MOST_COLUMNS}")

    def read(places: Sequence[int]) -> Iterator[list[pa.StringArray]]:
        rows = 0
        for block in (each for part in ([rest], blocks) for each in part):
            if block.strip():
                table = _parse(block, separator, len(names), places, rows)
                rows += len(table)
                yield _without_blank_rows([table[str(place)].combine_chunks() for place in places])

    return TextTable(tuple(name.strip() for name in names), read)


def _decode(content: io.BufferedReader, path: str) -> Iterator[bytes]:
    """Yield the content in UTF-8, with Unix line ends."""
    head = content.peek(_HEAD_BYTES)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "")
    if not encoding:
        _refuse_others(head)
        encoding = "utf-8"
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    decoder = io.IncrementalNewlineDecoder(
        codecs.getincrementaldecoder(encoding)(errors), translate=True
    )
    told = False
    for data in chain(iter(partial(content.read, _BLOCK_BYTES), b""), [b""]):
        text = decoder.decode(data, final=not data)
        try:
            yield text.encode()
        except UnicodeEncodeError:
            if not told:
                _logger.warning("%s is not UTF-8, and is read as Windows-1252", path)
            told = True
            yield text.translate(_WINDOWS_1252).encode()


def _refuse_others(head: bytes) -> None:
    begin = head.lstrip()
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise OSError(f"it is {what}; save it as CSV")
    for magic, what in _OTHER_TEXTS:
        if begin.startswith(magic):
            raise OSError(f"it is {what}; save it as CSV")
    if b"\0" in head:
        raise OSError("it is no text; save it as CSV in UTF-8")


def _blocks(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Yield blocks of complete rows; a quoted line end does not end a row."""
    rest = b""
    for part in parts:
        data = rest + part
        end = data.rfind(b"\n") + 1
        quotes = data.count(b'"', 0, end)
        while quotes % 2:
            previous = data.rfind(b"\n", 0, end - 1) + 1
            quotes -= data.count(b'"', previous, end)
            end = previous
        if len(data) - end > _LONGEST_ROW:
            raise OSError(f"it has a row of more than {_LONGEST_ROW >> 20} MiB, or an open quote")
        if end:
            yield data[:end]
        rest = data[end:]
    if rest.count(b'"') % 2:
        raise OSError('it has a double quote (") that is not closed')
    if rest:
        yield rest


def _skip_preamble(block: bytes) -> tuple[bytes, str]:
    """Return the block from its header on, and the separator of Excel's `sep=;` line."""
    begin, separator = 0, ""
    while begin < len(block):
        end = block.find(b"\n", begin)
        line = block[begin : end if end >= 0 else len(block)].strip()
        named = re.fullmatch(rb'"?sep=(.)"?', line)
        if line and not line.startswith(b"#") and not named:
            break
        separator = named[1].decode() if named else separator
        begin = end + 1 if end >= 0 else len(block)
    return block[begin:], separator


def _split_header(block: bytes) -> tuple[str, bytes]:
    """Return the first row, and the rows after the first."""
    end = block.find(b"\n")
    while end >= 0 and block.count(b'"', 0, end) % 2:
        end = block.find(b"\n", end + 1)
    return (block[:end].decode(), block[end + 1 :]) if end >= 0 else (block.decode(), b"")


def _without_blank_rows(columns: list[pa.StringArray]) -> list[pa.StringArray]:
    """Return the rows with a value; spreadsheets write blank rows as commas."""
    blank = pc.equal(columns[0], "")
    if not pc.any(blank).as_py():
        return columns
    for column in columns[1:]:
        blank = pc.and_(blank, pc.equal(column, ""))
    return [column.filter(pc.invert(blank)) for column in columns]


def _parse(
    block: bytes, separator: str, columns: int, places: Sequence[int], before: int
) -> pa.Table:
    """Parse some columns of a block of rows.

    Arrow gets bytes in memory and no threads: threads that read a Python file abort the process if
    the interpreter exits first.
    """
    ragged: list[pyarrow.csv.InvalidRow] = []

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"

    included = [str(place) for place in dict.fromkeys(places)]
    table = pyarrow.csv.read_csv(
        pa.py_buffer(block),
        pyarrow.csv.ReadOptions(
            use_threads=False, block_size=len(block) + 1, column_names=[*map(str, range(columns))]
        ),
        pyarrow.csv.ParseOptions(
            delimiter=separator, newlines_in_values=True, invalid_row_handler=skip
        ),
        pyarrow.csv.ConvertOptions(
            include_columns=included, column_types=dict.fromkeys(included, pa.string())
        ),
    )
    if ragged:
        raise OSError(
            f"row {before + ragged[0].number} after the header has {ragged[0].actual_columns} "
            f"values, the header {columns}"
        )
    return table
