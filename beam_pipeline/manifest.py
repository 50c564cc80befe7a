"""What describes a shard directory: index, rejects, TensorFlow Datasets' metadata, manifest."""

import hashlib
import io
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipeline import __version__
from beam_pipeline.convert import HU_OFFSET
from beam_pipeline.hounsfield import Repair
from beam_pipeline.options import Options
from beam_pipeline.plan import DATASET, LABEL_PREFIX, Plan
from beam_pipeline.shards import ShardResult
from beam_pipeline.storage import Folder

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
INDEX = "index.parquet"
REJECTS = "rejects.jsonl"
DATASET_INFO = "dataset_info.json"
FEATURES = "features.json"

_INDEX_TYPES = {
    "image_id": pa.string(),
    "split": pa.string(),
    "shard": pa.string(),
    "record": pa.int32(),
    "offset": pa.int64(),
    "bytes": pa.int32(),
    "patient_id": pa.string(),
    "study_id": pa.string(),
    "series_id": pa.string(),
    "position_z": pa.float64(),
    "rows": pa.int32(),
    "columns": pa.int32(),
    "transfer_syntax": pa.string(),
    "repair": pa.string(),
    "resized": pa.bool_(),
    "source": pa.string(),
}


def encode_index(index: pd.DataFrame, labels: Sequence[str]) -> bytes:
    """The index as Parquet: a row an example, in the order of splits, shards and records."""
    types: dict[str, pa.DataType] = {}
    for name, kind in _INDEX_TYPES.items():
        types[name] = kind
        if name == "bytes":
            types |= {LABEL_PREFIX + label: pa.int8() for label in labels}
    ordered = index.sort_values(["split", "shard", "record"], ignore_index=True)
    table = pa.Table.from_pandas(
        ordered[list(types)], pa.schema(types.items()), preserve_index=False
    ).replace_schema_metadata()
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def encode_rejects(rejects: pd.DataFrame) -> bytes:
    """The rejects as JSON lines, ordered by source."""
    columns = ["source", "image_id", "reason", "detail"]
    rows = rejects.sort_values("source")[columns].to_dict("records")
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def describe_splits(
    results: Sequence[ShardResult], index: pd.DataFrame, labels: Sequence[str]
) -> dict[str, Any]:
    """The manifest's `splits`.

    A shard that lost all its examples stays listed: the others' names count it.
    """
    described = {}
    for split in sorted({result.split for result in results}):
        part = index[index["split"] == split]
        shards = sorted((r for r in results if r.split == split), key=lambda r: r.file)
        described[split] = {
            "examples": len(part),
            "patients": int(part["patient_id"].nunique()),
            "label_counts": _label_counts(part, labels),
            "shards": [_describe_shard(shard, labels) for shard in shards],
        }
    return described


def _describe_shard(result: ShardResult, labels: Sequence[str]) -> dict[str, Any]:
    return {
        "file": result.file,
        "examples": len(result.index),
        "bytes": result.bytes,
        "sha256": result.sha256,
        "label_counts": _label_counts(result.index, labels),
    }


def _label_counts(rows: pd.DataFrame, labels: Sequence[str]) -> dict[str, int]:
    """How many examples have each label; unlabelled ones have none."""
    return {label: int((rows[LABEL_PREFIX + label] == 1).sum()) for label in labels}


def build_manifest(
    plan: Plan,
    options: Options,
    index: pd.DataFrame,
    rejects: pd.DataFrame,
    splits: dict[str, Any],
) -> dict[str, Any]:
    """The manifest, as JSON values."""
    repaired = index.loc[index["repair"] != Repair.NONE, "repair"].value_counts()
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": _software(),
        "options": options.recorded(),
        "labels": list(plan.labels),
        "windows": options.recorded()["windows"],
        "image": {
            "height": options.image_size,
            "width": options.image_size,
            "channels": options.image.channels,
            "dtype": options.image.dtype,
            **({} if options.windows else {"hu_offset": HU_OFFSET}),
        },
        "counts": {
            "files_seen": plan.files_seen,
            "written": len(index),
            "rejected": len(rejects),
            "rejected_by_reason": count_reasons(rejects),
            "repaired": {str(repair): int(n) for repair, n in sorted(repaired.items())},
            "resized": int(index["resized"].sum()),
            "labels_without_file": plan.labels_without_file,
            "identical_pixels": asdict(plan.twins),
        },
        "splits": splits,
    }


