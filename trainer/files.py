"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

# What `write_whole` leaves where its process is killed.
UNFINISHED = re.compile(r"\..+-(\d+)(\.\w+)?")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with another name; the file gets its own when it is complete."""
    unfinished = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        write(unfinished)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON that any reader takes: no NaN, no Infinity."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that are no more did not write to its end."""
    for path in folder.glob(".*"):
        match = UNFINISHED.fullmatch(path.name)
        if match and not psutil.pid_exists(int(match.group(1))):
            path.unlink(missing_ok=True)
