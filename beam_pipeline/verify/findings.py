"""What a verification finds: a check's count, and every problem with its exact place."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# Kept of one shard's problems in one check: the first few tell what is wrong, the rest repeat it.
KEPT = 50

_PSEUDONYM = re.compile(r"(patient|study|series)_[0-9a-f]+")


class Check(StrEnum):
    """What is checked, in the order in which it is shown."""

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
    """Something that is wrong."""

    check: Check  # that found it
    message: str  # what was found, and what was expected
    file: str = ""  # in the shard directory
    record: int | None = None  # its number in the file, from 0
    offset: int | None = None  # where it begins in the file, bytes
    image_id: str = ""  # of the example there

    def __str__(self) -> str:
        """The place and the problem, on one line."""
        place = [
            self.file,
            "" if self.record is None else f"record {self.record}",
            "" if self.offset is None else f"byte {self.offset}",
            printable(self.image_id),
        ]
        return f"{' · '.join(filter(None, place))}: {self.message}"


@dataclass
class Findings:
    """Collects problems, and how much was checked."""

    checked: Counter[Check] = field(default_factory=Counter)  # how many things each looked at
    failed: Counter[Check] = field(default_factory=Counter)  # how many problems each found
    kept: list[Finding] = field(default_factory=list)  # the first of each

    def add(self, check: Check, message: str, *place: Any) -> None:
        """Count a problem, and keep it if it is among the first of its check; see Finding."""
        self.failed[check] += 1
        if self.failed[check] <= KEPT:
            self.kept.append(Finding(check, message, *place))

    def compare(
        self, check: Check, file: str, what: str, found: Any, expected: Any, basis: str = ""
    ) -> None:
        """Check a JSON value against the expected one, or None if that is not known.

        A message names what is compared, and the basis of the expected value.
        """
        self.checked[check] += 1
        for difference in _differences(found, expected, what) if expected is not None else ():
            self.add(check, f"{difference} ({basis})" if basis else difference, file)

    def merge(self, others: Iterable["Findings"]) -> None:
        """Add what others collected."""
        for other in others:
            self.checked.update(other.checked)
            self.failed.update(other.failed)
            self.kept.extend(other.kept)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.failed.total()


def _differences(found: Any, expected: Any, path: str) -> Iterator[str]:
    """As messages; goes no deeper than both values do."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(expected.keys() - found.keys()):
            yield f"{path}.{printable(key)} is missing"
        for key, value in found.items():
            if key in expected:
                yield from _differences(value, expected[key], f"{path}.{printable(key)}")
            else:
                yield f"{path}.{printable(key)} is unknown"
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, (value, other) in enumerate(zip(found, expected, strict=True)):
            yield from _differences(value, other, f"{path}[{number}]")
    elif found != expected:
        yield f"{path}: {show_json(found)}, not {show_json(expected)}"


def show_json(value: Any) -> str:
    """A JSON value, fit for one line of a terminal; of what may be deep only the kind."""
    if isinstance(value, dict):
        return "an object"
    return f"a list of {len(value)}" if isinstance(value, list) else printable(value)


def printable(value: object, limit: int = 80) -> str:
    """A value from a damaged file, fit for one line of a terminal."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    shown = "".join(character if character.isprintable() else "�" for character in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def show_id(value: object) -> str:
    """A pseudonym, or that there is an id of another form."""
    return value if isinstance(value, str) and _PSEUDONYM.fullmatch(value) else "(an id)"
