"""`python -m beam_pipeline.verify`: reads a shard directory back and checks all of it."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from beam_pipeline.verify.directory import Verification, verify_directory
from beam_pipeline.verify.report import show_checks, show_findings, show_splits
from headct.declarations import (
    Declared,
    DefaultText,
    Location,
    OptionalLocation,
    parse_flags,
)
from headct.errors import HeadctError
from headct.printable import show_line
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


def main(argv: Sequence[str]) -> int:
    """Verify and return the exit code: 0 all is well, 2 nothing to verify, 4 something is wrong."""
    began = time.monotonic()
    try:
        given = parse_flags(VerifyOptions, argv, "python -m beam_pipeline.verify")
        result = verify_directory(given.shards, source=given.source, workers=given.workers)
    except HeadctError as error:
        print(f"verify: error: {show_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("verify: interrupted", file=sys.stderr)
        return 130
    _show(result, given.shards, given.show, time.monotonic() - began)
    return 0 if result.findings.ok else EXIT_WRONG


def _show(result: Verification, shards: str, limit: int, seconds: float) -> None:
    console = Terminal()
    if result.splits:
        show_splits(console, result.splits, result.identical)
    show_checks(console, result.findings)
    show_findings(console, result.findings, limit)
    slices = sum(split.slices for split in result.splits)
    problems = result.findings.failed.total()
    verdict = f"WRONG in {problems:,} places" if problems else "all is well"
    console.print(
        f"{shards}: {verdict}; {slices:,} slices read in {seconds:.1f} s "
        f"({slices / max(seconds, 1e-3):,.0f} slices/s)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
