"""One shard file read back: its bytes, its records, its images, and its rows of the index."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa

from beam_pipeline.directory.example import FRAME_BYTES, CorruptRecord, read_record
from beam_pipeline.layout import LABEL_PREFIX
from beam_pipeline.storage import Folder
from beam_pipeline.verify.claims import ShardClaim
from beam_pipeline.verify.findings import Check, Finding, Findings, printable, show_id
from beam_pipeline.verify.index import IndexRows
from beam_pipeline.verify.record import Record, decode_image, read_features
from beam_pipeline.verify.source import Conversion, compare_with_source
from beam_pipeline.workers import Watch

_CHUNK = 1 << 20

CONTENTS = pa.schema(
    {
        "record": pa.int32(),
        "image_id": pa.string(),
        "patient_id": pa.string(),
        "study_id": pa.string(),
        "image": pa.uint64(),
    }
)


@dataclass(frozen=True)
class ShardTask:
    """A shard file to check.

    Attributes:
        folder: the shard directory's path or URL.
        claim: what the manifest says of the file.
        labels: names of the classes, or None if unknown.
        image_shape: height, width, channels, or None if unknown.
        image_dtype: "uint8" or "uint16", or None if unknown.
        rows: of the index, or None if it cannot be read.
        conversion: how to make its images again, or None not to.
    """

    folder: str
    claim: ShardClaim
    labels: tuple[str, ...] | None
    image_shape: tuple[int, int, int] | None
    image_dtype: str | None
    rows: IndexRows | None
    conversion: Conversion | None = None


@dataclass(frozen=True)
class ShardReport:
    """What was found in a shard file.

    Attributes:
        claim: what the manifest says of it.
        findings: what is wrong.
        bytes: its size; None if it cannot be read.
        sha256: of its bytes, in hexadecimal.
        records: how many frames it has.
        contents: a row a readable example, as CONTENTS says; `image` is a hash of the PNG.
        combinations: how many examples have each combination of labels.
    """

    claim: ShardClaim
    findings: Findings
    bytes: int | None
    sha256: str
    records: int
    contents: pa.Table
    combinations: Counter[tuple[int, ...]]


@dataclass(frozen=True)
class _Place:
    """Where a record is; makes findings."""

    file: str
    record: int
    offset: int
    image_id: str = ""

    def finding(self, check: Check, message: str) -> Finding:
        return Finding(check, message, self.file, self.record, self.offset, self.image_id)


class _HashedFile:
    """A file that is read once, from its beginning to its end, and hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.position = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        self.position += len(data)
        return data

    def skip_to(self, position: int | None) -> None:
        """Read on to a position, or to the end."""
        while position is None or self.position < position:
            left = _CHUNK if position is None else min(_CHUNK, position - self.position)
            if not self.read(left):
                return

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def check_shard(task: ShardTask, watch: Watch) -> ShardReport:
    """Check one shard file; one record is held at a time.

    Args:
        task: what to check.
        watch: told of each record that is decoded.

    Raises:
        StoreError: the directory's store fails.
    """
    checker = _ShardChecker(task, watch)
    file, findings = task.claim.file, checker.findings
    findings.checked[Check.FILES] += 1
    size, sha256 = None, ""
    try:
        with Folder(task.folder).open(file) as opened:
            hashed = _HashedFile(opened)
            checker.check_records(hashed)
            hashed.skip_to(None)
            size, sha256 = hashed.position, hashed.hexdigest()
    except FileNotFoundError:
        if task.claim.examples != 0:  # all slices of such a shard were rejected
            findings.add(Finding(Check.FILES, "missing", file))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        findings.add(Finding(Check.FILES, f"cannot be read: {reason}", file))
    else:
        checker.check_file(size, sha256)
    return checker.report(size, sha256)