def count_reasons(rejects: pd.DataFrame) -> dict[str, int]:
    """How many files were rejected for each reason."""
    return {str(reason): int(n) for reason, n in sorted(rejects["reason"].value_counts().items())}


def _software() -> dict[str, str]:
    packages = ("apache-beam", "pydicom", "numpy", "isal")
    return {"beam_pipeline": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in packages
    }


def write_description(
    folder: Folder,
    plan: Plan,
    options: Options,
    results: Sequence[ShardResult],
    rejects: pd.DataFrame,
) -> None:
    """Write all that describes the shards, the manifest last."""
    index = pd.concat([result.index for result in results], ignore_index=True)
    splits = describe_splits(results, index, plan.labels)
    files = {
        INDEX: encode_index(index, plan.labels),
        REJECTS: encode_rejects(rejects),
        FEATURES: encode_json(describe_features(plan.labels, options)),
        DATASET_INFO: encode_json(describe_dataset(splits)),
    }
    for name, data in files.items():
        folder.write(name, data)
    manifest = build_manifest(plan, options, index, rejects, splits)
    manifest["files"] = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    manifest["digest"] = manifest_digest(manifest)
    folder.write(MANIFEST, encode_json(manifest))


def manifest_digest(manifest: dict[str, Any]) -> str:
    """The SHA-256 of a manifest's content without its own `digest`, in hexadecimal."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def encode_json(value: Any) -> bytes:
    """JSON to be read by people too."""
    return (json.dumps(value, indent=2) + "\n").encode()


def describe_dataset(splits: dict[str, Any]) -> dict[str, Any]:
    """`dataset_info.json` (the DatasetInfo message of TensorFlow Datasets)."""
    return {
        "name": DATASET,
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "description": "Head-CT slices as windowed PNG images.",
        "splits": [
            {
                "name": name,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(shard["examples"]) for shard in split["shards"]],
                "numBytes": str(sum(shard["bytes"] for shard in split["shards"])),
            }
            for name, split in splits.items()
        ],
    }


def describe_features(labels: Sequence[str], options: Options) -> dict[str, Any]:
    """`features.json`: how TensorFlow Datasets decodes an example."""
    spec = options.image
    shape = _dimensions([spec.size, spec.size, spec.channels])
    image = {"shape": shape, "dtype": spec.dtype, "encodingFormat": "png"}
    return {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                "image": {
                    "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
                    "image": image,
                },
                **{name: _text() for name in ("image_id", "patient_id", "study_id", "series_id")},
                "label": _tensor([len(labels)], "int64"),
                "position_z": _tensor([], "float32"),
                "pixel_spacing": _tensor([2], "float32"),
            }
        },
    }


def _text() -> dict[str, Any]:
    return {
        "pythonClassName": "tensorflow_datasets.core.features.text_feature.Text",
        "text": {},
    }


def _tensor(shape: Sequence[int], dtype: str) -> dict[str, Any]:
    kind = "Scalar" if not shape else "Tensor"
    module = "scalar" if not shape else "tensor_feature"
    tensor = {"shape": _dimensions(shape), "dtype": dtype, "encoding": "none"}
    return {
        "pythonClassName": f"tensorflow_datasets.core.features.{module}.{kind}",
        "tensor": tensor,
    }


def _dimensions(shape: Sequence[int]) -> dict[str, list[str]]:
    return {"dimensions": [str(size) for size in shape]} if shape else {}
