"""Findings of a verification: numbers of checked values, and problems with locations."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

KEPT = 50  # findings per shard and check; further ones are only counted

_PSEUDONYM = re.compile(r"(patient|study|series)_[0-9a-f]+")


class Check(StrEnum):
    """Checks, in the order of the report."""

    MANIFEST = "manifest.json"
    METADATA = "features.json, dataset_info.json"
    REJECTS = "rejects.jsonl"
    INDEX = "index.parquet"
    FILES = "shard files, sizes, SHA-256"
    FRAMES = "TFRecord frames, CRC-32C"
    EXAMPLES = "examples: features, types"
    IMAGES = "images: PNG, shape, dtype"
    RECORDS = "records against the index"
    COUNTS = "counts against the manifest"
    PARTITION = "image ids once, patients in one split"
    SOURCE = "pixels against the source files"


@dataclass(frozen=True)
class Finding:
    """A problem."""

    check: Check
    message: str  # the value, and the expected value
    file: str = ""  # name in the shard directory
    record: int | None = None  # number of the record in the file, from 0
    offset: int | None = None  # offset of the record in the file, bytes
    image_id: str = ""

    def __str__(self) -> str:
        """Return the location and the problem, on one line."""
        location = [
            self.file,
            "" if self.record is None else f"record {self.record}",
            "" if self.offset is None else f"byte {self.offset}",
            printable(self.image_id),
        ]
        return f"{' · '.join(filter(None, location))}: {self.message}"


@dataclass
class Findings:
    """Collects problems, and counts checked values."""

    checked: Counter[Check] = field(default_factory=Counter)  # values per check
    failed: Counter[Check] = field(default_factory=Counter)  # problems per check
    kept: list[Finding] = field(default_factory=list)  # the first problems per check

    def add(self, check: Check, message: str, *location: Any) -> None:
        """Count a problem; keep the problem if it is among the first of its check.

        The location is the known fields of a Finding, in order: file, record, offset, image id.
        """
        self.failed[check] += 1
        if self.failed[check] <= KEPT:
            self.kept.append(Finding(check, message, *location))

    def compare(
        self, check: Check, file: str, what: str, value: Any, expected: Any, basis: str = ""
    ) -> None:
        """Compare a JSON value with the expected value; None (unknown) matches any value.

        Messages name the value and the basis of the expected value.
        """
        self.checked[check] += 1
        for difference in _differences(value, expected, what) if expected is not None else ():
            self.add(check, f"{difference} ({basis})" if basis else difference, file)

    def merge(self, others: Iterable["Findings"]) -> None:
        """Add other findings."""
        for other in others:
            self.checked.update(other.checked)
            self.failed.update(other.failed)
            self.kept.extend(other.kept)

    @property
    def ok(self) -> bool:
        """Return whether nothing is wrong."""
        return not self.failed.total()


def _differences(value: Any, expected: Any, path: str) -> Iterator[str]:
    """Yield one message per difference; descends only into levels that both values have."""
    if isinstance(value, dict) and isinstance(expected, dict):
        for key in sorted(expected.keys() - value.keys()):
            yield f"{path}.{printable(key)} is missing"
        for key, item in value.items():
            if key in expected:
                yield from _differences(item, expected[key], f"{path}.{printable(key)}")
            else:
                yield f"{path}.{printable(key)} is unknown"
    elif isinstance(value, list) and isinstance(expected, list) and len(value) == len(expected):
        for number, (item, other) in enumerate(zip(value, expected, strict=True)):
            yield from _differences(item, other, f"{path}[{number}]")
    elif value != expected:
        yield f"{path}: {show_json(value)}, not {show_json(expected)}"


def show_json(value: Any) -> str:
    """Return a JSON value on one line for a terminal; for objects and lists, only the kind."""
    if isinstance(value, dict):
        return "an object"
    return f"a list of {len(value)}" if isinstance(value, list) else printable(value)


def printable(value: object, limit: int = 80) -> str:
    """Return a value from a damaged file on one line for a terminal."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    shown = "".join(character if character.isprintable() else "�" for character in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def show_id(value: object) -> str:
    """Return a pseudonym unchanged, and any other id as "(an id)"."""
    return value if isinstance(value, str) and _PSEUDONYM.fullmatch(value) else "(an id)"
