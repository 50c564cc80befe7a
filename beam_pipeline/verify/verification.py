"""Verification of a shard directory: the order of the checks, and checks of the manifest.

Errors: missing, damaged or unlisted files; contradictions between values (manifest, index, records,
metadata, and with `--source` the DICOM files); duplicate image ids; patients in two splits. Shown
without an error: the balance of labels over splits and shards, since patients are indivisible and
slices may be rejected after their assignment; identical images, since keeping identical images
together is an option of the run.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from rich.console import Console
from rich.progress import track

from beam_pipeline.shards.manifest import manifest_digest
from beam_pipeline.verify.description import (
    check_index,
    check_metadata,
    check_rejects,
    describe_error,
    parse_json,
    rows_by_shard,
)
from beam_pipeline.verify.findings import Check, Findings, printable
from beam_pipeline.verify.shard import ShardReport, ShardTask, check_shard
from beam_pipeline.verify.source import Conversion
from beam_pipeline.verify.splits import IdenticalImages, SplitSummary, check_partition
from beam_pipeline.workers import Watch, WorkerPool
from headct.errors import UsageError
from headct.layout import MANIFEST, UNLABELED_SPLIT, ShardFile, count_input
from headct.stores import Folder

_SCHEMA = Draft202012Validator(
    json.loads(Path(__file__).with_name("manifest_schema.json").read_bytes())
)


@dataclass(frozen=True)
class Verification:
    """Result of a verification; without splits if the manifest is invalid."""

    findings: Findings
    splits: list[SplitSummary] = field(default_factory=list)
    identical: IdenticalImages = field(default_factory=IdenticalImages)


def verify_directory(url: str, *, source: str | None = None, workers: int = 0) -> Verification:
    """Check a shard directory, and compare its images with the input if given.

    A worker keeps one record in memory; this process keeps the ids of all records. Without workers
    this process runs all checks. An invalid manifest ends the verification.

    Raises:
        UsageError: the directory, its manifest or the input does not exist.
    """
    folder, findings = Folder(url), Findings()
    names, data = _open(folder)
    manifest = _check_manifest(data, findings)
    if manifest is None:
        return Verification(findings)
    tasks = _plan(folder, source, manifest, findings)
    reports = sorted(_check_shards(tasks, workers), key=lambda report: report.file)
    findings.merge(report.findings for report in reports)
    _check_names(names, tasks, reports, findings)
    return Verification(findings, *check_partition(reports, manifest, findings))


def _open(folder: Folder) -> tuple[set[str], bytes]:
    """Return the names of the directory's files, and its manifest."""
    try:
        names = folder.names()
        if MANIFEST not in names:
            raise UsageError(f"it is no finished shard directory: it has no {MANIFEST}")
        return names, folder.read(MANIFEST)
    except (OSError, ValueError, ImportError, UsageError) as error:
        raise UsageError(f"cannot read {folder.url}: {error}") from None


def _check_manifest(data: bytes, findings: Findings) -> dict[str, Any] | None:
    """Check a manifest by itself; return the manifest if its schema allows it."""
    findings.checked[Check.MANIFEST] += 1
    try:
        manifest: dict[str, Any] = parse_json(data)
        errors = sorted(map(describe_error, _SCHEMA.iter_errors(manifest)))
        digest = "" if errors else manifest_digest(manifest)
    except (ValueError, RecursionError) as error:
        errors = [printable(error)]
    if errors:
        for message in errors:
            findings.add(Check.MANIFEST, message, MANIFEST)
        return None
    if manifest["digest"] != digest:
        message = "its content is not that of its own digest: it was edited or damaged"
        findings.add(Check.MANIFEST, message, MANIFEST)
    folds = sorted(manifest["splits"].keys() - {UNLABELED_SPLIT})
    if folds and not manifest["labels"]:
        message = f"labels: a list of 0, but {printable(', '.join(folds))} are splits by labels"
        findings.add(Check.MANIFEST, message, MANIFEST)
    for what, value, expected, basis in _arithmetic(manifest):
        findings.compare(Check.MANIFEST, MANIFEST, printable(what), value, expected, basis)
    return manifest


