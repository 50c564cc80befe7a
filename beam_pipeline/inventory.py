"""What is known of every input file before its pixels are converted: one row a file."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pandas as pd

from beam_pipeline.dicom import Header, read_header
from beam_pipeline.errors import PipelineError, Reason, Rejected
from beam_pipeline.hounsfield import PixelEncoding
from beam_pipeline.options import ImageId, LeakCheck, Options
from beam_pipeline.storage import InputFiles

BATCH = 256  # files inspected by one task

_COLUMNS = (
    "source",
    "image_id",
    "patient_id",
    "study_id",
    "series_id",
    "fingerprint",
    "header",
    "reason",
    "detail",
)
_CARRIED = (
    "position_z",
    "pixel_spacing",
    "rows",
    "columns",
    "transfer_syntax",
    "window",
    "pixel_offset",
    "beginning",
)
_ENCODING = tuple(field.name for field in fields(PixelEncoding))
# Of the pixels, to find files that may be twins: noise makes a few rows in the middle unique.
_FINGERPRINT_BYTES = 1 << 14


@dataclass(frozen=True)
class Batch:
    """Some of the input's files.

    Attributes:
        sources: their paths, relative to the input's root.
        excluded: files not to touch, and why.
    """

    sources: tuple[str, ...]
    excluded: dict[str, Reason] = field(default_factory=dict)

    def excluding(self, source: str, reason: Reason) -> "Batch":
        """The same files, without touching one of them."""
        return Batch(self.sources, {**self.excluded, source: reason})


def list_batches(files: InputFiles) -> Iterator[Batch | PipelineError]:
    """All input files, in order, a batch at a time; last, what made it impossible to go on."""
    sources = files.list()
    try:
        while batch := tuple(islice(sources, BATCH)):
            yield Batch(batch)
    except PipelineError as error:
        yield error


def inspect_batch(
    batch: Batch, note: Callable[[int], None], *, files: InputFiles, options: Options
) -> pd.DataFrame:
    """Read the headers of some files.

    Args:
        batch: the files.
        note: told the place of each file before it is read.
        files: where they are.
        options: image_id and leak_check count here.

    Returns:
        str columns source, image_id, patient_id, study_id, series_id (as in the file), fingerprint
        (equal for files whose pixels may be equal; empty if not asked for), header (for
        `decode_header`; empty where it must be read again), reason (empty for a usable file) and
        detail; a row a file.
    """
    rows = []
    for place, source in enumerate(batch.sources):
        note(place)
        rows.append(_inspect(source, files, options, batch.excluded.get(source)))
    return inventory_frame(rows)


def inventory_frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """An inventory of rows; what a row lacks is empty."""
    filled = ([row.get(column, "") for column in _COLUMNS] for row in rows)
    return pd.DataFrame(filled, columns=list(_COLUMNS), dtype=str)


def name_of(source: str) -> str:
    """A file's name without its suffix."""
    name = PurePosixPath(source).name
    return name.removesuffix(PurePosixPath(name).suffix) or name


def _inspect(
    source: str, files: InputFiles, options: Options, excluded: Reason | None
) -> dict[str, Any]:
    row = {"source": source, "image_id": name_of(source)}
    try:
        if excluded:
            raise Rejected(excluded)
        with files.open(source) as (file, size):
            header = read_header(file, size)
            if options.leak_check is not LeakCheck.OFF:
                row["fingerprint"] = _fingerprint(file, size, header)
    except Rejected as rejected:
        return {**row, "reason": rejected.reason.value, "detail": rejected.detail}
    except OSError as error:
        return {**row, "reason": Reason.UNREADABLE.value, "detail": error.strerror or ""}
    if options.image_id is ImageId.SOP_INSTANCE_UID:
        row["image_id"] = header.sop_instance_uid
    if not row["image_id"]:
        return {**row, "reason": Reason.MISSING_ATTRIBUTE.value, "detail": "SOPInstanceUID"}
    return {
        **row,
        "patient_id": header.patient_id,
        "study_id": header.study_id,
        "series_id": header.series_id,
        "header": encode_header(header),
    }


def encode_header(header: Header) -> str:
    """What conversion needs of a header, without ids; empty if it must be read again."""
    if not header.beginning:
        return ""
    known = [getattr(header, name) for name in _CARRIED]
    encoding = [getattr(header.encoding, name) for name in _ENCODING]
    return json.dumps([*known, encoding], separators=(",", ":"))


def decode_header(text: str) -> Header | None:
    """The header that was encoded, with empty ids."""
    if not text:
        return None
    *known, encoding = json.loads(text)
    values: dict[str, Any] = dict(zip(_CARRIED, known, strict=True))
    values["pixel_spacing"] = tuple(values["pixel_spacing"])
    values["window"] = _pair(values["window"])
    described: dict[str, Any] = dict(zip(_ENCODING, encoding, strict=True))
    described["padding"] = _pair(described["padding"])
    values["encoding"] = PixelEncoding(**described)
    return Header(sop_instance_uid="", patient_id="", study_id="", series_id="", **values)


def _pair(values: list[Any] | None) -> tuple[Any, Any] | None:
    return (values[0], values[1]) if values else None


def _fingerprint(file: BinaryIO, size: int, header: Header) -> str:
    """A checksum of some of the pixels' bytes; of all of them if some say nothing."""
    if header.pixel_offset is None:
        return ""  # deflated: the whole file would have to be read and inflated
    middle = header.pixel_offset + (_pixel_bytes(size, header) - _FINGERPRINT_BYTES) // 2
    file.seek(max(middle, header.pixel_offset))
    data = file.read(_FINGERPRINT_BYTES)
    if data == data[:2] * (len(data) // 2):
        return pixel_checksum(file, size, header)
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def pixel_checksum(file: BinaryIO, size: int, header: Header) -> str:
    """A checksum of all of the pixels' bytes as they are in the file, compressed or not.

    Args:
        file: seekable.
        size: of the whole file, bytes.
        header: of the same file, not deflated.
    """
    if header.pixel_offset is None:
        raise ValueError("the pixels of a deflated file have no place in it")
    file.seek(header.pixel_offset)
    data = file.read(_pixel_bytes(size, header))
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _pixel_bytes(size: int, header: Header) -> int:
    """Of the pixels in the file; of compressed ones, all to the file's end."""
    assert header.pixel_offset is not None
    rest = size - header.pixel_offset
    matrix = header.rows * header.columns * header.encoding.bits_allocated // 8
    return min(rest, matrix) if header.is_native else rest
