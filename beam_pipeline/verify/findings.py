"""Findings of a verification: numbers of checked values, and problems with locations."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from headct.json_documents import key_path
from headct.printable import shown

KeyPath = list[str | int]  # of a value in a JSON document
KEPT = 50  # findings per shard and check; further ones are only counted


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
            self.image_id,
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

    def compare(self, check: Check, path: KeyPath, value: Any, expected: Any, file: str) -> None:
        """Compare a JSON value with the expected value; None (unknown) matches any value."""
        self.checked[check] += 1
        for difference in differences(value, expected, path) if expected is not None else ():
            self.add(check, difference, file)

    def merge(self, other: "Findings") -> None:
        """Add other findings."""
        self.checked.update(other.checked)
        self.failed.update(other.failed)
        self.kept.extend(other.kept)

    @property
    def ok(self) -> bool:
        """Return whether nothing is wrong."""
        return not self.failed.total()


def differences(value: Any, expected: Any, path: KeyPath) -> Iterator[str]:
    """Yield one message per difference; descends only into levels that both values have."""
    if isinstance(value, dict) and isinstance(expected, dict):
        for key in sorted(expected.keys() - value.keys()):
            yield f"{key_path([*path, key])} is missing"
        for key in value:
            if key in expected:
                yield from differences(value[key], expected[key], [*path, key])
            else:
                yield f"{key_path([*path, key])} is unknown"
    elif isinstance(value, list) and isinstance(expected, list) and len(value) == len(expected):
        for number, (item, other) in enumerate(zip(value, expected, strict=True)):
            yield from differences(item, other, [*path, number])
    elif value != expected:
        yield f"{key_path(path)}: {shown(value)}, not {shown(expected)}"
