"""A console and a log format that print untrusted text safely."""

import logging
from typing import Any

from rich.console import Console

from headct.printable import show_line


class Terminal(Console):
    """A console that obeys nothing in the texts that it is given to print."""

    def print(self, *objects: Any, **options: Any) -> None:
        """See Console; lines stay lines."""
        super().print(*(_lines(each) for each in objects), **options)


def _lines(text: Any) -> Any:
    return "\n".join(map(show_line, text.split("\n"))) if isinstance(text, str) else text


class LineFormatter(logging.Formatter):
    """Formats a log record as lines that a terminal shows as they are."""

    def format(self, record: logging.LogRecord) -> str:
        """See Formatter."""
        return str(_lines(super().format(record)))
