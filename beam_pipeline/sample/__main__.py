"""`python -m beam_pipeline.sample`: write a sample and say what it holds."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from beam_pipeline.sample.writer import SampleError, SampleSummary, write_sample


def main(argv: Sequence[str] | None = None) -> int:
    """Write the sample that the arguments ask for; return the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        summary = _write(arguments)
    except (SampleError, OSError) as error:  # a disk that is full, a folder that is not ours
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_describe(summary))
    return 0


def _write(arguments: argparse.Namespace) -> SampleSummary:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Synthetic patients", total=arguments.patients)
        return write_sample(
            arguments.output,
            patients=arguments.patients,
            slices=arguments.slices,
            seed=arguments.seed,
            workers=max(arguments.workers, 1),
            progress=lambda done: bar.advance(task, done),
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m beam_pipeline.sample",
        description="Write a synthetic head-CT data set in the form of RSNA 2019.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--patients", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--slices", type=int, default=28, help="a patient; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--workers", type=int, default=min(os.cpu_count() or 1, 4), help="default: %(default)s"
    )
    return parser


def _describe(summary: SampleSummary) -> str:
    counts = ", ".join(f"{label} {count}" for label, count in summary.label_counts.items())
    done = "already there, reused" if summary.reused else "written"
    return (
        f"Synthetic sample in {summary.output}: {summary.files} files of "
        f"{summary.parameters.patients} patients ({len(summary.bad_files)} bad on purpose), {done}."
        f"\nSlices with blood: {counts}."
    )


if __name__ == "__main__":
    sys.exit(main())