def _arithmetic(manifest: dict[str, Any]) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield values determined by other values: name, value, expected value, and basis."""
    counts, splits, windows = manifest["counts"], manifest["splits"], manifest["windows"]
    image, options = manifest["image"], manifest["options"]
    size = options.get("image_size")
    rejected = sum(counts["rejected_by_reason"].values())
    written = sum(split["examples"] for split in splits.values())
    seen, basis = counts["written"] + counts["rejected"], "written + rejected"
    yield "counts.files_seen", counts["files_seen"], seen, basis
    yield "counts.rejected", counts["rejected"], rejected, "sum of rejected_by_reason"
    yield "counts.written", counts["written"], written, "sum of the splits"
    yield "windows", windows, options.get("windows"), "options.windows"
    yield "image.height", image["height"], size, "options.image_size"
    yield "image.width", image["width"], size, "options.image_size"
    basis = "one per window, or one of Hounsfield units"
    yield "image.channels", image["channels"], len(windows) or 1, basis
    dtype = "uint8" if windows else "uint16"
    yield "image.dtype", image["dtype"], dtype, "of windows, or Hounsfield units"
    for name, split in splits.items():
        path, shards = f"splits.{name}", split["shards"]
        examples = sum(shard["examples"] for shard in shards)
        labels = Counter(dict.fromkeys(manifest["labels"], 0))
        for number, shard in enumerate(shards):
            file = ShardFile(name, number, len(shards)).name
            basis = "its position in the split"
            yield f"{path}.shards.{number}.file", shard["file"], file, basis
            labels.update(shard["label_counts"])
        yield f"{path}.examples", split["examples"], examples, "sum of its shards"
        yield f"{path}.label_counts", split["label_counts"], dict(labels), "sum of its shards"


def _plan(
    folder: Folder, source: str | None, manifest: dict[str, Any], findings: Findings
) -> list[ShardTask]:
    """Check the descriptions of the shards, and return one task per shard."""
    index = check_index(folder, manifest, findings)
    check_metadata(folder, manifest, findings)
    check_rejects(folder, manifest, index, findings)
    conversion = None
    if source is not None and index is not None:
        try:
            conversion = Conversion.recorded(source, manifest["options"])
            seen = count_input(manifest["counts"])
            index = conversion.add_files(index, manifest["options"], seen)
        except ValueError as error:
            conversion = None
            findings.add(Check.SOURCE, printable(error), MANIFEST)
    shards = {
        shard["file"]: (split, shard)
        for split, described in manifest["splits"].items()
        for shard in described["shards"]
    }
    rows = {} if index is None else rows_by_shard(index, shards, findings)
    labels, image = manifest["labels"], manifest["image"]
    return [
        ShardTask(folder.url, split, shard, labels, image, rows.get(file), conversion)
        for file, (split, shard) in shards.items()
    ]


def _check_shards(tasks: list[ShardTask], workers: int) -> Iterable[ShardReport]:
    if not workers:
        return (check_shard(task, Watch()) for task in tasks)
    pool: WorkerPool[ShardTask, ShardReport] = WorkerPool(check_shard, workers)
    console = Console(stderr=True)
    hidden, total = not console.is_terminal, len(tasks)
    return track(
        pool.map(tasks), "Read shards", total, console=console, transient=True, disable=hidden
    )


def _check_names(
    names: set[str], tasks: Sequence[ShardTask], reports: Sequence[ShardReport], findings: Findings
) -> None:
    """Add findings for unlisted shard files, and for swapped names."""
    listed = {task.shard["file"]: task.shard["sha256"] for task in tasks}
    for name in sorted(names - listed.keys()):
        if ".tfrecord" in name and not name.startswith("."):
            findings.add(Check.FILES, "not listed in the manifest", printable(name))
    rightful = {sha256: file for file, sha256 in listed.items()}
    for report in reports:
        other = rightful.get(report.sha256)
        if other and report.bytes and listed[report.file] != report.sha256:
            findings.add(Check.FILES, f"holds what belongs in {other}", report.file)
