"""`python -m beam_pipeline.verify`: check a shard directory and print problems."""

import os

# pyarrow reads this when imported: Arrow's own allocator would keep 30 MB more.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field
from rich.console import Console
from rich.table import Column, Table

from beam_pipeline.progress import print_by_split
from beam_pipeline.verify.findings import Check
from beam_pipeline.verify.verification import Verification, verify_directory
from headct.commands import run_program
from headct.declarations import (
    Declared,
    DefaultText,
    Location,
    OptionalLocation,
    parse_flags,
    with_flags,
)
from headct.layout import label_column, labels_of
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
    given = parse_flags(VerifyOptions, with_flags(argv, "--shards"), program)
    result = verify_directory(given.shards, source=given.source, workers=given.workers)
    _print_result(result, given.shards, given.show, time.monotonic() - began)
    return 0 if result.findings.ok else EXIT_WRONG


def _print_result(result: Verification, shards: str, limit: int, seconds: float) -> None:
    console, findings = Terminal(highlight=False), result.findings
    say = partial(console.print, markup=False, soft_wrap=True)
    if len(result.splits):
        _print_splits(console, result.splits)
        if result.repeated:
            say(
                f"{result.repeated} slices have the image of another one;"
                f" {result.across_splits} images are in more than one split"
            )
    table = Table("check", Column("checked", justify="right"), Column("wrong", justify="right"), "")
    for check in Check:
        checked, failed = findings.checked[check], findings.failed[check]
        word = "[red]FAILED[/]" if failed else "[green]ok[/]" if checked else "not checked"
        table.add_row(check.value, f"{checked:,}", f"{failed:,}" if failed else "", word)
    console.print(table)
    for check in filter(findings.failed.get, Check):
        say(f"\n{check.value}:")
        kept = [finding for finding in findings.kept if finding.check is check][:limit]
        for finding in kept:
            say(f"  {finding}")
        if hidden := findings.failed[check] - len(kept):
            say(f"  ... and {hidden:,} more")
    slices = sum(result.splits.get("slices", []))
    problems = findings.failed.total()
    verdict = f"WRONG in {problems:,} places" if problems else "all is well"
    stopped = not findings.checked[Check.METADATA]
    rest = "; an invalid manifest.json ends the verification" if stopped else ""
    say(
        f"{shards}: {verdict}; {slices:,} slices read in {seconds:.1f} s "
        f"({slices / max(seconds, 1e-3):,.0f} slices/s){rest}",
    )


def _print_splits(console: Console, splits: pd.DataFrame) -> None:
    """Print a table with one column per split: slices per label, with their deviation."""
    rows = [(name, [f"{n:,}" for n in splits[name]]) for name in ("patients", "shards", "slices")]
    rows.append(("MB", [f"{size:,.1f}" for size in splits["MB"]]))
    for label in labels_of(splits.columns):
        counts, labeled = splits[label_column(label)], splits["labeled"]
        share = counts.sum() / max(labeled.sum(), 1)
        # Of unlabeled splits, and of a label without positives: NaN.
        deviations = counts / labeled / share - 1
        cells = [
            f"{count:,}" if np.isnan(deviation) else f"{count:,} {deviation:+.1%}"
            for count, deviation in zip(counts, deviations, strict=True)
        ]
        rows.append((label, cells))
    print_by_split(console, list(splits.index), rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
