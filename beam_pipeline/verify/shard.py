"""One shard file read back: its bytes, its records, its images, and its rows of the index."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from beam_pipeline.verify.claims import ShardClaim
from beam_pipeline.verify.findings import Check, Findings, printable, show_id
from beam_pipeline.verify.frames import HashedFile, read_frames
from beam_pipeline.verify.index import IndexRows
from beam_pipeline.verify.record import Record, decode_image, read_features
from beam_pipeline.verify.source import Conversion, SourceFile
from beam_pipeline.workers import Watch
from headct.layout import ID_COLUMNS, label_column
from headct.stores import Folder
from headct.tfrecord import DATA_OFFSET, FRAME_BYTES, CorruptRecord

# What the checks across shards need of an example; `image` is a hash of the PNG.
CONTENTS = pa.schema(
    {
        "split": pa.dictionary(pa.int32(), pa.string()),
        "shard": pa.dictionary(pa.int32(), pa.string()),
        "record": pa.int32(),
        "image_id": pa.string(),
        "patient_id": pa.string(),
        "study_id": pa.string(),
        "image": pa.uint64(),
    }
)
# Bytes that an image is searched by in its record: to search for all of it takes 0.1 ms.
_FOUND_BY = 64
Combinations = Counter[tuple[int, ...]]  # how many examples have each combination of labels


@dataclass(frozen=True)
class ShardTask:
    """A shard file to check; None is what is not known."""

    folder: str  # the shard directory's path or URL
    claim: ShardClaim  # what the manifest says of the file
    labels: Sequence[str] | None  # names of the classes
    image: dict[str, Any] | None  # height, width, channels and dtype
    rows: IndexRows | None  # of the index
    conversion: Conversion | None = None  # how to make its images again, or None not to


@dataclass
class ShardReport:
    """What was found in a shard file."""

    claim: ShardClaim  # what the manifest says of it
    findings: Findings = field(default_factory=Findings)
    bytes: int | None = None  # None if it cannot be read
    sha256: str = ""  # in hexadecimal
    records: int = 0  # frames, damaged ones too
    contents: pa.Table = field(default_factory=CONTENTS.empty_table)  # of readable examples
    combinations: Combinations = field(default_factory=Counter)  # of these examples


def count_labels(combinations: Combinations, labels: Sequence[str]) -> dict[str, int]:
    """How many examples have each label."""
    return {
        label: sum(n for combination, n in combinations.items() if combination[place] == 1)
        for place, label in enumerate(labels)
    }


def check_shard(task: ShardTask, watch: Watch) -> ShardReport:
    """Check one shard file; one record is held at a time, and the watch told of it.

    Raises:
        StoreError: the directory's store fails.
    """
    report = ShardReport(task.claim)
    file, findings = task.claim.file, report.findings
    findings.checked[Check.FILES] += 1
    try:
        with Folder(task.folder).open(file) as opened:
            _ShardChecker(task, watch, report).check(HashedFile(opened))
    except FileNotFoundError:
        if task.claim.stated.get("examples") != 0:  # all slices of such a shard were rejected
            findings.add(Check.FILES, "missing", file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        findings.add(Check.FILES, f"cannot be read: {reason}", file)
    return report


class _Place(NamedTuple):
    """Where a record is, for findings."""

    file: str
    record: int
    offset: int
    image_id: str = ""


class _ShardChecker:
    """Collects what is found while a shard's records go by."""

    def __init__(self, task: ShardTask, watch: Watch, report: ShardReport) -> None:
        self.task = task
        self.report = report
        self.findings = report.findings
        self._watch = watch
        self._rows = task.rows.by_record() if task.rows is not None else {}
        self._contents: list[dict[str, Any]] = []

    def check(self, file: HashedFile) -> None:
        """Check every record; after a damaged one go on with the next that can be found."""
        for record, (offset, data) in enumerate(read_frames(file, self._rows)):
            self.report.records += 1
            self.findings.checked[Check.FRAMES] += 1
            row = self._rows.get(record)
            place = _Place(self.task.claim.file, record, offset, row["image_id"] if row else "")
            if row is None and self.task.rows is not None:
                self.findings.add(Check.RECORDS, "the index has no such record", *place)
            if isinstance(data, CorruptRecord):
                self.findings.add(Check.FRAMES, data.what, *place)
            else:
                self._check_record(place, data, row)
        self.report.contents = pa.Table.from_pylist(self._contents, CONTENTS)
        self.report.sha256 = file.finish()
        self.report.bytes = file.position
        self._check_whole()

    def _check_record(self, place: _Place, data: bytes, row: dict[str, Any] | None) -> None:
        self.findings.checked[Check.EXAMPLES] += 1
        try:
            example = read_features(data, self.task.labels)
        except ValueError as error:
            self.findings.add(Check.EXAMPLES, str(error), *place)
            return
        place = place._replace(image_id=example.ids["image_id"])
        found = {
            "split": self.task.claim.split,
            "shard": place.file,
            "record": place.record,
            "offset": place.offset,
            "bytes": len(data) + FRAME_BYTES,
            **example.ids,
            "position_z": example.position_z,
            "row_spacing": example.pixel_spacing[0],
            "column_spacing": example.pixel_spacing[1],
            "image_offset": place.offset + DATA_OFFSET + _find(example.image, data),
            "image_bytes": len(example.image),
        }
        image = hashlib.blake2b(example.image, digest_size=8).digest()
        self._contents.append(found | {"image": int.from_bytes(image)})
        self.report.combinations[example.label] += 1
        if row is not None:
            labels = zip(self.task.labels or (), example.label, strict=False)
            found |= {label_column(name): value for name, value in labels}
            self._compare(place, found, row)
        self._check_image(place, example, row)

    def _compare(self, place: _Place, found: dict[str, Any], row: dict[str, Any]) -> None:
        """What an example says against its row of the index."""
        self.findings.checked[Check.RECORDS] += 1
        differing = [
            f"{name} is {_shown(name, value)}, {_shown(name, row[name])} in the index"
            for name, value in found.items()
            if row[name] != value and not _same_float32(row[name], value)
        ]
        if differing:
            self.findings.add(Check.RECORDS, "; ".join(differing), *place)

    def _check_image(self, place: _Place, example: Record, row: dict[str, Any] | None) -> None:
        self.findings.checked[Check.IMAGES] += 1
        # All records that the index does not know have one name: a damaged file may have many.
        name = min(place.record, len(self.task.rows or ()))
        if name in self._watch.excluded:
            message = f"cannot be checked: {self._watch.excluded[name]}"
            self.findings.add(Check.IMAGES, message, *place)
            return
        source = None
        if self.task.conversion is not None and row is not None:
            source = self.task.conversion.read(row)
        self._watch.working(name)
        try:
            self._compare_image(place, example, source)
        finally:
            self._watch.waiting()

    def _compare_image(self, place: _Place, example: Record, source: SourceFile | None) -> None:
        try:
            pixels = decode_image(example.image, self.task.image)
        except ValueError as error:
            self.findings.add(Check.IMAGES, str(error), *place)
            return
        if source is not None:
            self.findings.checked[Check.SOURCE] += 1
            for difference in source.compare(pixels, example.pixel_spacing):
                self.findings.add(Check.SOURCE, difference, *place)

    def _check_whole(self) -> None:
        """The file as a whole against the manifest and the index."""
        report, labels = self.report, self.task.labels
        counts = None if labels is None else count_labels(report.combinations, labels)
        for check, name, found in (
            (Check.FILES, "bytes", report.bytes),
            (Check.FILES, "sha256", report.sha256),
            (Check.COUNTS, "examples", report.records),
            (Check.COUNTS, "label_counts", counts),
        ):
            stated = self.task.claim.stated.get(name)
            if found is not None:
                self.findings.compare(check, self.task.claim.file, name, found, stated)
        for record, row in sorted(self._rows.items()):
            if not 0 <= record < report.records:
                place = _Place(self.task.claim.file, record, row["offset"], row["image_id"])
                self.findings.add(Check.RECORDS, "in the index, not in the file", *place)


def _find(image: bytes, data: bytes) -> int:
    """Where an image begins in its record's data."""
    at = data.find(image[:_FOUND_BY])
    while not data.startswith(image, at):
        at = data.find(image[:_FOUND_BY], at + 1)
    return at


def _same_float32(indexed: Any, stored: Any) -> bool:
    """Whether a float64 of the index is what an Example holds of it."""
    if not isinstance(stored, float):
        return False
    with np.errstate(over="ignore"):  # too large a number becomes infinite in both
        return bool(np.array_equal(np.float32(indexed), np.float32(stored), equal_nan=True))


def _shown(name: str, value: Any) -> str:
    """A value for a message; ids that are no pseudonyms are kept back."""
    return show_id(value) if name in ID_COLUMNS else printable(value)
