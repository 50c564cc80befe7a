"""The inventory: one row per input file, with ids and header but no pixels."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from io import BytesIO
from itertools import count, islice
from typing import Any, BinaryIO, cast

import pyarrow as pa

from beam_pipeline.dicom.acquisition import OTHER, Acquisition
from beam_pipeline.dicom.header import FIRST_BYTES, read_header
from beam_pipeline.dicom.selection import Selection, parse_condition
from beam_pipeline.dicom.slices import fingerprint, fingerprint_range
from beam_pipeline.keys import (
    hash_id,
    holds_identifier,
    input_key,
    key_check,
    patient_of_study,
    read_key,
)
from beam_pipeline.options import (
    Identifiers,
    ImageId,
    LeakCheck,
    Options,
    Orientation,
)
from beam_pipeline.planning.output_checks import without_output
from beam_pipeline.shards.formats import table_of_rows
from beam_pipeline.shards.unfinished import Unfinished, table_metadata
from beam_pipeline.workers import Watch
from headct.layout import ID_COLUMNS, inventory_table, listing_table, ordinal
from headct.reasons import EXCLUSIONS, TRANSIENT, Rejected
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
ACQUISITION = "acquisition"  # column with `Acquisition.encode` texts
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
        pa.field(ACQUISITION, _TEXTS),
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
        excluded: files that are not wanted.
    """

    files: int
    rejected: int
    reused: int
    excluded: int = 0


def list_parts(options: Options) -> Iterator[int]:
    """List the input in parts; yield the number of files per part.

    Raises:
        UsageError: `--files` names no file of the input.
        StoreError: the input cannot be listed completely.
        OutputError: a part cannot be written.
    """
    files, path = options.files, options.selection.files
    unfinished = Unfinished(files.folder)
    input_files = find_input(files.input, files.storage_patience)
    found = without_output(input_files.list(), input_files, files.output)
    parts, facts = _list_all(found), {}
    if path:
        # Imported late: it loads pandas, which no worker needs.
        from beam_pipeline.planning.file_list import FileList

        # The list kept at the start may be gone when a template's job runs again.
        wanted = FileList.find(unfinished) or FileList.read(
            path, input_files, files.storage_patience
        )
        listed = wanted.select(found)
        parts, facts = _divide(listed.files), listed.counts
    for number, table in enumerate(parts):
        unfinished.write(listing_table(number), table, {"files": len(table), **facts})
        yield len(table)


def _list_all(found: Iterator[FileInfo]) -> Iterator[pa.Table]:
    for number in count():
        part = list(islice(found, _part_size(number)))
        if not part:
            return
        rows = [(encode_source(info.path), info.size, info.version) for info in part]
        yield pa.table([*zip(*rows, strict=True)], _LISTING)


def _divide(files: pa.Table) -> Iterator[pa.Table]:
    first = 0
    for number in count():
        part = files.slice(first, _part_size(number))
        if not len(part):
            return
        yield part
        first += len(part)


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
    listed = unfinished.read(listing_table(number)).to_pylist()
    key = find_key(options)
    check = key_check(key)
    before = unfinished.find(inventory_table(number))
    known = _known_rows(before, check)
    rows: list[Any] = [known.get(_version(row)) for row in listed]
    new = [place for place, row in enumerate(rows) if row is None]
    with files.reading() as reading:
        inspector = _Inspector(files, reading, key, options, watch, listed)
        heads = reading.ahead(new, inspector.read_head)
        found = [(place, *inspector.describe(place, head)) for place, head in heads]
        for place, row, pixels in found:
            rows[place] = _finished(row, pixels)
    reasons = [row["reason"] for row in rows if row and row["reason"]]
    excluded = sum(reason in EXCLUSIONS for reason in reasons)
    rejected = len(reasons) - excluded
    if new or before is None or len(before) != len(listed):
        table = table_of_rows(rows, SCHEMA)
        metadata = {"key_check": check, "files": len(listed), "rejected": rejected}
        metadata |= {"excluded": excluded}
        unfinished.write(inventory_table(number), table, metadata)
    return Inspected(len(listed), rejected, len(listed) - len(new), excluded)


