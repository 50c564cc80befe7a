"""HTML pages from templates that extend `page.html.jinja`, the layout of all reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

LAYOUT = Path(__file__).with_name("page.html.jinja")


def page_templates(folder: Path) -> Environment:
    """Return the page templates of a folder; they escape values and refuse unknown names."""
    return Environment(
        loader=FileSystemLoader([folder, LAYOUT.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@dataclass(frozen=True)
class Table:
    """A table for the layout's macro `table`."""

    caption: str
    columns: list[tuple[str, str]]  # heading, and "text" or "number"
    rows: list[list[Any]]  # cells; the first one is the row's heading
    totals: Sequence[list[Any]] = ()  # rows below
    note: str = ""  # a sentence below
