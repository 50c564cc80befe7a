"""A console and a log format that print untrusted text safely, and where progress bars work."""

import logging
import os
from importlib.util import find_spec
from typing import Any

from rich.console import Console

from headct.printable import show_line


class Terminal(Console):
    """A console that escapes control characters and hides secrets in texts."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as Console does, after escaping each line."""
        super().print(*(_lines(each) for each in objects), **options)


def can_redraw(console: Console) -> bool:
    """Return whether a console can replace lines, as progress bars do.

    A notebook needs ipywidgets. A command that a notebook starts (`!headct ...`) has a terminal
    that ignores moves of the cursor: every update would stay.
    """
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal and "JPY_PARENT_PID" not in os.environ  # set in kernels


def _lines(text: Any) -> Any:
    return "\n".join(map(show_line, text.split("\n"))) if isinstance(text, str) else text


class LineFormatter(logging.Formatter):
    """Formats log records; escapes control characters and hides secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, one or several lines."""
        return str(_lines(super().format(record)))