class _ShardChecker:
    """Collects what is found while a shard's records go by."""

    def __init__(self, task: ShardTask, watch: Watch) -> None:
        self.task = task
        self.findings = Findings()
        self._watch = watch
        self._rows = task.rows.by_record() if task.rows is not None else None
        self._records = 0
        self._contents: dict[str, list[Any]] = {name: [] for name in CONTENTS.names}
        self._combinations: Counter[tuple[int, ...]] = Counter()

    def check_records(self, file: _HashedFile) -> None:
        """Check every record; after a damaged one go on with the next that can be found."""
        for place, data in self._frames(file):
            self._records += 1
            row = self._row(place)
            if data is None:
                continue
            example = self._read_features(place, data)
            if example is None:
                continue
            place = replace(place, image_id=example.image_id)
            self._keep(place.record, example)
            if row is not None:
                self._compare(place, example, len(data) + FRAME_BYTES, row)
            self._check_image(place, example, row)

    def _frames(self, file: _HashedFile) -> Iterator[tuple[_Place, bytes | None]]:
        record = 0
        while True:
            place = _Place(self.task.claim.file, record, file.position)
            try:
                data = read_record(cast(BinaryIO, file), place.offset)
            except CorruptRecord as error:
                self.findings.checked[Check.FRAMES] += 1
                row = (self._rows or {}).get(record)
                place = replace(place, image_id=row["image_id"] if row else "")
                self.findings.add(place.finding(Check.FRAMES, error.what))
                yield place, None
                if error.end is None and not self._resume(file, record + 1):
                    return
            else:
                if data is None:
                    return
                self.findings.checked[Check.FRAMES] += 1
                yield place, data
            record += 1

    def _resume(self, file: _HashedFile, record: int) -> bool:
        """Go to where the index says that a record begins, if that is still ahead."""
        row = (self._rows or {}).get(record)
        if row is None or row["offset"] < file.position:
            return False
        file.skip_to(row["offset"])
        return True

    def _row(self, place: _Place) -> dict[str, Any] | None:
        """The record's row of the index; a finding if it has none."""
        if self._rows is None:
            return None
        row = self._rows.get(place.record)
        if row is None:
            self.findings.checked[Check.RECORDS] += 1
            self.findings.add(place.finding(Check.RECORDS, "the index has no such record"))
        return row

    def _read_features(self, place: _Place, data: bytes) -> Record | None:
        self.findings.checked[Check.EXAMPLES] += 1
        record, wrong = read_features(data, self.task.labels)
        for message in wrong:
            self.findings.add(place.finding(Check.EXAMPLES, message))
        return record

    def _keep(self, record: int, example: Record) -> None:
        """What the checks across shards need of it."""
        digest = hashlib.blake2b(example.image, digest_size=8).digest()
        kept = {"record": record, "image_id": example.image_id, "image": int.from_bytes(digest)}
        for name, value in (example.ids | kept).items():
            if name in self._contents:
                self._contents[name].append(value)
        self._combinations[example.label] += 1

    def _compare(self, place: _Place, example: Record, size: int, row: dict[str, Any]) -> None:
        """The record against its row of the index."""
        found: dict[str, Any] = {
            "image_id": example.image_id,
            "split": self.task.claim.split,
            "offset": place.offset,
            "bytes": size,
            **example.ids,
        }
        for name, value in zip(self.task.labels or (), example.label, strict=False):
            found[LABEL_PREFIX + name] = value
        self.findings.checked[Check.RECORDS] += 1
        differing = [
            f"{name} is {_shown(name, value)}, {_shown(name, row[name])} in the index"
            for name, value in found.items()
            if name in row and row[name] != value
        ]
        if not _same_float32(row.get("position_z"), example.position_z):
            differing.append(f"position_z is {example.position_z}, {row.get('position_z')} there")
        if differing:
            self.findings.add(place.finding(Check.RECORDS, "; ".join(differing)))

    def _check_image(self, place: _Place, example: Record, row: dict[str, Any] | None) -> None:
        self.findings.checked[Check.IMAGES] += 1
        last = len(self.task.rows) if self.task.rows is not None else 0
        name = min(place.record, last)
        if name in self._watch.excluded:
            message = f"cannot be checked: {self._watch.excluded[name]}"
            self.findings.add(place.finding(Check.IMAGES, message))
            return
        source = None
        if self.task.conversion is not None and row is not None:
            source = self.task.conversion.read(row)
        self._watch.working(name)
        try:
            self._compare_image(place, example, row, source)
        finally:
            self._watch.waiting()

    def _compare_image(
        self,
        place: _Place,
        example: Record,
        row: dict[str, Any] | None,
        source: bytes | OSError | None,
    ) -> None:
        try:
            pixels = decode_image(example.image, self.task.image_shape, self.task.image_dtype)
        except ValueError as error:
            self.findings.add(place.finding(Check.IMAGES, str(error)))
            return
        if source is not None and self.task.conversion is not None and row is not None:
            self.findings.checked[Check.SOURCE] += 1
            for difference in compare_with_source(
                self.task.conversion, row, source, pixels, example.pixel_spacing
            ):
                self.findings.add(place.finding(Check.SOURCE, difference))

    def check_file(self, size: int, sha256: str) -> None:
        """The file as a whole against the manifest and the index."""
        claim, findings = self.task.claim, self.findings
        if claim.bytes not in (None, size):
            findings.add(Finding(Check.FILES, f"{size} bytes, not {claim.bytes}", claim.file))
        if claim.sha256 not in (None, sha256):
            message = f"SHA-256 is {sha256}, not {claim.sha256}"
            findings.add(Finding(Check.FILES, message, claim.file))
        findings.checked[Check.COUNTS] += 1
        if claim.examples not in (None, self._records):
            message = f"{self._records} records, the manifest says {claim.examples}"
            findings.add(Finding(Check.COUNTS, message, claim.file))
        for record, row in sorted((self._rows or {}).items()):
            if not 0 <= record < self._records:
                place = _Place(claim.file, record, row["offset"], row["image_id"])
                findings.add(place.finding(Check.RECORDS, "in the index, not in the file"))
        self._check_label_counts()

    def _check_label_counts(self) -> None:
        stated, labels = self.task.claim.label_counts, self.task.labels
        if stated is None or labels is None:
            return
        for position, label in enumerate(labels):
            count = sum(n for combo, n in self._combinations.items() if combo[position] == 1)
            self.findings.checked[Check.COUNTS] += 1
            if label in stated and stated[label] != count:
                message = f"{count} examples have {label}, the manifest says {stated[label]}"
                self.findings.add(Finding(Check.COUNTS, message, self.task.claim.file))

    def report(self, size: int | None, sha256: str) -> ShardReport:
        """All of it."""
        contents = pa.table(self._contents, CONTENTS)
        return ShardReport(
            self.task.claim,
            self.findings,
            size,
            sha256,
            self._records,
            contents,
            self._combinations,
        )


def _same_float32(indexed: Any, stored: float) -> bool:
    """Whether a float64 of the index is what an Example holds of it."""
    if not isinstance(indexed, float):
        return False
    with np.errstate(over="ignore"):  # too large a number becomes infinite in both
        return bool(np.array_equal(np.float32(indexed), np.float32(stored), equal_nan=True))


def _shown(name: str, value: Any) -> str:
    """A value for a message; ids that are no pseudonyms are kept back."""
    if name in ("patient_id", "study_id", "series_id"):
        return show_id(value)
    return printable(value)
