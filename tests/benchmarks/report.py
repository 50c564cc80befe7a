"""Figures as tables: for the terminal, or in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figures:
    """A table of text."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and in brackets the least and the greatest."""
    parts = (f"{value:,.{digits}f}" for value in (median(values), min(values), max(values)))
    return "{} ({}-{})".format(*parts)


def show(console: Console, tables: Sequence[Figures], notes: dict[str, str]) -> None:
    for figures in tables:
        table = Table(title=figures.title, title_justify="left", box=SIMPLE)
        for number, column in enumerate(figures.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in figures.rows:
            table.add_row(*row)
        console.print(table)
    for name, text in notes.items():
        console.print(f"{name}: {text}", highlight=False)


def markdown(tables: Sequence[Figures], notes: dict[str, str]) -> str:
    lines = []
    for figures in tables:
        rule = ["---", *["---:"] * (len(figures.columns) - 1)]
        lines += [f"**{figures.title}**", ""]
        lines += ["| " + " | ".join(row) + " |" for row in (figures.columns, rule, *figures.rows)]
        lines.append("")
    lines += [f"- {name}: {text}" for name, text in notes.items()]
    return "\n".join(lines)
