"""Rejected files: their list, their counts, and the check for too many."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from beam_pipeline.errors import TooManyRejects
from beam_pipeline.shards.unfinished import Unfinished
from headct.errors import UsageError
from headct.layout import REJECTS
from headct.reasons import advice_for
from headct.stores import Folder

Reject = dict[str, str]  # a text per REJECT_COLUMNS


def check_rejects(
    unfinished: Unfinished, files_seen: int, rejects: list[Reject], allowed: float
) -> None:
    """Raise an error if too many files were rejected, after writing the list of rejects.

    No list is written otherwise: a concurrent run may have completed the directory, with a list
    that includes rejects of the writing step.

    Args:
        unfinished: the output's unfinished area.
        files_seen: number of files in the input.
        rejects: one row per rejected file, so far.
        allowed: fraction of the files.

    Raises:
        TooManyRejects: more than the allowed fraction.
        UsageError: all files were rejected.
        AlreadyComplete: another run has completed the directory.
        OutputError: the rejects cannot be listed.
        StoreError: the folder's store fails.
    """
    too_many = len(rejects) > allowed * files_seen
    if not too_many and len(rejects) < files_seen:
        return
    unfinished.check_needed()
    unfinished.folder.write(REJECTS, encode_rejects(rejects))
    explanation = _explain(unfinished.folder, rejects)
    if too_many:
        raise TooManyRejects(files_seen, count_reasons(rejects), allowed, explanation)
    raise UsageError(f"none of {files_seen} files can be used. {explanation}")


def read_rejects(folder: Folder) -> list[Reject]:
    """Return the listed rejects of a run.

    Raises:
        OSError: the list cannot be read.
        StoreError: the folder's store fails.
    """
    return [json.loads(line) for line in folder.read(REJECTS).splitlines()]


def _explain(folder: Folder, rejects: Sequence[Reject]) -> str:
    """Return the commonest reason with example and advice, and the path of the full list."""
    counts = count_reasons(rejects)
    commonest = max(counts, key=lambda reason: counts[reason])
    source = min(row["source"] for row in rejects if row["reason"] == commonest)
    example = source if source.isprintable() else ascii(source)
    return (
        f"The commonest reason is {commonest}, as for {example}: {advice_for(commonest)} "
        f"{folder.url.rstrip('/')}/{REJECTS} lists all"
    )


def encode_rejects(rejects: Iterable[Reject]) -> bytes:
    """Return the rejects as JSON lines, ordered by source."""
    rows = sorted(rejects, key=lambda row: row["source"])
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """Count the rejected files per reason."""
    return dict(sorted(Counter(row["reason"] for row in rejects).items()))
