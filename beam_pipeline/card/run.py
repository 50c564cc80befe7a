"""When a run was started, on what, and how long it took."""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from headct.layout import STARTS
from headct.stores import Folder


@dataclass(frozen=True)
class Run:
    """How a directory came to be.

    Attributes:
        runner: that wrote it in the end.
        started: the first time, ISO 8601.
        starts: how often: more than once if it was stopped and resumed.
        seconds: from the first start to the end, pauses included.
    """

    runner: str
    started: str
    starts: int
    seconds: float

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> "Run | None":
        """What a manifest tells of its run; None if it tells nothing."""
        with suppress(KeyError, TypeError, ValueError):
            run = manifest["run"]
            return cls(
                str(run["runner"]), str(run["started"]), int(run["starts"]), float(run["seconds"])
            )
        return None


def record_start(folder: Folder, runner: str) -> None:
    """Leave word in an unfinished directory that a run starts now; raises as Folder.write does."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    starts = [*_read_starts(folder), {"at": now, "runner": runner}]
    folder.write(STARTS, json.dumps(starts).encode(), durable=False)


def find_run(folder: Folder) -> Run | None:
    """The run that ends now; None if nobody left word of its start."""
    starts = _read_starts(folder)
    with suppress(LookupError, TypeError, ValueError):
        began = datetime.fromisoformat(starts[0]["at"])
        seconds = (datetime.now(UTC) - began).total_seconds()
        # The clocks of a launcher and a worker may differ.
        return Run(starts[-1]["runner"], starts[0]["at"], len(starts), round(max(seconds, 0.0), 1))
    return None


def _read_starts(folder: Folder) -> list[dict[str, str]]:
    if not folder.exists(STARTS):
        return []
    with suppress(ValueError, FileNotFoundError):  # a power failure cut it, or another run is done
        starts = json.loads(folder.read(STARTS))
        if isinstance(starts, list):
            return [
                each for each in starts if isinstance(each, dict) and {"at", "runner"} <= {*each}
            ]
    return []
