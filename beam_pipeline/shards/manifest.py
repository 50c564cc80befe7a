"""Files beside the shards: index, rejects, descriptions, and the manifest with all checksums."""

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
from beam_pipeline.dicom.acquisition import count_values
from beam_pipeline.errors import TooManyRejects
from beam_pipeline.images.convert import HU_OFFSET
from beam_pipeline.options import ImageOptions, Options, config_text
from beam_pipeline.shards.formats import describe_dataset, describe_features, write_index
from beam_pipeline.shards.output import describe_run
from beam_pipeline.shards.unfinished import Plan, Reject, ShardResult, Unfinished
from headct.dataset_card import describe_directory
from headct.errors import UsageError
from headct.layout import (
    CONFIG,
    DATASET_INFO,
    FEATURES,
    INDEX,
    MANIFEST,
    MANIFEST_ORIGIN,
    REJECTS,
    SCHEMA_VERSION,
    ShardFile,
    index_columns,
    written_table,
)
from headct.manifest import parse_manifest
from headct.printable import escape_controls
from headct.reasons import EXCLUSIONS, advice_for
from headct.stores import Folder, digest_file

# Beam, and the libraries that determine the bytes of shards and index: headers, decoders,
# resizing, deflate, examples, tables.
_SOFTWARE = (
    *("apache-beam", "pydicom", "numpy", "imagecodecs", "opencv-python-headless", "isal"),
    *("protobuf", "pyarrow"),
)


def encode_rejects(rejects: Iterable[Reject]) -> bytes:
    """Return the rejects as JSON lines, ordered by source."""
    rows = sorted(rejects, key=lambda row: row["source"])
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read_rejects(folder: Folder) -> list[Reject]:
    """Return the listed rejects of a run.

    Raises:
        OSError: the list cannot be read.
        StoreError: the folder's store fails.
    """
    return [json.loads(line) for line in folder.read(REJECTS).splitlines()]


def count_rejects(rejects: Iterable[Reject]) -> dict[str, Any]:
    """Return the manifest's counts of rejected and excluded files, altogether and by reason."""
    counts = sorted(Counter(row["reason"] for row in rejects).items())
    excluded = {reason: number for reason, number in counts if reason in EXCLUSIONS}
    rejected = {reason: number for reason, number in counts if reason not in EXCLUSIONS}
    return {
        "rejected": sum(rejected.values()),
        "rejected_by_reason": rejected,
        "excluded": sum(excluded.values()),
        "excluded_by_reason": excluded,
    }


def check_rejects(
    unfinished: Unfinished, files_seen: int, rejects: Sequence[Reject], allowed: float
) -> None:
    """Raise an error if too many files were rejected, after writing the list of rejects.

    No list is written otherwise: a concurrent run may have completed the directory, with a list
    that includes rejects of the writing step.

    Args:
        unfinished: the output's unfinished area.
        files_seen: number of files in the input.
        rejects: one row per rejected or excluded file, so far.
        allowed: fraction of the files that are not excluded.

    Raises:
        TooManyRejects: more than the allowed fraction is rejected.
        UsageError: all files were rejected or excluded.
        AlreadyComplete: another run has completed the directory.
        OutputError: the rejects cannot be listed.
        StoreError: the folder's store fails.
    """
    counts = count_rejects(rejects)
    wanted = files_seen - counts["excluded"]
    too_many, none_left = judge_rejects(counts, files_seen, allowed)
    if not too_many and not none_left:
        return
    unfinished.check_needed()
    unfinished.folder.write(REJECTS, encode_rejects(rejects))
    reasons = counts["rejected_by_reason"] | ({} if too_many else counts["excluded_by_reason"])
    commonest = max(reasons, key=lambda reason: reasons[reason])
    example, detail = min(
        (row["source"], row["detail"]) for row in rejects if row["reason"] == commonest
    )
    shown = escape_controls(f"{example} ({detail})" if detail else example)
    explanation = (
        f"The commonest reason is {commonest}, as for {shown}: "
        f"{advice_for(commonest)} {unfinished.folder.url.rstrip('/')}/{REJECTS} lists all"
    )
    if too_many:
        raise TooManyRejects(wanted, reasons, allowed, explanation)
    listed = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items()))
    raise UsageError(f"none of {files_seen} files can be used ({listed}). {explanation}")


def judge_rejects(counts: Mapping[str, Any], files_seen: int, allowed: float) -> tuple[bool, bool]:
    """Return whether more files are rejected than allowed, and whether no usable file is left.

    If files are excluded and none is left, too many rejects are not the cause.

    Args:
        counts: numbers of `rejected` and `excluded` files.
        files_seen: number of files in the input.
        allowed: fraction of the files that are not excluded.
    """
    rejected, excluded = counts["rejected"], counts["excluded"]
    none_left = rejected + excluded == files_seen
    too_many = rejected > allowed * (files_seen - excluded)
    return too_many and not (none_left and excluded), none_left


