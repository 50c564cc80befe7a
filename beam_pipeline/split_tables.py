"""Tables with a column per split, as wide as the terminal allows."""

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

Rows = Sequence[tuple[str, Sequence[str]]]  # name, and a cell per split


def print_by_split(console: Console, splits: Sequence[str], rows: Rows) -> None:
    """Print a table with a column per split, or several tables on a narrow terminal.

    Args:
        console: console to print to.
        splits: names of the splits.
        rows: rows to print.
    """
    first = 0
    while first < len(splits):
        last = first + 1
        while last < len(splits) and _fits(console, _table(splits, rows, first, last + 1)):
            last += 1
        console.print(_table(splits, rows, first, last))
        first = last


def _fits(console: Console, table: Table) -> bool:
    options = console.options.update(max_width=1000)  # not limited to the terminal's width
    return Measurement.get(console, options, table).maximum <= console.width


def _table(splits: Sequence[str], rows: Rows, first: int, last: int) -> Table:
    columns = (Column(name, justify="right", overflow="fold") for name in splits[first:last])
    table = Table(Column("", overflow="fold"), *columns)
    for name, cells in rows:
        table.add_row(Text(name), *cells[first:last])
    return table
