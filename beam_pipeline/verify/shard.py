"""Checks of one shard file: bytes, records, images, rows of the index, and the DICOM files."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.dicom.slices import read_slice
from beam_pipeline.images.convert import convert_slice
from beam_pipeline.options import ImageOptions
from beam_pipeline.shards.formats import decode_example
from beam_pipeline.shards.writer import index_fields
from beam_pipeline.verify.findings import Check, Findings, differences
from beam_pipeline.workers import Watch
from headct.layout import EXAMPLE_FEATURES, ID_COLUMNS, label_column
from headct.manifest import ImageSpec
from headct.png import decode_pngs
from headct.printable import shown
from headct.reasons import Rejected
from headct.stores import Folder, InputFiles, decode_source, digest_file
from headct.tfrecord import DATA_OFFSET, FRAME_BYTES, CorruptRecord, read_record

FILE = "file"  # added column of the index: the source file's path; `source` may hide the path
_TYPES = {"PNG": bytes, "string": bytes, "int64": int, "float32": float}
_LABEL_VALUES = frozenset((-1, 0, 1))
_PSEUDONYM = re.compile(r"(patient|study|series)_[0-9a-f]+")

Pixels = NDArray[np.uint8 | np.uint16]
Location = tuple[str, int, int, str]  # of a record, for findings


@dataclass(frozen=True)
class ShardTask:
    """A shard file to check."""

    folder: str  # the shard directory's path or URL
    split: str
    shard: dict[str, Any]  # the manifest's entry: file, bytes, sha256, examples, label_counts
    labels: Sequence[str]
    image: ImageSpec
    rows: dict[int, dict[str, Any]] | None  # of the index, by record; None if it is unusable
    source: InputFiles | None = None  # the DICOM files, to convert the images again
    options: ImageOptions | None = None  # of the conversion; None to skip it


@dataclass
class ShardReport:
    """Result of checking a shard file."""

    split: str
    file: str
    contents: pa.Table  # rows of readable examples
    findings: Findings = field(default_factory=Findings)
    bytes: int | None = None  # None if the file is unreadable
    sha256: str = ""
    records: int = 0  # including a damaged record


def contents_schema(labels: Sequence[str]) -> pa.Schema:
    """Return the schema of the examples' values for the checks across shards."""
    text = pa.dictionary(pa.int32(), pa.string())
    columns = {"split": text, "shard": text, "record": pa.int32(), "image_id": pa.string()}
    columns |= {"patient_id": pa.string(), "study_id": pa.string()}
    columns |= {"image": pa.uint64()}  # a hash of the PNG
    return pa.schema(columns | {label_column(label): pa.int8() for label in labels})


