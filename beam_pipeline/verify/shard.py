"""Checks of one shard file: bytes, records, images, and rows of the index."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.dicom.header import MAX_PIXELS
from beam_pipeline.images.png import decode_png, read_png_header
from beam_pipeline.shards.formats import decode_example
from beam_pipeline.verify.description import IndexRows
from beam_pipeline.verify.findings import Check, Findings, printable, show_id
from beam_pipeline.verify.source import Conversion, SourceFile
from beam_pipeline.workers import Watch
from headct.layout import EXAMPLE_FEATURES, ID_COLUMNS, label_column
from headct.stores import Folder
from headct.tfrecord import DATA_OFFSET, FRAME_BYTES, CorruptRecord, read_record

# Columns of an example for the checks across shards; `image` is a hash of the PNG.
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
_CHUNK = 1 << 20
_TYPES = {"PNG": bytes, "string": bytes, "int64": int, "float32": float}
_LABEL_VALUES = frozenset((-1, 0, 1))
_NEEDLE = 64  # searched bytes of an image: a search for the whole image takes 0.1 ms
Combinations = Counter[tuple[int, ...]]  # number of examples per combination of labels


@dataclass(frozen=True)
class ShardTask:
    """A shard file to check."""

    folder: str  # the shard directory's path or URL
    split: str
    shard: dict[str, Any]  # the manifest's entry: file, bytes, sha256, examples, label_counts
    labels: Sequence[str]
    image: dict[str, Any]  # the manifest's `image`: height, width, channels, dtype
    rows: IndexRows | None  # None if the index is unusable
    conversion: Conversion | None = None  # converts the images again; None to skip


@dataclass
class ShardReport:
    """Result of checking a shard file."""

    split: str
    file: str
    findings: Findings = field(default_factory=Findings)
    bytes: int | None = None  # None if the file is unreadable
    sha256: str = ""
    records: int = 0  # including a damaged record
    contents: pa.Table = field(default_factory=CONTENTS.empty_table)  # rows of readable examples
    combinations: Combinations = field(default_factory=Counter)  # combinations of these examples


def count_labels(combinations: Combinations, labels: Sequence[str]) -> dict[str, int]:
    """Return the number of examples per label."""
    return {
        label: sum(n for combination, n in combinations.items() if combination[number] == 1)
        for number, label in enumerate(labels)
    }


def check_shard(task: ShardTask, watch: Watch) -> ShardReport:
    """Check one shard file, with one record at a time in memory; reports records to the watch.

    Raises:
        StoreError: the directory's store fails.
    """
    report = ShardReport(task.split, task.shard["file"])
    report.findings.checked[Check.FILES] += 1
    try:
        with Folder(task.folder).open(report.file) as opened:
            _ShardChecker(task, watch, report).check(_HashedFile(opened))
    except FileNotFoundError:
        if task.shard["examples"] != 0:  # a shard without accepted slices has no file
            report.findings.add(Check.FILES, "missing", report.file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        report.findings.add(Check.FILES, f"cannot be read: {reason}", report.file)
    return report


class _HashedFile:
    """A file with a running hash of the bytes read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.position = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        self.position += len(data)
        return data

    def finish(self) -> str:
        """Read the remaining bytes, and return the file's SHA-256 in hexadecimal."""
        while self.read(_CHUNK):
            pass
        return self._hash.hexdigest()


class _Location(NamedTuple):
    """Location of a record, for findings."""

    file: str
    record: int
    offset: int
    image_id: str = ""


