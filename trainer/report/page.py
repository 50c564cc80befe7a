"""Write HTML pages from templates; format figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from headct.page import page_templates
from trainer.files import write_whole

UNDEFINED = "n/a"
TEXT, NUMBER = "text", "number"

Ends = Sequence[float] | None


@dataclass(frozen=True)
class Table:
    """A table for the template's macro.

    Attributes:
        caption: title of the table.
        columns: heading and kind, `TEXT` or `NUMBER`, per column.
        rows: cells.
        totals: cells of the rows at the end.
        note: text below the table.
    """

    caption: str
    columns: list[tuple[str, str]]
    rows: list[list[Any]]
    totals: list[list[Any]] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A plot or an image of a page.

    Attributes:
        content: an SVG element, or the data: URI of an image.
        alt: description in words.
        caption: line below the picture.
    """

    content: str
    alt: str
    caption: str


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a template of this folder, and write the page atomically."""
    page = page_templates(Path(__file__).parent).get_template(template).render(values)
    write_whole(path, lambda unfinished: unfinished.write_text(page, encoding="utf-8"))


def decimal(value: float | None, digits: int = 3) -> str:
    """Format a figure; n/a if it is undefined."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def plural(count: int, one: str, many: str) -> str:
    """Format a count with its noun."""
    return f"{count} {one if count == 1 else many}"


def percent(value: float | None) -> str:
    """Format a share in percent; n/a if it is undefined."""
    return UNDEFINED if value is None else f"{100 * value:.1f} %"


def spread(ends: Ends, digits: int = 3) -> str:
    """Format an interval; empty if it is undefined."""
    return "" if ends is None else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def with_interval(value: float | None, ends: Ends, digits: int = 3) -> Markup:
    """Format a figure for a cell, with its interval in small type.

    An interval of zero width is left out, because it would suggest certainty: all resamples have
    the same figure.
    """
    if value is None or ends is None or ends[0] == ends[1]:
        return Markup("{}").format(decimal(value, digits))
    return Markup("{} <small>{}</small>").format(decimal(value, digits), spread(ends, digits))


def signed(value: float | None, ends: Ends, digits: int = 3) -> Markup:
    """Format a difference for a cell, with its interval in small type."""
    if value is None:
        return Markup(UNDEFINED)
    between = "" if ends is None else f"{ends[0]:+.{digits}f} to {ends[1]:+.{digits}f}"
    return Markup("{} <small>{}</small>").format(f"{value:+.{digits}f}", between)


def caption(name: str, text: str) -> Markup:
    """Format the line below a plot."""
    return Markup("<strong>{}</strong> {}").format(name, text)


def code(text: str) -> Markup:
    """Format text as code."""
    return Markup("<code>{}</code>").format(text)


def in_words(value: float | None, ends: Ends, digits: int = 3) -> str:
    """Format a figure for a caption or an alt text, with its interval in parentheses."""
    if value is None:
        return "not defined"
    inside = spread(ends, digits)
    return f"{decimal(value, digits)} ({inside})" if inside else decimal(value, digits)
