"""Tables of an unfinished output folder, which pass data between steps and runs.

A table is written completely, once, under a descriptive name; a second write gives the same bytes.
So any worker can repeat a step, and a run reuses the tables of an earlier run:

labels          values of the label file, by image id
files           keys of the entries of a list of files
listing/00000   some input files, with size and version
inventory/00000 headers of the listed files: one row per file, in the same order
plan/00000      slices of some shard files, in writing order
written/SHARD   index rows of a shard file, and its manifest entry
plan, rejects   decisions of planning about all files
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import pyarrow as pa
from pydantic import TypeAdapter

from beam_pipeline.errors import AlreadyComplete
from headct.layout import MANIFEST, PLAN, UNFINISHED
from headct.stores import Folder, InputFiles, is_local

_METADATA = b"headct"
_CHECKSUM_BYTES = 4  # CRC-32C, at the end
_MAGIC_BYTES = 8  # of an Arrow file; the schema follows
_METADATA_BYTES = 1 << 15  # enough for nearly every schema
_WRITERS = 16  # threads for uploads to a remote store
_TYPICAL_BYTES = 1 << 20  # size of a table: bounds the prefetch


Reject = dict[str, str]  # a text per REJECT_COLUMNS


@dataclass(frozen=True)
class IdenticalPixels:
    """Numbers of slices with identical pixels.

    Attributes:
        groups: sets of slices with the same pixels.
        slices: slices in all groups.
        groups_across_patients: groups with more than one patient.
        groups_with_conflicting_labels: groups whose slices differ in a label.
    """

    groups: int = 0
    slices: int = 0
    groups_across_patients: int = 0
    groups_with_conflicting_labels: int = 0


@dataclass(frozen=True)
class Plan:
    """The plan of all shards, without their slices.

    Attributes:
        labels: names of the classes.
        files_seen: number of files in the input, without skipped ones.
        not_listed: number of files of the input that `--files` does not name.
        skipped: number of files without a row in the label file, with `--unlabeled skip`.
        labels_without_file: number of labeled ids without a file.
        identifying_paths: number of files whose written path holds an identifier of their patient.
        image_id: ids that tell slices apart, `file_name` or `sop_instance_uid`.
        labels_joined_by: kind of the label file's ids (`LabelForm`); None without a label file.
        notes: decisions that depend on the data, as sentences.
        identical: planned slices with identical pixels.
        shards: the shards' file names, in order.
        slices: number of planned slices.
        without_patient_id: number of planned slices without a PatientID, and of their studies.
        label_level: what the label file's ids name: image, series, study or patient.
        not_sampled: number of usable files whose patient is not in the sample.
    """

    labels: tuple[str, ...]
    files_seen: int
    skipped: int
    labels_without_file: int
    identifying_paths: int
    image_id: str
    labels_joined_by: str | None
    notes: tuple[str, ...]
    identical: IdenticalPixels
    shards: tuple[str, ...]
    slices: int
    not_listed: int = 0
    without_patient_id: dict[str, int] = field(default_factory=lambda: {"slices": 0, "studies": 0})
    label_level: str | None = None
    not_sampled: int = 0


@dataclass(frozen=True)
class ShardResult:
    """A written shard, the metadata of its table.

    Attributes:
        split: split of the shard.
        file: name of the file, which exists even without examples.
        bytes: size of the file.
        sha256: checksum of the file.
        version: version of the file in the store.
        plan: digest of the planned content.
        examples: number of examples.
        label_counts: examples per label; empty without labels.
        repaired: examples per repair.
        acquisitions: examples per acquisition, as `Acquisition.encode` texts.
        resized: number of resized examples.
        rejects: one row per rejected file: source, image_id, reason, detail.
        changed: number of rejected files that changed after the listing.
    """

    split: str
    file: str
    bytes: int
    sha256: str
    version: str
    plan: str
    examples: int
    label_counts: dict[str, int]
    repaired: dict[str, int]
    acquisitions: dict[str, int]
    resized: int
    rejects: list[Reject]
    changed: int = 0

    @classmethod
    def of(cls, index: pa.Table) -> "ShardResult":
        """Return the result stored with a shard's index rows."""
        return cls(**table_metadata(index))


_PLAN = TypeAdapter(Plan)


