"""Writing of one shard, complete or not at all."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from beam_pipeline.dicom.header import Header
from beam_pipeline.dicom.hounsfield import Repair
from beam_pipeline.dicom.slices import read_slice
from beam_pipeline.images.convert import Image, convert_slice
from beam_pipeline.images.png import SIGNATURE, encode_png
from beam_pipeline.options import ImageId, ImageOptions, Options
from beam_pipeline.shards.formats import encode_example, index_table
from beam_pipeline.shards.rejects import Reject
from beam_pipeline.shards.unfinished import Unfinished, table_metadata
from beam_pipeline.workers import Later, Watch
from headct.layout import (
    SHARDS_A_PART,
    ShardFile,
    index_columns,
    label_column,
    labels_of,
    ordinal,
    plan_table,
    written_table,
)
from headct.reasons import TRANSIENT, Reason, Rejected
from headct.stores import InputFiles, decode_source, find_input, show_source
from headct.tfrecord import frame_record


@dataclass(frozen=True)
class ShardResult:
    """A written shard.

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
    resized: int
    rejects: list[Reject]
    changed: int = 0

    @classmethod
    def of(cls, index: pa.Table) -> "ShardResult":
        """Return the result stored with a shard's index rows."""
        return cls(**table_metadata(index))


@dataclass(frozen=True)
class Written:
    """Counts of written and rejected slices of a shard."""

    file: str
    examples: int
    rejected: int


