"""Writing of one shard, complete or not at all."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import Any, BinaryIO

from beam_pipeline.dicom.header import Header
from beam_pipeline.dicom.hounsfield import Repair
from beam_pipeline.dicom.slices import read_slice
from beam_pipeline.images.convert import Image, convert_slice, encode_png
from beam_pipeline.options import ImageId, ImageOptions, Options
from beam_pipeline.shards.formats import encode_example, index_table
from beam_pipeline.shards.unfinished import Reject, ShardResult, Unfinished, table_metadata
from beam_pipeline.workers import Later, Watch
from headct.layout import (
    SHARDS_A_PART,
    UNLABELED_SPLIT,
    ShardFile,
    index_columns,
    label_column,
    labels_of,
    ordinal,
    plan_table,
    written_table,
)
from headct.png import SIGNATURE
from headct.reasons import TRANSIENT, Reason, Rejected
from headct.stores import InputFiles, decode_source, find_input, show_source
from headct.tfrecord import frame_record

Row = dict[str, Any]  # of the plan or the index


@dataclass(frozen=True)
class Measured:
    """Number of converted slices, bytes of their records, and CPU time."""

    slices: int = 0
    bytes: int = 0
    cpu_seconds: float = 0.0

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(*(getattr(self, n) + getattr(other, n) for n in vars(self)))


def write_shard(number: int, watch: Watch, *, options: Options) -> ShardResult | Later[ShardResult]:
    """Write a shard, unless an interrupted run wrote the same shard.

    Args:
        number: number of the shard in the plan.
        watch: notified of each slice that is converted.
        options: options of the run.

    Returns:
        The result; or, after the conversion, the pending upload that returns it.

    Raises:
        OutputError: the shard cannot be written.
        StoreError: a store fails.
    """
    unfinished = Unfinished(options.files.folder)
    part, batch = divmod(number, SHARDS_A_PART)
    plan = unfinished.read_batch(plan_table(part), batch)
    shard = table_metadata(plan)["shards"][batch]
    rows = plan.to_pylist()
    labels = labels_of(plan.column_names)
    # The digest covers the columns, to rewrite index rows of another version.
    wanted = (table_metadata(plan)["options"], rows, [*index_columns(labels)])
    digest = hashlib.sha256(repr(wanted).encode()).hexdigest()
    earlier = _find_result(shard, unfinished, digest)
    if earlier is not None and all(row["version"] for row in rows):
        return earlier
    files = find_input(options.files.input, options.files.storage_patience)
    writer = _ShardWriter(shard, options, files, watch)
    with ExitStack() as stack:
        writer.write(rows, stack.enter_context(unfinished.folder.create(shard, durable=False)))
        converted = stack.pop_all()

    def finish() -> ShardResult:
        converted.close()
        result = writer.result(labels, unfinished.folder.version(shard), digest)
        index = index_table(writer.index, labels)
        unfinished.write(written_table(shard), index, asdict(result))
        return result

    return Later(finish)


def measure_slices(rows: list[Row], watch: Watch, *, options: Options) -> Measured:
    """Convert slices as `write_shard` does, and measure them without writing.

    Args:
        rows: of the plan.
        watch: notified of each slice that is converted.
        options: options of the run.

    Raises:
        StoreError: a store fails.
    """
    files = find_input(options.files.input, options.files.storage_patience)
    name = ShardFile(UNLABELED_SPLIT, 0, 1).name
    _ShardWriter(name, options, files, watch).write(rows[:1], BytesIO())  # fills caches
    began = time.process_time()
    writer = _ShardWriter(name, options, files, watch)
    writer.write(rows, BytesIO())
    return Measured(len(writer.index), writer.size, time.process_time() - began)


def _find_result(shard: str, unfinished: Unfinished, digest: str) -> ShardResult | None:
    """Return the result of an earlier run that completed the same planned shard, or None.

    Also None if rejects are transient: their files are read again.
    """
    index = unfinished.find(written_table(shard))
    if index is None:
        return None
    result, folder = ShardResult.of(index), unfinished.folder
    may_pass = result.changed or any(row["reason"] in TRANSIENT for row in result.rejects)
    if result.plan != digest or may_pass:
        return None
    return result if folder.is_unchanged(shard, result.version, result.sha256) else None


@dataclass
class _ShardWriter:
    """Converts and writes the slices of a shard in sequence."""

    shard: str
    options: Options
    files: InputFiles
    watch: Watch
    index: list[Row] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    changed: int = 0
    checksum: Any = field(default_factory=hashlib.sha256)
    size: int = 0

    def write(self, rows: list[Row], file: BinaryIO) -> None:
        """Convert the slices of the plan's rows, and write the records in this order."""
        sources = [decode_source(row["source"]) for row in rows]
        wanted = [
            (source, row["size"])
            for place, (source, row) in enumerate(zip(sources, rows, strict=True))
            if place not in self.watch.excluded
        ]
        contents = self.files.read_ahead(wanted)
        numbered = self.options.labels.image_id is ImageId.ORDINAL
        split = ShardFile.parse(self.shard).split
        for place, (source, row) in enumerate(zip(sources, rows, strict=True)):
            shown = ordinal("file", row["number"]) if numbered else show_source(source)
            try:
                record, described = self._convert(place, row, source, contents)
            except Rejected as rejected:
                named = {"source": shown, "image_id": row["image_id"]}
                why = {"reason": rejected.reason.value, "detail": rejected.detail}
                self.rejects.append(named | why)
                continue
            finally:
                self.watch.waiting()
            described |= {
                "source": shown,
                "split": split,
                "shard": self.shard,
                "record": len(self.index),
                "offset": self.size,
                "bytes": len(record),
                "image_offset": self.size + record.index(SIGNATURE),
            }
            self.index.append(row | described)
            file.write(record)
            self.checksum.update(record)
            self.size += len(record)

    def _convert(
        self, place: int, row: Row, source: str, contents: Iterator[bytes | OSError]
    ) -> tuple[bytes, Row]:
        """Return a slice's TFRecord, and the slice's columns of the index.

        Raises:
            Rejected: the file is not usable, or is not the planned slice.
        """
        if place in self.watch.excluded:
            raise Rejected(self.watch.excluded[place])
        data = next(contents)
        if isinstance(data, OSError):
            try:
                data = self.files.look_again(source)
            except OSError as error:
                raise Rejected.unread(error) from None
        self.watch.working(place)
        try:
            return _convert(row, data, self.options.image)
        except Rejected as rejected:
            # A file that is being overwritten counts as changed, whatever the reason.
            self.changed += rejected.reason is Reason.CHANGED or len(data) != row["size"]
            raise

    def result(self, labels: list[str], version: str, digest: str) -> ShardResult:
        """Return the shard's result, with the file's version and the digest of its plan."""
        repairs = Counter(str(row["repair"]) for row in self.index)
        del repairs[Repair.NONE.value]
        return ShardResult(
            split=ShardFile.parse(self.shard).split,
            file=self.shard,
            bytes=self.size,
            sha256=self.checksum.hexdigest(),
            version=version,
            plan=digest,
            examples=len(self.index),
            label_counts={
                label: sum(row[label_column(label)] == 1 for row in self.index) for label in labels
            },
            repaired=dict(repairs),
            acquisitions=dict(Counter(row["acquisition"] for row in self.index)),
            resized=sum(row["resized"] for row in self.index),
            rejects=self.rejects,
            changed=self.changed,
        )