def describe_shards(
    unfinished: Unfinished,
    plan: Plan,
    options: Options,
    results: Sequence[ShardResult],
    rejects: Sequence[Reject],
) -> dict[str, Any]:
    """Write all files beside the shards but the manifest, and return the manifest.

    Args:
        unfinished: tables with the index rows of the shards.
        plan: plan of the shards.
        options: options of the run.
        results: results of all shards, in the plan's order.
        rejects: one row per rejected or excluded file.
    """
    folder = unfinished.folder
    patients: dict[str, set[str]] = {}

    def parts() -> Iterator[pa.Table]:
        tables = unfinished.read_all([*map(written_table, plan.shards)])
        for shard, part in zip(plan.shards, tables, strict=True):
            known = patients.setdefault(ShardFile.parse(shard).split, set())
            known.update(part["patient_id"].unique().to_pylist())
            yield part

    with folder.create(INDEX) as file:
        write_index(file, parts(), plan.labels)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        files = {INDEX: {"bytes": size, "sha256": digest_file(file)}}
    counts = {split: len(ids) for split, ids in patients.items()}
    manifest = build_manifest(plan, options, results, counts, rejects)
    for name, data in (
        (REJECTS, encode_rejects(rejects)),
        (FEATURES, encode_json(describe_features(len(plan.labels), manifest["image"]))),
        (DATASET_INFO, encode_json(describe_dataset(manifest["splits"]))),
    ):
        folder.write(name, data)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    folder.write(CONFIG, config_text(options).encode("utf-8", "replace"))
    manifest["files"] = files
    manifest["digest"] = manifest_digest(manifest)
    columns = [name for name, _ in index_columns(plan.labels)]
    checked = parse_manifest(encode_json(manifest), MANIFEST)
    for name, data in describe_directory(checked, columns).items():
        folder.write(name, data)
    run = describe_run(folder)
    return manifest if run is None else manifest | {"run": run}


def build_manifest(
    plan: Plan,
    options: Options,
    results: Sequence[ShardResult],
    patients: Mapping[str, int],
    rejects: Sequence[Reject],
) -> dict[str, Any]:
    """Return the manifest as JSON values, without files and digest.

    Args:
        plan: plan of the shards.
        options: options of the run.
        results: results of all shards, in the plan's order.
        patients: number of patients per split.
        rejects: one row per rejected or excluded file.
    """
    recorded = options.recorded()
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": {
            "beam_pipeline": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _SOFTWARE},
        },
        "options": recorded,
        "labels": list(plan.labels),
        "windows": recorded["windows"],
        "image": describe_image(options.image),
        "counts": {
            "files_seen": plan.files_seen,
            "written": sum(result.examples for result in results),
            **count_rejects(rejects),
            "repaired": dict(sorted(_add_up(result.repaired for result in results).items())),
            "resized": sum(result.resized for result in results),
            "labels_without_file": plan.labels_without_file,
            "unlabeled_skipped": plan.skipped,
            "not_sampled": plan.not_sampled,
            "not_listed": plan.not_listed,
            "identifying_paths": plan.identifying_paths,
            "without_patient_id": plan.without_patient_id,
            "identical_pixels": asdict(plan.identical),
        },
        "acquisition": count_values(_add_up(result.acquisitions for result in results)),
        "image_id": plan.image_id,
        "labels_joined_by": plan.labels_joined_by,
        "label_level": plan.label_level,
        "notes": list(plan.notes),
        "splits": {
            split: _describe_split(
                [result for result in results if result.split == split], patients.get(split, 0)
            )
            for split in sorted({result.split for result in results})
        },
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


def _describe_split(shards: Sequence[ShardResult], patients: int) -> dict[str, Any]:
    """A shard without examples stays listed: file names include the number of shards."""
    listed = ("file", "examples", "bytes", "sha256", "label_counts")
    return {
        "examples": sum(shard.examples for shard in shards),
        "patients": patients,
        "label_counts": _add_up(shard.label_counts for shard in shards),
        "shards": [{name: getattr(shard, name) for name in listed} for shard in shards],
    }


def _add_up(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content, in hexadecimal: equal for equal directories.

    The content excludes date, software and options, and includes the checksums of all files.
    """
    content = {key: value for key, value in manifest.items() if key not in MANIFEST_ORIGIN}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def encode_json(value: Any) -> bytes:
    """Return indented JSON, for human readers."""
    return (json.dumps(value, indent=2) + "\n").encode()
