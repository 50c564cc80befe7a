"""The last look at files that were rejected: before a run says that it is complete."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipeline.dicom.dataset import MAX_FILE_BYTES
from beam_pipeline.directory.unfinished import Unfinished
from beam_pipeline.errors import Reason, Rejected, StoreError
from beam_pipeline.layout import SHARDS_A_PART, inventory_table, plan_table
from beam_pipeline.planning.plan_shards import Plan
from beam_pipeline.storage import FileInfo, InputFiles
from beam_pipeline.storage.inputs import Reading
from beam_pipeline.storage.sources import decode_source
from beam_pipeline.writing.shards import ShardResult

_UNREAD = frozenset({Reason.VANISHED, Reason.READ_ERROR})
_DECODED_TWICE = frozenset({Reason.DECODER_CRASHED, Reason.DECODER_TIMED_OUT})


class Rejection(NamedTuple):
    """A file that was rejected.

    Attributes:
        file: as it was listed.
        reason: why.
    """

    file: FileInfo
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
        StoreError: such files are another slice, or a slice, when the same command reads them.
    """
    rejections = [*_of_shards(unfinished, results), *_of_headers(unfinished, plan.files_seen)]
    if passing := count_passing(rejections, files):
        raise StoreError(files.root, f"{passing} files came back or changed during the run")


def count_passing(rejections: Iterable[Rejection], files: InputFiles) -> int:
    """Count the files that would not be rejected for the same reason now.

    Raises:
        StoreError: the input's store fails.
    """
    with files.reading() as reading:
        looks = reading.ahead(rejections, partial(_look, reading))
        return sum(_passes(rejection, look, files) for rejection, look in looks)


def _look(reading: Reading, rejection: Rejection) -> Future[int]:
    if rejection.reason not in _UNREAD:
        return Future()
    # A link that led nowhere when it was listed need not lead to a folder that is there.
    again = bool(rejection.file.version)
    return reading.part(rejection.file.path, 0, MAX_FILE_BYTES, len, again=again)


def _passes(rejection: Rejection, look: Future[int], files: InputFiles) -> bool:
    if rejection.reason in _UNREAD:
        try:
            look.result()
        except OSError as error:
            return Rejected.unread(error).reason != rejection.reason
        return True
    if rejection.reason == Reason.CHANGED:
        return True
    # Caught while it was copied again; a version may be told in another way than when listed.
    now = files.info(rejection.file.path)
    return now is not None and now.size != rejection.file.size


def _of_headers(unfinished: Unfinished, files_seen: int) -> Iterator[Rejection]:
    """Files whose headers could not be read."""
    number, seen = 0, 0
    while seen < files_seen:
        table = unfinished.read(inventory_table(number), ("source", "size", "version", "reason"))
        reasons = pc.cast(table["reason"], pa.string())
        unread = table.filter(pc.is_in(reasons, pa.array(sorted(_UNREAD))))
        yield from map(_rejection, unread.to_pylist())
        number, seen = number + 1, seen + len(table)


def _of_shards(unfinished: Unfinished, results: Sequence[ShardResult]) -> Iterator[Rejection]:
    """Files that could not be written, though their headers were fine."""
    for number, result in enumerate(results):
        reasons = {row["image_id"]: row["reason"] for row in result.rejects}
        if not reasons:
            continue
        part, batch = divmod(number, SHARDS_A_PART)
        for row in unfinished.read_batch(plan_table(part), batch).to_pylist():
            reason = reasons.get(row["image_id"])
            if reason is not None and reason not in _DECODED_TWICE:
                yield _rejection(row | {"reason": reason})


def _rejection(row: dict[str, Any]) -> Rejection:
    file = FileInfo(decode_source(row["source"]), row["size"], row["version"])
    return Rejection(file, row["reason"])
