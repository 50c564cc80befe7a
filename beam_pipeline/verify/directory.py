"""A shard directory, read back and checked: all of it.

What is an error: a file that is missing, damaged or unknown; two places that contradict each
other (manifest, index, records, metadata, and with `--source` the DICOM files); an image id that is
there twice; a patient in two splits. What is only shown: how even labels are over splits and
shards, since patients are not divisible and slices may be rejected after they were dealt; and
identical images, since whether they are kept together is an option of the run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import track

from beam_pipeline.verify.claims import Claims, read_claims
from beam_pipeline.verify.description import check_metadata, check_rejects
from beam_pipeline.verify.findings import Check, Findings, printable
from beam_pipeline.verify.index import read_index, rows_by_shard
from beam_pipeline.verify.shard import ShardReport, ShardTask, check_shard
from beam_pipeline.verify.source import Conversion
from beam_pipeline.verify.splits import IdenticalImages, SplitSummary, check_partition
from beam_pipeline.workers import Watch, WorkerPool
from headct.errors import UsageError
from headct.layout import MANIFEST, count_input
from headct.stores import Folder


@dataclass(frozen=True)
class Verification:
    """What became of a verification."""

    findings: Findings  # what was checked, and what is wrong
    splits: list[SplitSummary]  # what they hold
    identical: IdenticalImages  # examples with the same image


def verify_directory(url: str, *, source: str | None = None, workers: int = 0) -> Verification:
    """Check a shard directory, and compare it with the input that it was made of, if that is given.

    One record at a time is held in each process, and of all records their ids. Without workers all
    is done in this process.

    Raises:
        UsageError: there is no such directory, no manifest in it, or no such input.
    """
    folder, findings = Folder(url), Findings()
    names, manifest = _open(folder)
    claims = read_claims(manifest, findings)
    tasks = _plan(folder, source, claims, findings)
    reports = sorted(_check_shards(tasks, workers), key=lambda report: report.claim.file)
    findings.merge(report.findings for report in reports)
    _check_names(names, claims, reports, findings)
    return Verification(findings, *check_partition(reports, claims, findings))


def _open(folder: Folder) -> tuple[set[str], bytes]:
    """The names of the directory's files, and its manifest."""
    try:
        names = folder.names()
        if MANIFEST not in names:
            raise UsageError(f"it is no finished shard directory: it has no {MANIFEST}")
        return names, folder.read(MANIFEST)
    except (OSError, ValueError, ImportError, UsageError) as error:
        raise UsageError(f"cannot read {folder.url}: {error}") from None


def _plan(
    folder: Folder, source: str | None, claims: Claims, findings: Findings
) -> list[ShardTask]:
    """Check what describes the shards; what to check of each of them."""
    index = read_index(folder, claims, findings)
    check_metadata(folder, claims, findings)
    check_rejects(folder, claims, index, findings)
    options, conversion = claims.at("options") or {}, None
    if source is not None and index is not None:
        try:
            conversion = Conversion.recorded(source, options)
            seen = count_input(claims.at("counts") or {})
            index = conversion.add_files(index, options, seen)
        except ValueError as error:
            conversion = None
            findings.add(Check.SOURCE, printable(error), MANIFEST)
    labels = claims.at("labels")
    rows = {} if index is None else rows_by_shard(index, claims, findings)
    return [
        ShardTask(folder.url, shard, labels, claims.image, rows.get(file), conversion)
        for file, shard in claims.shards.items()
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
    names: set[str], claims: Claims, reports: Sequence[ShardReport], findings: Findings
) -> None:
    """Shard files that are not listed, or that have each other's names."""
    for name in sorted(names - claims.shards.keys()):
        if ".tfrecord" in name and not name.startswith("."):
            findings.add(Check.FILES, "not listed in the manifest", printable(name))
    rightful = {shard.stated.get("sha256"): shard.file for shard in claims.shards.values()}
    for report in reports:
        file, other = report.claim.file, rightful.get(report.sha256)
        if other and report.bytes and report.claim.stated.get("sha256") != report.sha256:
            findings.add(Check.FILES, f"holds what belongs in {other}", file)
