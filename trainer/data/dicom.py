"""Conversion of DICOM files to images like those of a run, with the pipeline's command.

The trainer does not import the pipeline: it runs the command, as a user would.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

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
    missing = [name for name in PREPROCESSING if name not in options]
    if missing:
        raise UsageError(f"how the run's images were made is not known: no {', '.join(missing)}")
    flags = [f"--{name}={options[name]}" for name in ("image_size", "hu_repair", "image_id")]
    if options["hu"]:
        return [*flags, "--hu"]
    # Windows of the files themselves have a name alone.
    parts = [[w["name"], w["center"], w["width"]] for w in windows]
    named = [":".join(str(part) for part in window if part is not None) for window in parts]
    return [*flags, f"--voi={options['voi']}", f"--windows={','.join(named)}"]


def convert(source: str, output: Path, flags: Sequence[str]) -> pd.DataFrame:
    """Write a shard directory with all slices of `source` in split `test`.

    Returns:
        The rejected files: source, image_id, reason and detail.

    Raises:
        UsageError: no file was converted; the message is the pipeline's.
        StorageError: a store failed, or the disk is full.
    """
    given = ["--input", source, "--output", str(output), "--max_reject_fraction", "1", *flags]
    argv = [sys.executable, "-m", "beam_pipeline", *given]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        kind = StorageError if done.returncode == StorageError.exit_code else UsageError
        raise kind(lines[-1].removeprefix("beam_pipeline: error: "))
    rejects = [parse_json(row, REJECTS) for row in (output / REJECTS).read_bytes().splitlines()]
    return pd.DataFrame(rejects, columns=[*REJECT_COLUMNS], dtype=str)
