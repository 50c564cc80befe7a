"""`python -m beam_pipeline.verify`: check a shard directory and print problems."""

import os

# pyarrow reads this when imported: Arrow's own allocator would keep 30 MB more.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import sys
import time
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from rich.console import Console
from rich.table import Column, Table

from beam_pipeline.split_tables import print_by_split
from beam_pipeline.verify.findings import Check, Finding, Findings
from beam_pipeline.verify.splits import SplitSummary
from beam_pipeline.verify.verification import Verification, verify_directory
from headct.commands import run_program
from headct.declarations import Declared, DefaultText, Location, OptionalLocation, parse_flags
from headct.terminal import Terminal

EXIT_WRONG = 4


class VerifyOptions(Declared):
    """Read a shard directory back and check all of it. Exit code 4 if it is wrong."""

    shards: Location
    """shard directory; local or a URL"""
    source: OptionalLocation = None
    """the run's --input: read the DICOM files again and compare pixels"""
    workers: Annotated[int, Field(ge=0), DefaultText("one per core")] = os.cpu_count() or 1
    """processes; 0 to use none but this one"""
    show: Annotated[int, Field(ge=0)] = 10
    """problems to list of each check"""


def main(argv: Sequence[str], program: str = "python -m beam_pipeline.verify") -> int:
    """Verify and return the exit code: 0 no problem, 2 nothing to verify, 4 problems."""
    return run_program("verify", lambda: _verify(argv, program), resumes=False)


def options_of(_command: str) -> list[type[Declared]]:
    """Return the classes of the command's options."""
    return [VerifyOptions]


def _verify(argv: Sequence[str], program: str) -> int:
    began = time.monotonic()
    given = parse_flags(VerifyOptions, argv, program)
    result = verify_directory(given.shards, source=given.source, workers=given.workers)
    _print_result(result, given.shards, given.show, time.monotonic() - began)
    return 0 if result.findings.ok else EXIT_WRONG


def _print_result(result: Verification, shards: str, limit: int, seconds: float) -> None:
    console = Terminal()
    if result.splits:
        _print_splits(console, result)
    _print_checks(console, result.findings)
    _print_findings(console, result.findings, limit)
    slices = sum(split.slices for split in result.splits)
    problems = result.findings.failed.total()
    verdict = f"WRONG in {problems:,} places" if problems else "all is well"
    stopped = not result.findings.checked[Check.METADATA]
    rest = "; an invalid manifest.json ends the verification" if stopped else ""
    console.print(
        f"{shards}: {verdict}; {slices:,} slices read in {seconds:.1f} s "
        f"({slices / max(seconds, 1e-3):,.0f} slices/s){rest}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _print_checks(console: Console, findings: Findings) -> None:
    """Print a table with one row per check."""
    table = Table("check", Column("checked", justify="right"), Column("wrong", justify="right"), "")
    for check in Check:
        checked, failed = findings.checked[check], findings.failed[check]
        result = "[red]FAILED[/]" if failed else "[green]ok[/]" if checked else "not checked"
        table.add_row(check.value, f"{checked:,}", f"{failed:,}" if failed else "", result)
    console.print(table)


def _print_splits(console: Console, result: Verification) -> None:
    """Print a table with one column per split: slices per label, with their deviation."""
    splits, identical = result.splits, result.identical
    rows = [
        ("patients", [f"{split.patients:,}" for split in splits]),
        ("shards", [f"{split.shards:,}" for split in splits]),
        ("slices", [f"{split.slices:,}" for split in splits]),
        ("MB", [f"{split.bytes / 1e6:,.1f}" for split in splits]),
        *(
            (label, [_count_and_deviation(label, split, splits) for split in splits])
            for label in splits[0].label_counts
        ),
        ("shards differ by", [str(split.spread) for split in splits]),
    ]
    print_by_split(console, [split.name for split in splits], rows)
    if identical.slices:
        console.print(
            f"{identical.slices} slices have the image of another one;"
            f" {identical.across_splits} images are in more than one split",
            highlight=False,
        )


def _count_and_deviation(label: str, split: SplitSummary, splits: Sequence[SplitSummary]) -> str:
    """Return a label's count in a split, with the deviation from its share of all splits."""
    total = sum(other.label_counts[label] for other in splits)
    labeled = sum(other.labeled for other in splits)
    count = split.label_counts[label]
    if not split.labeled or not total:
        return f"{count:,}"
    deviation = count / split.labeled / (total / labeled) - 1
    return f"{count:,} {deviation:+.0%}" if abs(deviation) >= 0.1 else f"{count:,} {deviation:+.1%}"


def _print_findings(console: Console, findings: Findings, limit: int) -> None:
    """Print the first problems per check, and the number of further problems."""
    for check in (check for check in Check if findings.failed[check]):
        console.print(f"\n{check.value}:", highlight=False, markup=False)
        kept = [finding for finding in findings.kept if finding.check is check]
        for finding in sorted(kept, key=_order)[:limit]:
            console.print(f"  {finding}", highlight=False, markup=False, soft_wrap=True)
        hidden = findings.failed[check] - min(limit, len(kept))
        if hidden:
            console.print(f"  ... and {hidden:,} more", highlight=False)


def _order(finding: Finding) -> tuple[str, int, str]:
    return finding.file, -1 if finding.record is None else finding.record, finding.message


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
