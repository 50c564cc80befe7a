"""A console and a log format that print untrusted text safely."""

import logging
from typing import Any

from rich.console import Console

from headct.printable import show_line


class Terminal(Console):
    """A console that escapes control characters and hides secrets in texts."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as Console does, after escaping each line."""
        super().print(*(_lines(each) for each in objects), **options)


def _lines(text: Any) -> Any:
    return "\n".join(map(show_line, text.split("\n"))) if isinstance(text, str) else text


class LineFormatter(logging.Formatter):
    """Formats log records; escapes control characters and hides secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, one or several lines."""
        return str(_lines(super().format(record)))