class _ShardChecker:
    """Checks the records of a shard, and collects findings."""

    def __init__(self, task: ShardTask, watch: Watch, report: ShardReport) -> None:
        self.task = task
        self.report = report
        self.findings = report.findings
        self._watch = watch
        self._rows = task.rows.by_record() if task.rows is not None else {}
        self._contents: list[dict[str, Any]] = []

    def check(self, file: _HashedFile) -> None:
        """Check every record up to the first damaged one, then the file as a whole."""
        damaged = False
        while not damaged:
            record, offset = self.report.records, file.position
            row = self._rows.get(record)
            location = _Location(self.report.file, record, offset, row["image_id"] if row else "")
            try:
                data = read_record(cast(BinaryIO, file), offset)
            except CorruptRecord as error:
                message = f"{error.what}; later records are not checked"
                self.findings.add(Check.FRAMES, message, *location)
                damaged = True
            else:
                if data is None:
                    break
                if row is None and self.task.rows is not None:
                    self.findings.add(Check.RECORDS, "the index has no such record", *location)
                self._check_record(location, data, row)
            self.findings.checked[Check.FRAMES] += 1
            self.report.records += 1
        self.report.contents = pa.Table.from_pylist(self._contents, CONTENTS)
        self.report.sha256 = file.finish()
        self.report.bytes = file.position
        self._compare_file("bytes", self.report.bytes, Check.FILES)
        self._compare_file("sha256", self.report.sha256, Check.FILES)
        if not damaged:
            self._check_counts()

    def _check_record(self, location: _Location, data: bytes, row: dict[str, Any] | None) -> None:
        self.findings.checked[Check.EXAMPLES] += 1
        try:
            example = _read_example(data, self.task.labels)
        except ValueError as error:
            self.findings.add(Check.EXAMPLES, str(error), *location)
            return
        location = location._replace(image_id=example["image_id"])
        image, spacing = example["image"], example["pixel_spacing"]
        values = {
            "split": self.task.split,
            "shard": location.file,
            "record": location.record,
            "offset": location.offset,
            "bytes": len(data) + FRAME_BYTES,
            **{name: example[name] for name in ("image_id", *ID_COLUMNS, "position_z")},
            "row_spacing": spacing[0],
            "column_spacing": spacing[1],
            "image_offset": location.offset + DATA_OFFSET + _find(image, data),
            "image_bytes": len(image),
        }
        image_hash = int.from_bytes(hashlib.blake2b(image, digest_size=8).digest())
        self._contents.append(values | {"image": image_hash})
        self.report.combinations[tuple(example["label"])] += 1
        if row is not None:
            labels = zip(self.task.labels, example["label"], strict=True)
            values |= {label_column(name): value for name, value in labels}
            self._compare_row(location, values, row)
        self._check_image(location, image, spacing, row)

    def _compare_row(
        self, location: _Location, values: dict[str, Any], row: dict[str, Any]
    ) -> None:
        """Compare an example with its row of the index."""
        self.findings.checked[Check.RECORDS] += 1
        differing = [
            f"{name} is {_shown(name, value)}, {_shown(name, row[name])} in the index"
            for name, value in values.items()
            if row[name] != value and not _same_float32(row[name], value)
        ]
        if differing:
            self.findings.add(Check.RECORDS, "; ".join(differing), *location)

    def _check_image(
        self, location: _Location, image: bytes, spacing: list[float], row: dict[str, Any] | None
    ) -> None:
        self.findings.checked[Check.IMAGES] += 1
        # Records missing from the index share a number: a damaged file may have many such records.
        number = min(location.record, len(self.task.rows or ()))
        if number in self._watch.excluded:
            message = f"cannot be checked: {self._watch.excluded[number]}"
            self.findings.add(Check.IMAGES, message, *location)
            return
        source: SourceFile | None = None
        if self.task.conversion is not None and row is not None:
            source = self.task.conversion.read(row)
        self._watch.working(number)
        try:
            self._check_pixels(location, image, spacing, source)
        finally:
            self._watch.waiting()

    def _check_pixels(
        self, location: _Location, image: bytes, spacing: list[float], source: SourceFile | None
    ) -> None:
        try:
            pixels = _decode_image(image, self.task.image)
        except ValueError as error:
            self.findings.add(Check.IMAGES, str(error), *location)
            return
        if source is not None:
            self.findings.checked[Check.SOURCE] += 1
            for difference in source.compare(pixels, spacing):
                self.findings.add(Check.SOURCE, difference, *location)

    def _check_counts(self) -> None:
        """Compare the numbers of records with the manifest and the index."""
        self._compare_file("examples", self.report.records, Check.COUNTS)
        counts = count_labels(self.report.combinations, self.task.labels)
        self._compare_file("label_counts", counts, Check.COUNTS)
        for record, row in sorted(self._rows.items()):
            if not 0 <= record < self.report.records:
                location = _Location(self.report.file, record, row["offset"], row["image_id"])
                self.findings.add(Check.RECORDS, "in the index, not in the file", *location)

    def _compare_file(self, name: str, value: Any, check: Check) -> None:
        self.findings.compare(check, self.report.file, name, value, self.task.shard[name])


