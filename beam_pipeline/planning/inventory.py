"""The inventory: one row per input file, with ids and header but no pixels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from typing import Any, BinaryIO, cast

import pyarrow as pa

from beam_pipeline.dicom.header import FIRST_BYTES, Header, read_header
from beam_pipeline.dicom.slices import fingerprint, fingerprint_range
from beam_pipeline.keys import input_key, key_check, read_key
from beam_pipeline.options import Files, Identifiers, ImageId, LeakCheck, Options
from beam_pipeline.planning.output_checks import without_output
from beam_pipeline.planning.pseudonyms import (
    hash_id,
    holds_identifier,
    name_of,
    patient_of_study,
)
from beam_pipeline.shards.unfinished import Unfinished, table_metadata
from beam_pipeline.workers import Watch
from headct.layout import ID_COLUMNS, inventory_table, listing_table
from headct.reasons import TRANSIENT, Rejected
from headct.stores import (
    FileInfo,
    InputFiles,
    Reading,
    decode_source,
    encode_source,
    find_input,
    show_source,
)

# One task reads one part. The first parts are small, to keep all workers busy with few files;
# later parts are larger, to keep the number of parts in the thousands for millions of files.
_SMALLEST_PART, _LARGEST_PART = 256, 4096
_PARTS_OF_A_SIZE = 16
_KEY_CANDIDATES = 64  # files; the first readable file gives the key of the inventory

_LISTING = pa.schema({"source": pa.binary(), "size": pa.int64(), "version": pa.string()})
_TEXTS = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        *_LISTING,
        pa.field("image_id", pa.string()),
        pa.field("sop_instance_uid", pa.string()),
        *(pa.field(name, _TEXTS) for name in ID_COLUMNS),
        pa.field("fingerprint", pa.uint64()),
        pa.field("pixel_offset", pa.int64()),
        pa.field("pixel_bytes", pa.int64()),
        pa.field("header", pa.string()),
        pa.field("path_identifies", pa.bool_()),
        pa.field("reason", _TEXTS),
        pa.field("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Inspected:
    """File counts of a part of the inventory.

    Attributes:
        files: all files of the part.
        rejected: files that cannot be used.
        reused: files known from an earlier run and not read again.
    """

    files: int
    rejected: int
    reused: int


def list_parts(files: Files) -> Iterator[int]:
    """List the input in parts; yield the number of files per part.

    Raises:
        StoreError: the input cannot be listed completely.
        OutputError: a part cannot be written.
    """
    input_files = InputFiles.expect(files.input, files.storage_patience)
    found = without_output(input_files.list(), input_files, files.output)
    unfinished = Unfinished(files.folder)
    number = 0
    while part := list(islice(found, _part_size(number))):
        rows = {
            "source": [encode_source(info.path) for info in part],
            "size": [info.size for info in part],
            "version": [info.version for info in part],
        }
        table = pa.table(rows, _LISTING)
        unfinished.write(listing_table(number), table, {"files": len(part)})
        yield len(part)
        number += 1


def _part_size(number: int) -> int:
    return min(_SMALLEST_PART << (number // _PARTS_OF_A_SIZE), _LARGEST_PART)


def inspect_part(number: int, watch: Watch, *, options: Options) -> Inspected:
    """Read the headers of a part of the listing, and write the part of the inventory.

    Rows of an earlier run are reused for files of the same size and version.

    Args:
        number: number of the part.
        watch: notified of each header that is parsed.
        options: options of the run.

    Raises:
        OutputError: the part cannot be written.
        StoreError: a store fails.
    """
    unfinished = Unfinished(options.files.folder)
    files = find_input(options.files.input, options.files.storage_patience)
    listed = _read_listing(unfinished, number)
    key = find_key(options)
    check = key_check(key)
    before = unfinished.find(inventory_table(number))
    known = _known_rows(before, check)
    rows: list[dict[str, Any] | None] = [known.get(info) for info in listed]
    places = [place for place, row in enumerate(rows) if row is None]
    with_pixels = options.splits.leak_check is not LeakCheck.OFF
    inspector = _Inspector(files, key, options.labels.image_id, with_pixels, watch)
    for place, row in zip(places, inspector.inspect(listed, places), strict=True):
        rows[place] = row
    rejected = sum(bool(row and row["reason"]) for row in rows)
    if places or before is None or len(before) != len(listed):
        filled = [_filled(info, row or {}) for info, row in zip(listed, rows, strict=True)]
        table = pa.Table.from_pylist(filled, SCHEMA)
        metadata = {"key_check": check, "files": len(rows), "rejected": rejected}
        unfinished.write(inventory_table(number), table, metadata)
    return Inspected(len(listed), rejected, len(listed) - len(places))


def _read_listing(unfinished: Unfinished, number: int) -> list[FileInfo]:
    rows = unfinished.read(listing_table(number)).to_pylist()
    return [FileInfo(decode_source(row["source"]), row["size"], row["version"]) for row in rows]


def find_key(options: Options) -> bytes:
    """Return the hash key of the ids in the inventory; empty if ids are kept.

    Raises:
        UsageError: the key is missing.
        StoreError: a store fails.
    """
    chosen, patience = options.identifiers, options.files.storage_patience
    if chosen.identifiers is Identifiers.ORDINAL:
        listed = _read_listing(Unfinished(options.files.folder), 0)
        return input_key(find_input(options.files.input, patience), listed[:_KEY_CANDIDATES])
    if chosen.identifiers is Identifiers.KEEP:
        return b""
    return read_key(chosen.identifier_key_file, patience)


def replace_uid(key: bytes, uid: str, image_id: ImageId) -> str:
    """Return a SOP Instance UID as the inventory stores it; empty if absent."""
    if not uid or not key or image_id is ImageId.SOP_INSTANCE_UID:
        return uid
    return hash_id(key, "image_id", uid)


def _known_rows(table: pa.Table | None, check: str) -> dict[FileInfo, dict[str, Any]]:
    """Return the rows of an earlier run that are still valid, by file."""
    if table is None or table_metadata(table).get("key_check") != check:
        return {}
    if table.column_names != SCHEMA.names:  # written by another version
        return {}
    return {
        FileInfo(decode_source(row["source"]), row["size"], row["version"]): row
        for row in table.to_pylist()
        if row["version"] and row["reason"] not in TRANSIENT
    }


def _filled(info: FileInfo, row: dict[str, Any]) -> dict[str, Any]:
    listed = {"source": encode_source(info.path), "size": info.size, "version": info.version}
    return row | listed


def read_uids(files: InputFiles, sources: Iterable[bytes]) -> Iterator[str]:
    """Yield the SOP Instance UIDs of some files; files that are not slices are skipped.

    Raises:
        StoreError: the store fails.
    """
    for source in sources:
        with suppress(OSError, Rejected):
            data = files.read(decode_source(source))
            yield read_header(BytesIO(data), len(data)).sop_instance_uid


class _Inspector:
    """Reads headers, and prefetches the next headers during parsing."""

    def __init__(
        self, files: InputFiles, key: bytes, image_id: ImageId, with_pixels: bool, watch: Watch
    ) -> None:
        self._files = files
        self._key = key
        self._image_id = image_id
        self._with_pixels = with_pixels
        self._watch = watch

    def inspect(self, listed: Sequence[FileInfo], places: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows of the files at some indices, in order."""
        with self._files.reading() as reading:
            heads = reading.ahead(places, lambda place: self._head(reading, listed[place], place))
            rows = [self._row(reading, listed[place], place, head) for place, head in heads]
            return [self._finished(row, fingerprint) for row, fingerprint in rows]

    def _head(self, reading: Reading, info: FileInfo, place: int) -> Future[bytes]:
        if place in self._watch.excluded:
            return Future()
        # No version: a dangling link, so a retry is pointless.
        return reading.part(info.path, 0, FIRST_BYTES, bytes, again=bool(info.version))

    def _row(
        self, reading: Reading, info: FileInfo, place: int, head: Future[bytes]
    ) -> tuple[dict[str, Any], Future[int] | None]:
        """Return a file's row, and the future of its fingerprint."""
        row = _empty_row(name_of(show_source(info.path)))
        try:
            if place in self._watch.excluded:
                raise Rejected(self._watch.excluded[place])
            data = head.result()
            if not info.version:
                info = self._files.info(info.path) or info
            beginning = _Beginning(data, info, partial(self._read_more, reading, info.path, place))
            self._watch.working(place)
            header = read_header(cast(BinaryIO, beginning), info.size)
            row |= self._describe(header, info)
        except Rejected as rejected:
            return _rejected(row, rejected), None
        except OSError as error:
            return _rejected(row, Rejected.unread(error)), None
        finally:
            self._watch.waiting()
        if not self._with_pixels or row["pixel_offset"] < 0:
            return row, None
        return row, _read_fingerprint(reading, info.path, row["pixel_offset"], row["pixel_bytes"])

    def _read_more(
        self, reading: Reading, source: str, place: int, start: int, length: int
    ) -> bytes:
        """Return more bytes of a file during parsing; the watch does not count the wait."""
        self._watch.waiting()
        data = reading.now(source, start, length)
        self._watch.working(place)
        return data

    def _describe(self, header: Header, info: FileInfo) -> dict[str, Any]:
        study = self._replace("study_id", header.study_id)
        patient = header.patient_id and self._replace("patient_id", header.patient_id)
        described: dict[str, Any] = {
            "patient_id": patient or patient_of_study(study),
            "study_id": study,
            "series_id": self._replace("series_id", header.series_id),
            "sop_instance_uid": replace_uid(self._key, header.sop_instance_uid, self._image_id),
            "header": header.encode(),
            "path_identifies": holds_identifier(show_source(info.path), header.identifiers),
        }
        if header.pixel_offset is not None:  # a deflated file has no offset
            described["pixel_offset"] = header.pixel_offset
            described["pixel_bytes"] = header.pixel_bytes(info.size)
        return described

    def _replace(self, column: str, text: str) -> str:
        return hash_id(self._key, column, text) if self._key else text

    def _finished(self, row: dict[str, Any], fingerprint: Future[int] | None) -> dict[str, Any]:
        if fingerprint is None:
            return row
        try:
            return row | {"fingerprint": fingerprint.result()}
        except OSError as error:
            return _rejected(row, Rejected.unread(error))


