"""What describes a shard directory: index, rejects, TensorFlow Datasets' metadata, manifest."""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pandas as pd

from beam_pipeline import __version__
from beam_pipeline.convert import HU_OFFSET
from beam_pipeline.index import join_indexes
from beam_pipeline.options import Options
from beam_pipeline.plan import DATASET, Plan
from beam_pipeline.shards import ShardResult
from beam_pipeline.storage import Folder

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
INDEX = "index.parquet"
REJECTS = "rejects.jsonl"
DATASET_INFO = "dataset_info.json"
FEATURES = "features.json"


def encode_rejects(rejects: pd.DataFrame) -> bytes:
    """The rejects as JSON lines, ordered by source."""
    columns = ["source", "image_id", "reason", "detail"]
    rows = rejects.sort_values("source")[columns].to_dict("records")
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def describe_splits(results: Sequence[ShardResult]) -> dict[str, Any]:
    """The manifest's `splits`.

    A shard that lost all its examples stays listed: the others' names count it.
    """
    described = {}
    for split in sorted({result.split for result in results}):
        shards = [result for result in results if result.split == split]
        described[split] = {
            "examples": sum(shard.examples for shard in shards),
            "patients": len(frozenset().union(*(shard.patients for shard in shards))),
            "label_counts": _add_up(shard.label_counts for shard in shards),
            "shards": [_describe_shard(shard) for shard in shards],
        }
    return described


def _describe_shard(result: ShardResult) -> dict[str, Any]:
    return {
        "file": result.file,
        "examples": result.examples,
        "bytes": result.bytes,
        "sha256": result.sha256,
        "label_counts": result.label_counts,
    }


def _add_up(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def build_manifest(
    plan: Plan, options: Options, results: Sequence[ShardResult], rejects: pd.DataFrame
) -> dict[str, Any]:
    """The manifest, as JSON values."""
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
            "written": sum(result.examples for result in results),
            "rejected": len(rejects),
            "rejected_by_reason": count_reasons(rejects),
            "repaired": dict(sorted(_add_up(result.repaired for result in results).items())),
            "resized": sum(result.resized for result in results),
            "labels_without_file": plan.labels_without_file,
            "identical_pixels": asdict(plan.twins),
        },
        "splits": describe_splits(results),
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
    results = sorted(results, key=lambda result: (result.split, result.file))
    manifest = build_manifest(plan, options, results, rejects)
    files = {
        INDEX: join_indexes((result.index for result in results), plan.labels),
        REJECTS: encode_rejects(rejects),
        FEATURES: encode_json(describe_features(plan.labels, options)),
        DATASET_INFO: encode_json(describe_dataset(manifest["splits"])),
    }
    for name, data in files.items():
        folder.write(name, data)
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