def _read_example(data: bytes, labels: Sequence[str]) -> dict[str, Any]:
    """Return the features of a serialized Example: single values, longer lists, ids as text.

    Raises:
        ValueError: the Example violates the contract; the message says how.
    """
    features: dict[str, Any] = decode_example(data)
    if wrong := _check_features(features, labels):
        raise ValueError("; ".join(wrong))
    single = {name: features[name][0] for name, _, shape, _ in EXAMPLE_FEATURES if not shape}
    try:
        ids = {name: single[name].decode() for name in ("image_id", *ID_COLUMNS)}
    except UnicodeError:
        raise ValueError("an id is not UTF-8") from None
    return features | single | ids


def _check_features(features: dict[str, Any], labels: Sequence[str]) -> list[str]:
    """Return how features differ from the contract."""
    wrong = []
    expected = {feature.name for feature in EXAMPLE_FEATURES}
    if features.keys() != expected:
        missing = ", ".join(sorted(expected - features.keys()))
        more = ", ".join(map(printable, sorted(features.keys() - expected)))
        wrong.append(f"features missing: {missing or '-'}; more: {more or '-'}")
    for name, dtype, shape, _ in EXAMPLE_FEATURES:
        values, kind = features.get(name), _TYPES[dtype]
        if values is None:
            continue
        (count,) = shape or (1,)
        if count == "labels":
            count = len(labels)
        if len(values) != count or not all(isinstance(value, kind) for value in values):
            kinds = sorted({type(value).__name__ for value in values})
            wrong.append(f"{name} is {len(values)} {'/'.join(kinds)}, not {count} {kind.__name__}")
    if not wrong and not set(features["label"]) <= _LABEL_VALUES:
        wrong.append(f"label is {features['label']}, not of -1, 0 and 1")
    return wrong


def _decode_image(png: bytes, image: dict[str, Any]) -> NDArray[np.uint8 | np.uint16]:
    """Return the pixels, [height, width, channels].

    Raises:
        ValueError: the PNG is broken, or differs from the manifest's `image`.
    """
    header = read_png_header(png)
    shape = image["height"], image["width"], image["channels"]
    if header.shape != shape:
        raise ValueError(f"the image is {_times(header.shape)}, not {_times(shape)}")
    if header.dtype != image["dtype"]:
        raise ValueError(f"the image is {header.dtype}, not {image['dtype']}")
    height, width, _ = header.shape
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"the image is {_times(header.shape)}: too large")
    return decode_png(png, header)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _find(image: bytes, data: bytes) -> int:
    """Return the offset of an image in its record's data."""
    start = data.find(image[:_NEEDLE])
    while not data.startswith(image, start):
        start = data.find(image[:_NEEDLE], start + 1)
    return start


def _same_float32(indexed: Any, stored: Any) -> bool:
    """Return whether a float64 of the index equals the stored float32."""
    if not isinstance(stored, float):
        return False
    with np.errstate(over="ignore"):  # overflow to infinity is alike in both
        return bool(np.array_equal(np.float32(indexed), np.float32(stored), equal_nan=True))


def _shown(name: str, value: Any) -> str:
    """Return a value for a message; ids other than pseudonyms are hidden."""
    return show_id(value) if name in ID_COLUMNS else printable(value)
