"""The last look at files that were rejected: before a run says that it is complete."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipeline.dicom.dataset import MAX_FILE_BYTES
from beam_pipeline.directory.unfinished import Unfinished
from beam_pipeline.planning.plan_shards import Plan
from beam_pipeline.writing.shards import ShardResult
from headct.errors import StoreError
from headct.layout import REJECTS_TABLE, SHARDS_A_PART, inventory_table, plan_table
from headct.reasons import Reason, Rejected
from headct.stores import InputFiles, Reading, decode_source

_UNREAD = frozenset({Reason.VANISHED, Reason.READ_ERROR})


class Unread(NamedTuple):
    """A file that could not be read.

    Attributes:
        source: its path, relative to the input.
        was_there: whether it could be looked at when it was listed.
        reason: why it was rejected.
    """

    source: str
    was_there: bool
    reason: str


def check_rejections(
    unfinished: Unfinished, plan: Plan, results: Sequence[ShardResult], files: InputFiles
) -> None:
    """Raise if files that were missing are back, or files changed while they were read.

    Args:
        unfinished: holds the tables of the run.
        plan: of the shards.
        results: of all shards, in the plan's order.
        files: the input.

    Raises:
        StoreError: there are such files, or the input's store fails.
    """
    files_listed = plan.files_seen + plan.skipped
    unread = [*_of_headers(unfinished, files_listed), *_of_shards(unfinished, results)]
    changed = sum(result.changed for result in results)
    if passing := changed + count_passing(unread, files):
        raise StoreError(files.root, f"{passing} files came back or changed during the run")


def count_passing(unread: Iterable[Unread], files: InputFiles) -> int:
    """Count the files that can be read now, or not for another reason.

    Raises:
        StoreError: the input's store fails.
    """
    with files.reading() as reading:
        looks = reading.ahead(unread, partial(_look, reading))
        return sum(_passes(file, look) for file, look in looks)


def _look(reading: Reading, file: Unread) -> Future[int]:
    # A link that led nowhere when it was listed need not lead to a folder that is there.
    return reading.part(file.source, 0, MAX_FILE_BYTES, len, again=file.was_there)


def _passes(file: Unread, look: Future[int]) -> bool:
    try:
        look.result()
    except OSError as error:
        return Rejected.unread(error).reason != file.reason
    return True


def _of_headers(unfinished: Unfinished, files_listed: int) -> Iterator[Unread]:
    """Files whose headers could not be read."""
    if _UNREAD.isdisjoint(unfinished.read(REJECTS_TABLE, ["reason"])["reason"].to_pylist()):
        return
    number, seen = 0, 0
    while seen < files_listed:
        table = unfinished.read(inventory_table(number), ("source", "version", "reason"))
        reasons = pc.cast(table["reason"], pa.string())
        unread = table.filter(pc.is_in(reasons, pa.array(sorted(_UNREAD))))
        yield from (_unread(row, row["reason"]) for row in unread.to_pylist())
        number, seen = number + 1, seen + len(table)


def _of_shards(unfinished: Unfinished, results: Sequence[ShardResult]) -> Iterator[Unread]:
    """Files that could not be read any more when they were to be written."""
    for number, result in enumerate(results):
        reasons = {row["image_id"]: row["reason"] for row in result.rejects}
        if _UNREAD.isdisjoint(reasons.values()):
            continue
        part, batch = divmod(number, SHARDS_A_PART)
        for row in unfinished.read_batch(plan_table(part), batch).to_pylist():
            if reasons.get(row["image_id"]) in _UNREAD:
                yield _unread(row, reasons[row["image_id"]])


def _unread(row: dict[str, Any], reason: str) -> Unread:
    return Unread(decode_source(row["source"]), bool(row["version"]), reason)
