"""Starts of a run, kept in the unfinished directory, for the manifest's `run`."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from headct.layout import STARTS
from headct.stores import Folder


def record_start(folder: Folder, runner: str) -> None:
    """Record in an unfinished directory that a run starts now; raises what Folder.write raises."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    starts = [*_read_starts(folder), {"at": now, "runner": runner}]
    folder.write(STARTS, json.dumps(starts).encode(), durable=False)


def describe_run(folder: Folder) -> dict[str, Any] | None:
    """Return the manifest's `run` for a run that ends now; None if no start was recorded.

    `runner` is the last one; `started` is the first start; `starts` is above 1 if the run was
    resumed; `seconds` are those since the first start, pauses included.
    """
    starts = _read_starts(folder)
    with suppress(LookupError, TypeError, ValueError):
        began = datetime.fromisoformat(starts[0]["at"])
        seconds = (datetime.now(UTC) - began).total_seconds()
        return {
            "runner": starts[-1]["runner"],
            "started": starts[0]["at"],
            "starts": len(starts),
            "seconds": round(max(seconds, 0.0), 1),  # clocks of two machines may differ
        }
    return None


def _read_starts(folder: Folder) -> list[dict[str, str]]:
    if not folder.exists(STARTS):
        return []
    with suppress(ValueError, FileNotFoundError):  # cut by a power failure; or another run is done
        starts = json.loads(folder.read(STARTS))
        if isinstance(starts, list):
            return [
                start
                for start in starts
                if isinstance(start, dict) and {"at", "runner"} <= start.keys()
            ]
    return []
