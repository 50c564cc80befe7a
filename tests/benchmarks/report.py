"""Figures as tables in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


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


def markdown(tables: Sequence[Figures], notes: dict[str, str]) -> str:
    """All tables, aligned for a terminal too, and the notes as a list."""
    lines = []
    for figures in tables:
        rows = [figures.columns, *figures.rows]
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        rule = ("-" * max(first, 3), *("-" * (max(width, 4) - 1) + ":" for width in others))
        lines += [f"**{figures.title}**", ""]
        for row in (figures.columns, rule, *figures.rows):
            cells = [row[0].ljust(first), *map(str.rjust, row[1:], others)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += [f"- {name}: {text}" for name, text in notes.items()]
    return "\n".join(lines)