def write_shard(number: int, watch: Watch, *, options: Options) -> Written | Later[Written]:
    """Write a shard, unless an interrupted run wrote the same shard.

    Args:
        number: number of the shard in the plan.
        watch: notified of each slice that is converted.
        options: options of the run.

    Returns:
        The counts; or, after the conversion, the pending upload that returns them.

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
    result = _find_result(shard, unfinished, digest)
    if result is not None and all(row["version"] for row in rows):
        return Written(shard, result.examples, len(result.rejects))
    files = find_input(options.files.input, options.files.storage_patience)
    writer = _ShardWriter(shard, digest, files, options.image, options.labels.image_id, watch)
    with ExitStack() as stack:
        writer.write(rows, stack.enter_context(unfinished.folder.create(shard, durable=False)))
        converted = stack.pop_all()

    def finish() -> Written:
        converted.close()
        result = writer.result(labels, unfinished.folder.version(shard))
        unfinished.write(written_table(shard), writer.index(labels), asdict(result))
        return Written(shard, result.examples, len(result.rejects))

    return Later(finish)


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


class _ShardWriter:
    """Converts and writes the slices of a shard in sequence."""

    def __init__(
        self,
        shard: str,
        digest: str,
        files: InputFiles,
        image: ImageOptions,
        image_id: ImageId,
        watch: Watch,
    ) -> None:
        self._shard = shard
        self._digest = digest
        self._files = files
        self._image = image
        self._image_id = image_id
        self._watch = watch
        self._index: list[dict[str, Any]] = []
        self._rejects: list[Reject] = []
        self._changed = 0
        self._checksum = hashlib.sha256()
        self._size = 0

    def write(self, rows: Sequence[dict[str, Any]], file: BinaryIO) -> None:
        """Convert the slices of the plan's rows, and write the records in this order."""
        sources = [(decode_source(row["source"]), row["size"]) for row in rows]
        contents = self._read(sources)
        for place, row in enumerate(rows):
            record = self._record(place, row, sources[place][0], contents)
            if record is not None:
                file.write(record)

    def index(self, labels: Sequence[str]) -> pa.Table:
        """Return the rows of the shard's index; `labels` are the names of the classes."""
        return index_table(self._index, labels)

    def _read(self, sources: Sequence[tuple[str, int]]) -> Iterator[bytes | OSError]:
        excluded = self._watch.excluded
        wanted = [source for place, source in enumerate(sources) if place not in excluded]
        return self._files.read_ahead(wanted)

    def _record(
        self, place: int, row: dict[str, Any], source: str, contents: Iterator[bytes | OSError]
    ) -> bytes | None:
        """Return a slice's TFRecord, or None if the slice is rejected."""
        shown = self._shown(row, source)
        try:
            if place in self._watch.excluded:
                raise Rejected(self._watch.excluded[place])
            data = next(contents)
            if isinstance(data, OSError):
                data = self._look_again(source)
            self._watch.working(place)
            record, described = self._convert(row, data)
        except Rejected as rejected:
            self._rejects.append(shown | _why(rejected))
            return None
        finally:
            self._watch.waiting()
        self._index.append(
            row
            | described
            | {"source": shown["source"], "split": ShardFile.parse(self._shard).split}
            | {"shard": self._shard, "record": len(self._index)}
            | {"offset": self._size, "bytes": len(record)}
            | {"image_offset": self._size + described["image_offset"]}
        )
        self._checksum.update(record)
        self._size += len(record)
        return record

    def _convert(self, row: dict[str, Any], data: bytes) -> tuple[bytes, dict[str, Any]]:
        try:
            return _convert(row, data, self._image)
        except Rejected as rejected:
            # A file that is being overwritten counts as changed, whatever the reason.
            self._changed += rejected.reason is Reason.CHANGED or len(data) != row["size"]
            raise

    def _look_again(self, source: str) -> bytes:
        try:
            return self._files.look_again(source)
        except OSError as error:
            raise Rejected.unread(error) from None

    def _shown(self, row: dict[str, Any], source: str) -> dict[str, str]:
        if self._image_id is ImageId.ORDINAL:
            return {"source": ordinal("file", row["number"]), "image_id": row["image_id"]}
        return {"source": show_source(source), "image_id": row["image_id"]}

    def result(self, labels: Sequence[str], version: str) -> ShardResult:
        """Return the shard's result; `version` is the version of the file in the store."""
        repairs = Counter(str(row["repair"]) for row in self._index)
        del repairs[Repair.NONE.value]
        return ShardResult(
            split=ShardFile.parse(self._shard).split,
            file=self._shard,
            bytes=self._size,
            sha256=self._checksum.hexdigest(),
            version=version,
            plan=self._digest,
            examples=len(self._index),
            label_counts={
                label: sum(row[label_column(label)] == 1 for row in self._index) for label in labels
            },
            repaired=dict(repairs),
            resized=sum(row["resized"] for row in self._index),
            rejects=self._rejects,
            changed=self._changed,
        )


def _convert(
    row: dict[str, Any], data: bytes, options: ImageOptions
) -> tuple[bytes, dict[str, Any]]:
    """Return a slice's TFRecord, and the slice's index fields.

    Raises:
        Rejected: the file is not usable, or is not the planned slice.
    """
    planned = Header.decode(row["header"])
    slice_ = read_slice(data, planned)
    if slice_.header.identity != planned.identity:
        raise Rejected(Reason.CHANGED)  # the planned patient and label may be wrong
    image = convert_slice(slice_, options)
    features = _features(row, slice_.header, image)
    record = frame_record(encode_example(features))
    png = {"image_offset": record.index(SIGNATURE), "image_bytes": len(features["image"])}
    return record, index_fields(slice_.header, image) | png


def _why(rejected: Rejected) -> dict[str, str]:
    return {"reason": rejected.reason.value, "detail": rejected.detail}


def _features(row: dict[str, Any], header: Header, image: Image) -> dict[str, Any]:
    return {
        "image": encode_png(image.scanlines),
        "image_id": row["image_id"],
        "label": [row[label_column(label)] for label in labels_of(row)],
        "patient_id": row["patient_id"],
        "study_id": row["study_id"],
        "series_id": row["series_id"],
        "position_z": [header.position_z],
        "pixel_spacing": list(image.pixel_spacing),
    }


def index_fields(header: Header, image: Image) -> dict[str, Any]:
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