def check_shard(task: ShardTask, watch: Watch) -> ShardReport:
    """Check one shard file, with one record at a time in memory; reports records to the watch.

    Raises:
        StoreError: the directory's store fails.
    """
    file = task.shard["file"]
    report = ShardReport(task.split, file, contents_schema(task.labels).empty_table())
    report.findings.checked[Check.FILES] += 1
    try:
        with Folder(task.folder).open(file) as opened:
            _ShardChecker(task, watch, report).check(opened)
    except FileNotFoundError:
        if task.shard["examples"] != 0:  # a shard without accepted slices has no file
            report.findings.add(Check.FILES, "missing", file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        report.findings.add(Check.FILES, f"cannot be read: {reason}", file)
    return report


class _ShardChecker:
    """Checks the records of a shard, and collects findings."""

    def __init__(self, task: ShardTask, watch: Watch, report: ShardReport) -> None:
        self._task = task
        self._report = report
        self._findings = report.findings
        self._watch = watch
        self._contents: list[dict[str, Any]] = []

    def check(self, file: BinaryIO) -> None:
        """Check the file as a whole, and every record up to the first damaged one."""
        report, shard = self._report, self._task.shard
        report.sha256, report.bytes = digest_file(file), file.seek(0, os.SEEK_END)
        for name, value in (("bytes", report.bytes), ("sha256", report.sha256)):
            self._findings.compare(Check.FILES, [name], value, shard[name], report.file)
        file.seek(0)
        is_damaged = self._check_records(file)
        report.contents = pa.Table.from_pylist(self._contents, report.contents.schema)
        if is_damaged:
            return
        counts = {
            label: sum(row[label_column(label)] == 1 for row in self._contents)
            for label in self._task.labels
        }
        for name, found in (("examples", report.records), ("label_counts", counts)):
            self._findings.compare(Check.COUNTS, [name], found, shard[name], report.file)
        for record, row in (self._task.rows or {}).items():
            if not 0 <= record < report.records:
                location = report.file, record, row["offset"], row["image_id"]
                self._findings.add(Check.RECORDS, "in the index, not in the file", *location)

    def _check_records(self, file: BinaryIO) -> bool:
        """Check the records, and return whether one is damaged."""
        offset = 0
        while True:
            record = self._report.records
            row = (self._task.rows or {}).get(record)
            location = self._report.file, record, offset, row["image_id"] if row else ""
            try:
                data = read_record(file, offset)
            except CorruptRecord as error:
                message = f"{error.what}; later records are not checked"
                self._findings.add(Check.FRAMES, message, *location)
                self._report.records += 1
                return True
            if data is None:
                return False
            self._findings.checked[Check.FRAMES] += 1
            self._report.records += 1
            if row is None and self._task.rows is not None:
                self._findings.add(Check.RECORDS, "the index has no such record", *location)
            self._check_record(data, row, location)
            offset += len(data) + FRAME_BYTES

    def _check_record(self, data: bytes, row: dict[str, Any] | None, location: Location) -> None:
        self._findings.checked[Check.EXAMPLES] += 1
        try:
            example = _read_example(data, self._task.labels)
        except ValueError as error:
            self._findings.add(Check.EXAMPLES, str(error), *location)
            return
        file, record, offset, _ = location
        location = file, record, offset, example["image_id"]
        values = {
            "split": self._task.split,
            "shard": file,
            "record": record,
            "offset": offset,
            "bytes": len(data) + FRAME_BYTES,
            **{name: example[name] for name in ("image_id", *ID_COLUMNS, "position_z")},
            "row_spacing": example["pixel_spacing"][0],
            "column_spacing": example["pixel_spacing"][1],
            **dict(zip(map(label_column, self._task.labels), example["label"], strict=True)),
        }
        image_hash = hashlib.blake2b(example["image"], digest_size=8).digest()
        self._contents.append(values | {"image": int.from_bytes(image_hash)})
        if row is not None:
            self._findings.checked[Check.RECORDS] += 1
            differing = [
                f"{name} is {_shown(name, value)}, {_shown(name, row[name])} in the index"
                for name, value in values.items()
                if not _is_same(row[name], value)
            ]
            start = row["image_offset"] - offset - DATA_OFFSET
            if start < 0 or data[start : start + row["image_bytes"]] != example["image"]:
                differing.append("its image is not where the index says")
            if differing:
                self._findings.add(Check.RECORDS, "; ".join(differing), *location)
        self._check_image(example["image"], row, location)

    def _check_image(self, png: bytes, row: dict[str, Any] | None, location: Location) -> None:
        self._findings.checked[Check.IMAGES] += 1
        record, image, options = location[1], self._task.image, self._task.options
        if record in self._watch.excluded:
            message = f"cannot be checked: {self._watch.excluded[record]}"
            self._findings.add(Check.IMAGES, message, *location)
            return
        source: bytes | OSError | None = None
        if self._task.source is not None and options is not None and row is not None:
            try:
                source = self._task.source.read(decode_source(row[FILE]))
            except OSError as error:
                source = error
        self._watch.working(record)
        try:
            pixels = np.empty((1, image.height, image.width, image.channels), image.dtype)
            decode_pngs([png], image, pixels)
            if source is not None and row is not None and options is not None:
                self._findings.checked[Check.SOURCE] += 1
                for difference in _compare_source(pixels[0], row, source, options):
                    message = f"{row['source']} {difference}"
                    self._findings.add(Check.SOURCE, message, *location)
        except ValueError as error:
            self._findings.add(Check.IMAGES, str(error), *location)
        finally:
            self._watch.waiting()


def _read_example(data: bytes, labels: Sequence[str]) -> dict[str, Any]:
    """Return the features of a serialized Example: single values, longer lists, ids as text.

    Raises:
        ValueError: the Example violates the contract; the message says how.
    """
    features: dict[str, Any] = decode_example(data)
    found = {
        name: f"{len(values)} {type(values[0]).__name__}" if values else "none"
        for name, values in features.items()
    }
    expected = {}
    for name, dtype, shape, _ in EXAMPLE_FEATURES:
        (count,) = shape or (1,)
        count = len(labels) if count == "labels" else count
        expected[name] = f"{count} {_TYPES[dtype].__name__}" if count else "none"
    if wrong := [*differences(found, expected, [])]:
        raise ValueError("; ".join(wrong))
    if not set(features["label"]) <= _LABEL_VALUES:
        raise ValueError(f"label is {features['label']}, not of -1, 0 and 1")
    single = {name: features[name][0] for name, _, shape, _ in EXAMPLE_FEATURES if not shape}
    try:
        ids = {name: single[name].decode() for name in ("image_id", *ID_COLUMNS)}
    except UnicodeError:
        raise ValueError("an id is not UTF-8") from None
    return features | single | ids


def _compare_source(
    stored: Pixels, row: dict[str, Any], data: bytes | OSError, options: ImageOptions
) -> list[str]:
    """Return one message per difference between an example and its DICOM file.

    Args:
        stored: pixels of the example, [height, width, channels].
        row: row of the index.
        data: content of the file, or the reading error.
        options: options of the conversion.
    """
    if isinstance(data, FileNotFoundError):
        return ["is no longer there"]
    if isinstance(data, OSError):
        return [f"cannot be read: {data.strerror or type(data).__name__}"]
    try:
        slice_ = read_slice(data)
        image = convert_slice(slice_, options)
    except Rejected as rejected:
        return [f"is no longer usable: {rejected.reason} {rejected.detail}".rstrip()]
    wrong = [
        f"changed: {name} is {value}, not {row[name]} as in the index"
        for name, value in index_fields(slice_.header, image).items()
        if not _is_same(row[name], value)
    ]
    fresh = image.pixels.astype(f"uint{8 * image.pixels.itemsize}", copy=False)
    if stored.shape != fresh.shape or stored.dtype != fresh.dtype:
        return [*wrong, f"changed: it gives {fresh.shape} {fresh.dtype}, not {stored.shape}"]
    differing = np.argwhere((stored != fresh).any(axis=2))
    if len(differing):
        row_, column = differing[0].tolist()
        first = f"the first at row {row_}, column {column}"
        wrong.insert(0, f"changed: {len(differing)} pixels differ, {first}")
    return wrong


def _is_same(indexed: Any, stored: Any) -> bool:
    """Return whether values are equal, floats as float32; a null of the index stands for NaN."""
    if not isinstance(stored, float):
        return bool(indexed == stored)
    with np.errstate(over="ignore"):  # overflow to infinity is alike in both
        return bool(np.array_equal(np.float32(indexed), np.float32(stored), equal_nan=True))


def show_id(value: object) -> str:
    """Return a pseudonym unchanged, and any other id as "(an id)"."""
    return value if isinstance(value, str) and _PSEUDONYM.fullmatch(value) else "(an id)"


def _shown(name: str, value: Any) -> str:
    """Return a value for a message; ids other than pseudonyms are hidden."""
    return show_id(value) if name in ID_COLUMNS else shown(value)