def _version(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["source"], row["size"], row["version"]


def find_key(options: Options) -> bytes:
    """Return the hash key of the ids in the inventory; empty if ids are kept.

    Raises:
        UsageError: the key is missing.
        StoreError: a store fails.
    """
    chosen, patience = options.identifiers, options.files.storage_patience
    if chosen.identifiers is Identifiers.ORDINAL:
        listed = Unfinished(options.files.folder).read(listing_table(0))["source"]
        paths = [decode_source(path) for path in listed[:_KEY_CANDIDATES].to_pylist()]
        return input_key(find_input(options.files.input, patience), paths)
    if chosen.identifiers is Identifiers.KEEP:
        return b""
    return read_key(chosen.identifier_key_file, patience)


def replace_uid(key: bytes, uid: str, image_id: ImageId) -> str:
    """Return a SOP Instance UID as the inventory stores it; empty if absent."""
    is_kept = not uid or image_id is ImageId.SOP_INSTANCE_UID
    return uid if is_kept else hash_id(key, "image_id", uid)


def name_of(source: str) -> str:
    """Return a file's name without its suffix; digits are the end of a UID, not a suffix."""
    name = source.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot and not suffix.isdigit() else name


def _known_rows(table: pa.Table | None, check: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the rows of an earlier run that are still valid, by file."""
    if table is None or table_metadata(table).get("key_check") != check:
        return {}
    if table.column_names != SCHEMA.names:  # written by another version
        return {}
    return {
        _version(row): row
        for row in table.to_pylist()
        if row["version"] and row["reason"] not in TRANSIENT
    }


def read_ids(files: InputFiles, sources: Iterable[bytes]) -> Iterator[str]:
    """Yield the ids of image, series, study and patient of some files, skipping other files.

    Raises:
        StoreError: the store fails.
    """
    for source in sources:
        with suppress(OSError, Rejected):
            data = files.read(decode_source(source))
            header = read_header(BytesIO(data), len(data))
            yield from (
                *(header.sop_instance_uid, header.series_id),
                *(header.study_id, header.patient_id),
            )


def locate_sources(
    files: InputFiles, sources: Sequence[str], *, numbered: bool, count: int
) -> list[bytes | None]:
    """Return the paths of an index's sources, by `encode_source`; None for an unknown source.

    Args:
        files: the input, which may have changed or moved.
        sources: values of the index's column.
        numbered: whether sources are file numbers (`--image_id ordinal`).
        count: number of input files when the index was made.

    Raises:
        ValueError: sources are numbers, and the input has more or fewer files now.
        StoreError: the input's store fails.
    """
    known = {source: source for source in sources}
    if numbered:
        paths = [info.path for info in files.list()]
        if len(paths) != count:
            raise ValueError(f"the input has {len(paths)} files, not {count} as it had")
        known = {ordinal("file", number): path for number, path in enumerate(paths)}
    elif any("\\" in source for source in sources):  # perhaps a name that is not UTF-8
        known = {show_source(info.path): info.path for info in files.list()}
    return [encode_source(known[source]) if source in known else None for source in sources]


@dataclass(frozen=True)
class _Inspector:
    """Reads headers, and prefetches the next headers during parsing."""

    files: InputFiles
    reading: Reading
    key: bytes
    options: Options
    watch: Watch
    listed: Sequence[dict[str, Any]]

    @cached_property
    def selection(self) -> Selection:
        """Which slices are wanted."""
        chosen = self.options.selection
        conditions = tuple(map(parse_condition, chosen.where))
        return Selection(chosen.orientation is Orientation.AXIAL, conditions)

    def path(self, place: int) -> str:
        return decode_source(self.listed[place]["source"])

    def read_head(self, place: int) -> Future[bytes]:
        if place in self.watch.excluded:
            return Future()
        # No version: a dangling link, so a retry is pointless.
        again = bool(self.listed[place]["version"])
        return self.reading.part(self.path(place), 0, FIRST_BYTES, bytes, again=again)

    def describe(
        self, place: int, head: Future[bytes]
    ) -> tuple[dict[str, Any], Future[int] | None]:
        """Return a file's row, and the future of its fingerprint."""
        listed, path = self.listed[place], self.path(place)
        size = listed["size"]
        try:
            if place in self.watch.excluded:
                raise Rejected(self.watch.excluded[place])
            data = head.result()
            if not listed["version"]:  # the link leads somewhere since it was listed
                found = self.files.info(path)
                size = found.size if found else size
            beginning = _Beginning(self, place, data, size)
            self.watch.working(place)
            header = read_header(cast(BinaryIO, beginning), size, self.selection)
            study = hash_id(self.key, "study_id", header.study_id)
            patient = header.patient_id and hash_id(self.key, "patient_id", header.patient_id)
            image_id = self.options.labels.image_id
            row = _row(
                listed,
                patient_id=patient or patient_of_study(study),
                study_id=study,
                series_id=hash_id(self.key, "series_id", header.series_id),
                sop_instance_uid=replace_uid(self.key, header.sop_instance_uid, image_id),
                header=header.encode(),
                acquisition=_encode_acquisition(header.acquisition, header.identifiers),
                path_identifies=holds_identifier(show_source(path), header.identifiers),
            )
        except Rejected as rejected:
            identifies = holds_identifier(show_source(path), rejected.identifiers)
            return _rejected(listed, rejected) | {"path_identifies": identifies}, None
        except OSError as error:
            return _rejected(listed, Rejected.unread(error)), None
        finally:
            self.watch.waiting()
        if header.pixel_offset is None:  # a deflated file
            return row, None
        offset, length = header.pixel_offset, header.pixel_bytes(size)
        row |= {"pixel_offset": offset, "pixel_bytes": length}
        if self.options.splits.leak_check is LeakCheck.OFF:
            return row, None
        return row, self.reading.part(
            path,
            *fingerprint_range(offset, length),
            lambda middle: fingerprint(middle, partial(self.reading.now, path, offset, length)),
        )


@lru_cache(maxsize=1 << 10)  # the files of a series share both
def _encode_acquisition(acquisition: Acquisition, identifiers: tuple[str, ...]) -> str:
    """Return an acquisition as text, without texts that hold an identifier of the patient."""
    texts = (acquisition.body_part, acquisition.kernel, acquisition.scanner)
    body_part, kernel, scanner = (
        OTHER if holds_identifier(text, identifiers) else text for text in texts
    )
    shown = replace(acquisition, body_part=body_part, kernel=kernel, scanner=scanner)
    return shown.encode()


class _Beginning:
    """A file with its first bytes in memory; other bytes are read on demand."""

    def __init__(self, inspector: _Inspector, place: int, data: bytes, size: int) -> None:
        self._inspector, self._place, self._data, self._size = inspector, place, data, size
        self._position = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes; the watch does not count the wait for more."""
        first, self._position = self._position, self._position + size
        data = self._data[first : self._position]
        start = max(first, len(self._data))
        missing = min(self._position, self._size) - start
        if missing > 0 and len(self._data) >= FIRST_BYTES:
            inspector = self._inspector
            inspector.watch.waiting()
            data += inspector.reading.now(inspector.path(self._place), start, missing)
            inspector.watch.working(self._place)
        return data


def _row(listed: dict[str, Any], **values: Any) -> dict[str, Any]:
    name = name_of(show_source(decode_source(listed["source"])))
    row = dict.fromkeys(SCHEMA.names, "") | {"image_id": name, "fingerprint": 0}
    row |= {"pixel_offset": -1, "pixel_bytes": 0, "path_identifies": False}
    return row | {column: listed[column] for column in _LISTING.names} | values


def _rejected(listed: dict[str, Any], why: Rejected) -> dict[str, Any]:
    return _row(listed, reason=why.reason.value, detail=why.detail)


def _finished(row: dict[str, Any], pixels: Future[int] | None) -> dict[str, Any]:
    """Return a row with the fingerprint of its pixels."""
    try:
        return row | {"fingerprint": pixels.result()} if pixels else row
    except OSError as error:
        return _rejected(row, Rejected.unread(error))
