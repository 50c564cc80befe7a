"""HTML pages from templates that extend `page.html.jinja`, the layout of all reports."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket

LAYOUT = Path(__file__).with_name("page.html.jinja")


class _CompiledTemplates(FileSystemBytecodeCache):
    """Compiled templates beside Python's compiled modules, where that folder can be written."""

    def dump_bytecode(self, bucket: Bucket) -> None:
        if not sys.dont_write_bytecode:
            with suppress(OSError):
                super().dump_bytecode(bucket)


def page_templates(folder: Path) -> Environment:
    """Return the page templates of a folder; they escape values and refuse unknown names."""
    return Environment(
        loader=FileSystemLoader([folder, LAYOUT.parent]),
        bytecode_cache=_CompiledTemplates(str(Path(cache_from_source(__file__)).parent)),
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
