"""One shard written: whole or not at all."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

from beam_pipeline.convert import Image, convert_slice
from beam_pipeline.dicom import Header, read_slice
from beam_pipeline.errors import Reason, Rejected
from beam_pipeline.example import encode_example, frame_record
from beam_pipeline.hounsfield import Repair
from beam_pipeline.index import LABEL_PREFIX, encode_index, index_schema
from beam_pipeline.inventory import decode_header
from beam_pipeline.options import Options
from beam_pipeline.plan import ShardPlan
from beam_pipeline.png import encode_png
from beam_pipeline.storage import Folder, InputFiles

# Holds what is known of finished shards until the whole directory is finished.
UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class ShardResult:
    """A shard that was written.

    Attributes:
        split: it belongs to.
        file: its name; without examples, too, there is a file.
        index: a row an example, in order; encoded, as it waits for the end of the run in memory.
        bytes: its size.
        sha256: of its bytes.
        examples: how many it holds.
        label_counts: how many of them have each label; unlabelled ones have none.
        patients: whose they are, as they are written.
        repaired: how many of them were repaired, by the repair.
        resized: how many of them had another size.
        rejects: str columns source, image_id, reason, detail; a row a file that was not used.
    """

    split: str
    file: str
    index: bytes  # before a field takes the type's name
    bytes: int
    sha256: str
    examples: int
    label_counts: dict[str, int]
    patients: frozenset[str]
    repaired: dict[str, int]
    resized: int
    rejects: pd.DataFrame


def write_shard(
    plan: ShardPlan, note: Callable[[int], None], *, files: InputFiles, options: Options
) -> ShardResult:
    """Write a shard, or find that an interrupted run wrote the same one.

    Args:
        plan: what to write.
        note: told the place of each source before it is read.
        files: where its sources are.
        options: output, and how to convert slices.

    Raises:
        OutputError: the shard cannot be written.
    """
    folder = Folder(options.output)
    digest = _digest(plan, options)
    found = _find_result(plan, folder, digest)
    if found is not None:
        return found
    result = _write_examples(plan, files, options, folder, note)
    folder.write(_record_name(plan), _encode_result(result, digest))
    return result


def _write_examples(
    plan: ShardPlan,
    files: InputFiles,
    options: Options,
    folder: Folder,
    note: Callable[[int], None],
) -> ShardResult:
    index: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    checksum = hashlib.sha256()
    offset = 0
    with folder.create(plan.file, durable=False) as shard:
        for place, (row, data) in enumerate(_read(plan, files)):
            note(place)
            try:
                header, image = _convert(data, decode_header(row["header"]), options)
            except Rejected as rejected:
                rejects.append(_reject_row(row, rejected))
                continue
            record = frame_record(encode_example(_features(row, header, image)))
            shard.write(record)
            checksum.update(record)
            place_of = {"record": len(index), "offset": offset, "bytes": len(record)}
            shown = {"source": row["shown_source"]}
            index.append(row | shown | place_of | _index_fields(header, image))
            offset += len(record)
    return _result(plan, index, rejects, offset, checksum.hexdigest())


def _result(
    plan: ShardPlan,
    index: list[dict[str, Any]],
    rejects: list[dict[str, str]],
    size: int,
    sha256: str,
) -> ShardResult:
    columns = [column for column in map(str, plan.slices) if column.startswith(LABEL_PREFIX)]
    labels = [column.removeprefix(LABEL_PREFIX) for column in columns]
    rows = pd.DataFrame(index, columns=[*index_schema(labels).names])
    rows = rows.assign(split=plan.split, shard=plan.file)
    repairs = Counter(str(row["repair"]) for row in index if row["repair"] != Repair.NONE)
    return ShardResult(
        split=plan.split,
        file=plan.file,
        bytes=size,
        sha256=sha256,
        examples=len(index),
        label_counts={
            label: sum(row[column] == 1 for row in index)
            for label, column in zip(labels, columns, strict=True)
        },
        patients=frozenset(row["patient_id"] for row in index),
        repaired=dict(repairs),
        resized=sum(row["resized"] for row in index),
        index=encode_index(rows, labels),
        rejects=pd.DataFrame(rejects, columns=["source", "image_id", "reason", "detail"]),
    )


def _read(
    plan: ShardPlan, files: InputFiles
) -> Iterator[tuple[dict[str, Any], bytes | OSError | Rejected]]:
    """The plan's rows, each with its file's bytes or why there are none."""
    data = files.read_ahead([s for s in plan.sources if s not in plan.excluded])
    for values in plan.slices.to_dict("records"):
        row = {str(column): value for column, value in values.items()}
        excluded = plan.excluded.get(row["source"])
        yield row, Rejected(excluded) if excluded else next(data)


def _convert(
    data: bytes | OSError | Rejected, known: Header | None, options: Options
) -> tuple[Header, Image]:
    if isinstance(data, Rejected):
        raise data
    if isinstance(data, OSError):
        raise Rejected(Reason.UNREADABLE, data.strerror or "")
    slice_ = read_slice(data, known)
    return slice_.header, convert_slice(slice_, options.image)


def _features(row: dict[str, Any], header: Header, image: Image) -> dict[str, Any]:
    labels = [value for column, value in row.items() if column.startswith(LABEL_PREFIX)]
    return {
        "image": encode_png(image.pixels),
        "image_id": row["image_id"],
        "label": labels,
        "patient_id": row["patient_id"],
        "study_id": row["study_id"],
        "series_id": row["series_id"],
        "position_z": [header.position_z],
        "pixel_spacing": list(image.pixel_spacing),
    }


def _index_fields(header: Header, image: Image) -> dict[str, Any]:
    return {
        "position_z": header.position_z,
        "rows": header.rows,
        "columns": header.columns,
        "transfer_syntax": header.transfer_syntax,
        "repair": image.repair.value,
        "resized": image.resized,
    }


def _reject_row(row: dict[str, Any], rejected: Rejected) -> dict[str, str]:
    return {
        "source": row["shown_source"],
        "image_id": row["image_id"],
        "reason": rejected.reason.value,
        "detail": rejected.detail,
    }


def _digest(plan: ShardPlan, options: Options) -> str:
    recorded = json.dumps(options.recorded(), sort_keys=True)
    return hashlib.sha256((plan.digest() + recorded).encode()).hexdigest()


def _record_name(plan: ShardPlan) -> str:
    return f"{UNFINISHED}/{plan.file}.json"


def _encode_result(result: ShardResult, digest: str) -> bytes:
    record = {
        **{field.name: getattr(result, field.name) for field in fields(result)},
        "digest": digest,
        "patients": sorted(result.patients),
        "index": base64.b64encode(result.index).decode(),
        "rejects": result.rejects.to_dict("list"),
    }
    return json.dumps(record).encode()


def _find_result(plan: ShardPlan, folder: Folder, digest: str) -> ShardResult | None:
    """The result of an earlier run that planned the same shard and wrote it whole."""
    name = _record_name(plan)
    if not (folder.exists(name) and folder.exists(plan.file)):
        return None
    record = json.loads(folder.read(name))
    if record.pop("digest") != digest:
        return None
    if folder.sha256(plan.file) != record["sha256"]:
        return None
    record["patients"] = frozenset(record["patients"])
    record["index"] = base64.b64decode(record["index"])
    record["rejects"] = pd.DataFrame(record["rejects"])
    return ShardResult(**record)
