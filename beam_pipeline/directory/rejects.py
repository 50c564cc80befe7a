"""The files that were not used: rows of `rejects.jsonl`, and when they are too many."""

import json
from collections import Counter
from collections.abc import Iterable

from beam_pipeline.errors import TooManyRejects, UsageError

REJECTS = "rejects.jsonl"

Reject = dict[str, str]  # source, image_id, reason, detail


def encode_rejects(rejects: Iterable[Reject]) -> bytes:
    """The rejects as JSON lines, ordered by source."""
    rows = sorted(rejects, key=lambda row: row["source"])
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """How many files were rejected for each reason."""
    return dict(sorted(Counter(row["reason"] for row in rejects).items()))


def check_rejects(files_seen: int, rejects: list[Reject], allowed: float) -> None:
    """Raise if too many files are rejected to trust the rest.

    Raises:
        TooManyRejects: more than the allowed fraction.
        UsageError: all of them.
    """
    if len(rejects) > allowed * files_seen:
        raise TooManyRejects(files_seen, count_reasons(rejects), allowed)
    if len(rejects) == files_seen:
        raise UsageError(f"none of {files_seen} files can be used; see {REJECTS}")
