"""Pages out of templates, and how they write figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from headct.page import page_templates
from trainer.files import write_whole

UNDEFINED = "n/a"

Ends = Sequence[float] | None


def write_page(path: Path, template: str, **values: Any) -> None:
    """Writes a page, whole or not at all.

    Args:
        path: to write to.
        template: a file beside this module that extends page.html.jinja.
        values: what it shows.
    """
    page = page_templates(Path(__file__).parent).get_template(template).render(values)
    write_whole(path, lambda unfinished: unfinished.write_text(page, encoding="utf-8"))


def decimal(value: float | None, digits: int = 3) -> str:
    """A figure, or n/a where it is not defined."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def plural(count: int, one: str, many: str) -> str:
    """How many there are of something."""
    return f"{count} {one if count == 1 else many}"


def percent(value: float | None) -> str:
    """A share, or n/a where it is not defined."""
    return UNDEFINED if value is None else f"{100 * value:.1f} %"


def spread(ends: Ends, digits: int = 3) -> str:
    """An interval in words; empty where it is not defined."""
    return "" if ends is None else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def with_interval(value: float | None, ends: Ends, digits: int = 3) -> Markup:
    """A figure for a cell, its interval smaller beside it.

    Where all resamples have the same figure, they tell nothing of its uncertainty.
    """
    if value is None or ends is None or ends[0] == ends[1]:
        return Markup("{}").format(decimal(value, digits))
    return Markup("{} <small>{}</small>").format(decimal(value, digits), spread(ends, digits))


def signed(value: float | None, ends: Ends, digits: int = 3) -> Markup:
    """A difference for a cell, its interval smaller beside it."""
    if value is None:
        return Markup(UNDEFINED)
    between = "" if ends is None else f"{ends[0]:+.{digits}f} to {ends[1]:+.{digits}f}"
    return Markup("{} <small>{}</small>").format(f"{value:+.{digits}f}", between)


def code(text: str) -> Markup:
    """Text in the typeface of code."""
    return Markup("<code>{}</code>").format(text)


def in_words(value: float | None, ends: Ends, digits: int = 3) -> str:
    """A figure for a caption or an alt text, its interval in parentheses."""
    if value is None:
        return "not defined"
    inside = spread(ends, digits)
    return f"{decimal(value, digits)} ({inside})" if inside else decimal(value, digits)
