"""The files that were not used: where they are listed, and when they are too many."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from beam_pipeline.errors import TooManyRejects
from beam_pipeline.shards.unfinished import Unfinished
from headct.errors import UsageError
from headct.layout import REJECTS
from headct.reasons import advice_for
from headct.stores import Folder

Reject = dict[str, str]  # a text for each of REJECT_COLUMNS


def check_rejects(
    unfinished: Unfinished, files_seen: int, rejects: list[Reject], allowed: float
) -> None:
    """Raise if there are too many rejects to trust the rest; list them for the user first.

    Nothing is listed otherwise: another run may have completed the directory in the meantime, with
    a list that also has the rejects found while writing.

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
    """Return the rejects that a run has listed.

    Raises:
        OSError: the list cannot be read.
        StoreError: the folder's store fails.
    """
    return [json.loads(line) for line in folder.read(REJECTS).splitlines()]


def _explain(folder: Folder, rejects: Sequence[Reject]) -> str:
    """Return the commonest reason with an example and advice, and where the others are."""
    counts = count_reasons(rejects)
    commonest = max(counts, key=lambda reason: counts[reason])
    source = min(row["source"] for row in rejects if row["reason"] == commonest)
    example = source if source.isprintable() else ascii(source)
    return (
        f"The commonest reason is {commonest}, as for {example}: {advice_for(commonest)} "
        f"{folder.url.rstrip('/')}/{REJECTS} lists all"
    )


def encode_rejects(rejects: Iterable[Reject]) -> bytes:
    """The rejects as JSON lines, ordered by source."""
    rows = sorted(rejects, key=lambda row: row["source"])
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """How many files were rejected for each reason."""
    return dict(sorted(Counter(row["reason"] for row in rejects).items()))
