"""Index and manifest of a shard directory; the manifest has the checksums of all files."""

import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pyarrow as pa

from beam_pipeline import __version__
from beam_pipeline.images.convert import HU_OFFSET
from beam_pipeline.options import ImageOptions, Options
from beam_pipeline.shards.formats import describe_dataset, describe_features, write_index
from beam_pipeline.shards.rejects import Reject, count_reasons, encode_rejects
from beam_pipeline.shards.run_record import describe_run
from beam_pipeline.shards.unfinished import Plan, Unfinished
from beam_pipeline.shards.writer import ShardResult
from headct.layout import (
    DATASET_INFO,
    FEATURES,
    INDEX,
    MANIFEST_ORIGIN,
    REJECTS,
    SCHEMA_VERSION,
    ShardFile,
    written_table,
)
from headct.stores import digest_file

# Beam, and the libraries that determine the bytes of shards and index: headers, decoders,
# resizing, deflate, examples, tables.
_SOFTWARE = (
    *("apache-beam", "pydicom", "numpy", "imagecodecs", "opencv-python-headless", "isal"),
    *("protobuf", "pyarrow"),
)


def describe_splits(results: Sequence[ShardResult], patients: Mapping[str, int]) -> dict[str, Any]:
    """Return the manifest's `splits`.

    A shard without examples stays listed: file names include the number of shards.

    Args:
        results: results of all shards, in order.
        patients: number of patients per split.
    """
    described = {}
    for split in sorted({result.split for result in results}):
        shards = [result for result in results if result.split == split]
        described[split] = {
            "examples": sum(shard.examples for shard in shards),
            "patients": patients.get(split, 0),
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
    plan: Plan,
    options: Options,
    results: Sequence[ShardResult],
    patients: Mapping[str, int],
    rejects: Sequence[Reject],
) -> dict[str, Any]:
    """Return the manifest as JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": _software(),
        "options": options.recorded(),
        "labels": list(plan.labels),
        "windows": options.recorded()["windows"],
        "image": describe_image(options.image),
        "counts": {
            "files_seen": plan.files_seen,
            "written": sum(result.examples for result in results),
            "rejected": len(rejects),
            "rejected_by_reason": count_reasons(rejects),
            "repaired": dict(sorted(_add_up(result.repaired for result in results).items())),
            "resized": sum(result.resized for result in results),
            "labels_without_file": plan.labels_without_file,
            "unlabeled_skipped": plan.skipped,
            "identifying_paths": plan.identifying_paths,
            "without_patient_id": plan.without_patient_id,
            "identical_pixels": asdict(plan.identical),
        },
        "image_id": plan.image_id,
        "labels_joined_by": plan.labels_joined_by,
        "notes": list(plan.notes),
        "splits": describe_splits(results, patients),
    }


def describe_image(options: ImageOptions) -> dict[str, Any]:
    """Return the manifest's `image`."""
    return {
        "height": options.image_size,
        "width": options.image_size,
        "channels": options.channels,
        "dtype": options.dtype,
        **({} if options.windows else {"hu_offset": HU_OFFSET}),
    }


def _software() -> dict[str, str]:
    return {"beam_pipeline": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in _SOFTWARE
    }


def describe_shards(
    unfinished: Unfinished,
    plan: Plan,
    options: Options,
    results: Sequence[ShardResult],
    rejects: Sequence[Reject],
) -> dict[str, Any]:
    """Write index, rejects and TFDS files, and return the manifest without writing it.

    Args:
        unfinished: tables with the index rows of the shards.
        plan: plan of the shards.
        options: options of the run.
        results: results of all shards, in the plan's order.
        rejects: one row per rejected file.
    """
    folder = unfinished.folder
    patients: dict[str, set[str]] = {}
    files = {INDEX: _write_index(unfinished, plan, patients)}
    manifest = build_manifest(
        plan, options, results, {split: len(ids) for split, ids in patients.items()}, rejects
    )
    for name, data in (
        (REJECTS, encode_rejects(rejects)),
        (FEATURES, encode_json(describe_features(len(plan.labels), manifest["image"]))),
        (DATASET_INFO, encode_json(describe_dataset(manifest["splits"]))),
    ):
        folder.write(name, data)
        files[name] = _describe_file(data)
    manifest["files"] = files
    manifest["digest"] = manifest_digest(manifest)
    run = describe_run(folder)
    if run is not None:
        manifest["run"] = run
    return manifest


def _describe_file(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_index(
    unfinished: Unfinished, plan: Plan, patients: dict[str, set[str]]
) -> dict[str, Any]:
    """Write the index, add the patients per split to `patients`, and describe the file."""

    def parts() -> Iterator[pa.Table]:
        for shard, part in zip(
            plan.shards, unfinished.read_all([*map(written_table, plan.shards)]), strict=True
        ):
            found = patients.setdefault(ShardFile.parse(shard).split, set())
            found.update(part["patient_id"].unique().to_pylist())
            yield part

    with unfinished.folder.create(INDEX) as file:
        write_index(file, parts(), plan.labels)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return {"bytes": size, "sha256": digest_file(file)}


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content, in hexadecimal: equal for equal directories.

    The content excludes date, software and options, and includes the checksums of all files.
    """
    content = {key: value for key, value in manifest.items() if key not in MANIFEST_ORIGIN}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def encode_json(value: Any) -> bytes:
    """Return indented JSON, for human readers."""
    return (json.dumps(value, indent=2) + "\n").encode()
