"""`python -m examples.sample`: write a sample and say what it holds."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import Progress

from examples.sample.writer import (
    PATIENTS,
    SLICES,
    TEST_PATIENTS,
    SampleError,
    SampleSummary,
    write_sample,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the sample that the arguments ask for; return the exit code."""
    try:
        summary = _write(_parser().parse_args(argv))
    except (SampleError, OSError) as error:  # a disk that is full, a folder that is not ours
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_describe(summary))
    return 0


def _write(arguments: argparse.Namespace) -> SampleSummary:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        everyone = arguments.patients + arguments.test_patients
        task = bar.add_task("Synthetic patients", total=everyone)
        return write_sample(
            arguments.output,
            patients=arguments.patients,
            slices=arguments.slices,
            seed=arguments.seed,
            test_patients=arguments.test_patients,
            scans=arguments.scans,
            workers=max(arguments.workers, 1),
            progress=lambda done: bar.advance(task, done),
        )


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SampleError(message.removeprefix("argument "))


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="python -m examples.sample",
        description="Write a synthetic head-CT data set in the form of RSNA 2019.",
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    for name, default, text in (
        ("patients", PATIENTS, "with labels"),
        ("test_patients", TEST_PATIENTS, "others, without labels"),
        ("slices", SLICES, "of each patient"),
        ("seed", 0, "of everything random"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text}; default: %(default)s"
        )
    parser.add_argument(
        "--scans",
        action="store_true",
        help="a third of the series twice as thin, and artifacts like blood on single slices",
    )
    parser.add_argument(
        "--workers", type=int, default=min(os.cpu_count() or 1, 4), help="default: %(default)s"
    )
    return parser


def _describe(summary: SampleSummary) -> str:
    counts = ", ".join(f"{label} {count}" for label, count in summary.label_counts.items())
    done = "already there, reused" if summary.reused else "written"
    if summary.replaced:
        done = "in place of an older sample; remove shards and runs that were made from that"
    return (
        f"Synthetic sample in {summary.output}: {summary.files} files of "
        f"{summary.parameters.patients} patients ({len(summary.bad_files)} bad on purpose), and "
        f"{summary.test_files} of {summary.parameters.test_patients} others without labels, {done}."
        f"\nSlices with blood: {counts}."
    )


if __name__ == "__main__":
    sys.exit(main())