@dataclass(frozen=True)
class Unfinished:
    """The tables of an unfinished output folder.

    Attributes:
        folder: the output folder.
    """

    folder: Folder

    def write(self, name: str, table: pa.Table, metadata: dict[str, Any] | None = None) -> None:
        """Write a table, with JSON values as its metadata.

        Raises:
            OutputError: the table cannot be written.
            StoreError: the folder's store fails.
        """
        self.folder.write(_path(name), encode_table(table, metadata), durable=False)

    def write_all(self, tables: Iterable[tuple[str, Sequence[pa.Table]]]) -> None:
        """Write named tables as record batches for `read_batch`; raises as `write` does.

        The tables are not compressed: compression would take longer than writing and reading.
        """
        with ThreadPoolExecutor(1 if is_local(self.folder.url) else _WRITERS) as threads:
            waiting: deque[Future[None]] = deque()
            for name, batches in tables:
                data = _encode(batches, None)
                waiting.append(threads.submit(self.folder.write, _path(name), data, durable=False))
                if len(waiting) > 2 * _WRITERS:
                    waiting.popleft().result()
            for written in waiting:
                written.result()

    def read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table, or some columns of a table.

        Raises:
            FileNotFoundError: the table does not exist.
            AlreadyComplete: another run has completed the directory and removed the tables.
            pyarrow.ArrowException: the table was cut by a power failure.
            StoreError: the folder's store fails.
        """
        return decode_table(self._read(_path(name)), columns)

    def _read(self, path: str, length: int | None = None) -> bytes:
        try:
            return self.folder.read(path, length)
        except FileNotFoundError:
            self.check_needed()
            raise

    def check_needed(self) -> None:
        """Raise AlreadyComplete if another run has completed the directory."""
        if self.folder.exists(MANIFEST):
            raise AlreadyComplete(f"{self.folder.url} is complete")

    def write_plan(self, plan: Plan) -> None:
        """Write the plan of all shards; raises what `write` raises."""
        self.folder.write(PLAN, _PLAN.dump_json(plan), durable=False)

    def read_plan(self) -> Plan:
        """Return the plan that `write_plan` wrote; raises what `read` raises."""
        return _PLAN.validate_json(self._read(PLAN))

    def names(self, kind: str) -> set[str]:
        """Return the existing tables of a kind: `listing`, `inventory`, `plan` or `written`."""
        folder = Folder(f"{self.folder.url}/{UNFINISHED}/{kind}", self.folder.patience)
        return {
            f"{kind}/{name.removesuffix('.arrow')}"
            for name in folder.names()
            if name.endswith(".arrow")
        }

    def signs(self) -> dict[str, str]:
        """Return the names of existing tables; the first listing, new in every run, has a stamp."""
        kinds = ("listing", "inventory", "written")
        names = sorted(name for kind in kinds for name in self.names(kind))
        first = f"listing/{0:05d}"
        return dict.fromkeys(names, "") | {first: self.folder.stamp(_path(first))}

    def read_metadata(self, name: str) -> dict[str, Any]:
        """Return the JSON values stored with a table, reading only its beginning if possible.

        Raises as `read` does.
        """
        beginning = self._read(_path(name), _METADATA_BYTES)
        try:
            schema = pa.ipc.read_schema(pa.py_buffer(beginning[_MAGIC_BYTES:]))
        except pa.ArrowException:  # the schema is longer
            schema = self.read(name, []).schema
        return table_metadata(schema)

    def read_batch(self, name: str, number: int) -> pa.Table:
        """Return a record batch of a table of `write_all`; raises as `read` does."""
        with pa.ipc.open_file(_checked(self._read(_path(name)))) as reader:
            return pa.Table.from_batches([reader.get_batch(number)])

    def find(self, name: str) -> pa.Table | None:
        """Return a table of an earlier run, or None if it is missing or damaged."""
        try:
            return self.read(name)
        except (FileNotFoundError, pa.ArrowException):
            return None

    def remove(self, name: str) -> None:
        """Remove a table if it exists."""
        self.folder.remove(_path(name))

    def read_all(
        self, names: Sequence[str], columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Yield tables, or some of their columns, in order; raises as `read` does."""
        files = InputFiles(f"{self.folder.url}/{UNFINISHED}", patience=self.folder.patience)
        wanted = [(f"{name}.arrow", _TYPICAL_BYTES) for name in names]
        for data in files.read_ahead(wanted):
            if isinstance(data, OSError):
                self.check_needed()
                raise data
            yield decode_table(data, columns)


def _path(name: str) -> str:
    return f"{UNFINISHED}/{name}.arrow"


def encode_table(table: pa.Table, metadata: dict[str, Any] | None = None) -> bytes:
    """Return a table as an Arrow IPC file; Parquet takes 3 to 5 times as long for few rows."""
    return _encode(with_metadata([table], metadata or {}), "lz4")


def _encode(tables: Sequence[pa.Table], compression: str | None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, tables[0].schema, options=options) as writer:
        for table in tables:
            writer.write_table(table.combine_chunks())
    data = bytes(sink.getvalue())
    return data + _checksum(data)


def _checksum(data: memoryview | bytes) -> bytes:
    checksum: int = google_crc32c.value(bytes(data))
    return checksum.to_bytes(_CHECKSUM_BYTES, "little")


def _checked(data: bytes) -> pa.Buffer:
    """Return a stored table without its checksum; Arrow does not detect lost pages."""
    content = memoryview(data)[:-_CHECKSUM_BYTES]
    if len(data) <= _CHECKSUM_BYTES or _checksum(content) != data[-_CHECKSUM_BYTES:]:
        raise pa.ArrowInvalid("a table is cut or damaged")
    return pa.py_buffer(content)


def decode_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return an encoded table, or some of its columns.

    Raises:
        pyarrow.ArrowException: the table is cut or damaged.
    """
    content = _checked(data)
    with pa.ipc.open_file(content) as reader:
        if columns is not None and not columns:  # Arrow would read all columns
            return reader.schema.empty_table().select([])
        fields = None if columns is None else [reader.schema.get_field_index(c) for c in columns]
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    with pa.ipc.open_file(content, options=options) as reader:
        return reader.read_all()


def with_metadata(tables: Sequence[pa.Table], metadata: dict[str, Any]) -> list[pa.Table]:
    """Return the tables with JSON values as metadata."""
    stored = {_METADATA: json.dumps(metadata).encode()}
    return [table.replace_schema_metadata(stored) for table in tables]


def table_metadata(table: pa.Table | pa.Schema) -> dict[str, Any]:
    """Return the JSON values stored with a table."""
    schema = table if isinstance(table, pa.Schema) else table.schema
    return dict(json.loads((schema.metadata or {}).get(_METADATA, b"{}")))