def _convert(row: Row, data: bytes, options: ImageOptions) -> tuple[bytes, Row]:
    planned = Header.decode(row["header"])
    slice_ = read_slice(data, planned)
    header = slice_.header
    if header.identity != planned.identity:
        raise Rejected(Reason.CHANGED)  # the planned patient and label may be wrong
    image = convert_slice(slice_, options)
    png = encode_png(image.scanlines, image.pixels)
    features = {
        "image": png,
        "image_id": row["image_id"],
        "label": [row[label_column(label)] for label in labels_of(row)],
        "patient_id": row["patient_id"],
        "study_id": row["study_id"],
        "series_id": row["series_id"],
        "position_z": [header.position_z],
        "pixel_spacing": list(image.pixel_spacing),
    }
    record = frame_record(encode_example(features))
    return record, index_fields(header, image) | {"image_bytes": len(png)}


def index_fields(header: Header, image: Image) -> Row:
    """Return the index's columns of a file's header and its stored image."""
    return {
        "position_z": header.position_z,
        "row_spacing": image.pixel_spacing[0],
        "column_spacing": image.pixel_spacing[1],
        "rows": header.rows,
        "columns": header.columns,
        "transfer_syntax": header.transfer_syntax,
        "repair": image.repair.value,
        "resized": image.resized,
    }
