"""Conversion of DICOM files to images like those of a run, with the pipeline's command.

The trainer does not import the pipeline: it runs the command, as a user would.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import pandas as pd

from headct.commands import STARTED_BY, STEP, on_sigterm
from headct.errors import StorageError, UsageError
from headct.json_documents import parse_json
from headct.layout import REJECT_COLUMNS, REJECTS
from trainer.data.shards import PREPROCESSING


def pipeline_flags(windows: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[str]:
    """Return the options of `python -m beam_pipeline` for such images.

    Args:
        windows: as in a manifest: name, center and width in Hounsfield units.
        options: `ShardDirectory.preprocessing`.

    Raises:
        UsageError: an option is unknown.
    """
    missing = [name for name in PREPROCESSING[:-1] if name not in options]
    if missing:
        raise UsageError(f"how the run's images were made is not known: no {', '.join(missing)}")
    names = ("image_size", "hu_repair", "image_id", "orientation")
    flags = [f"--{name}={options[name]}" for name in names if name in options]
    if options["hu"]:
        return [*flags, "--hu"]
    # Windows of the files themselves have a name alone.
    parts = [[w["name"], w["center"], w["width"]] for w in windows]
    named = [":".join(str(part) for part in window if part is not None) for window in parts]
    return [*flags, f"--voi={options['voi']}", f"--windows={','.join(named)}"]


@contextmanager
def converted(
    source: str, flags: Sequence[str], *, show_progress: bool = False
) -> Iterator[tuple[Path, pd.DataFrame]]:
    """Convert DICOM files to a shard directory that exists while the block runs.

    All slices are in split `test`. The directory has no data card.

    Args:
        source: as the pipeline's `--input`.
        flags: further options of the pipeline.
        show_progress: whether the pipeline shows its progress on stdout.

    Yields:
        The directory; and the rejected files: source, image_id, reason and detail.

    Raises:
        UsageError: no file was converted; the message is the pipeline's.
        StorageError: a store failed, or the disk is full.
    """
    # SIGTERM ends the process as sys.exit does, so that no images stay on the disk.
    ending = on_sigterm(lambda number, _: sys.exit(128 + number))
    # Workers of an interrupted pipeline may still write.
    temporary = TemporaryDirectory(prefix="headct-", ignore_cleanup_errors=True)
    with ending, temporary as folder:
        output = Path(folder) / "shards"
        given = ["--input", source, "--output", str(output), "--max_reject_fraction", "1", *flags]
        sys.stdout.flush()
        done = subprocess.run(
            [sys.executable, "-m", "beam_pipeline", *given],
            env={**os.environ, STARTED_BY: STEP, "TMPDIR": folder},
            stdout=None if show_progress else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            kind = StorageError if done.returncode == StorageError.exit_code else UsageError
            told = lines[-1].removeprefix("beam_pipeline: error: ")
            if told.startswith(f"output {output} lies in"):
                told = (
                    f"the temporary folder {gettempdir()} lies in the input {source}; set TMPDIR to"
                    " a folder outside of it"
                )
            raise kind(told.removesuffix(f" {output}/{REJECTS} lists all"))
        rows = [parse_json(row, REJECTS) for row in (output / REJECTS).read_bytes().splitlines()]
        yield output, pd.DataFrame(rows, columns=[*REJECT_COLUMNS], dtype=str)