class _Beginning:
    """A file with its first bytes in memory; other bytes are read on demand."""

    def __init__(self, data: bytes, info: FileInfo, read_more: Callable[[int, int], bytes]) -> None:
        self._data, self._info, self._read_more = data, info, read_more
        self._position = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        first, self._position = self._position, self._position + size
        data = self._data[first : self._position]
        missing = min(self._position, self._info.size) - max(first, len(self._data))
        if missing > 0 and len(self._data) >= FIRST_BYTES:
            start = max(first, len(self._data))
            data += self._read_more(start, missing)
        return data


def _empty_row(image_id: str) -> dict[str, Any]:
    row: dict[str, Any] = {"image_id": image_id, "fingerprint": 0, "header": ""}
    row |= dict.fromkeys(("sop_instance_uid", *ID_COLUMNS), "")
    row |= {"pixel_offset": -1, "pixel_bytes": 0, "path_identifies": False}
    return row | {"reason": "", "detail": ""}


def _rejected(row: dict[str, Any], why: Rejected) -> dict[str, Any]:
    return _empty_row(row["image_id"]) | {"reason": why.reason.value, "detail": why.detail}


def _read_fingerprint(reading: Reading, source: str, offset: int, size: int) -> "Future[int]":
    start, length = fingerprint_range(offset, size)
    return reading.part(
        source,
        start,
        length,
        lambda data: fingerprint(data, partial(reading.now, source, offset, size)),
    )
