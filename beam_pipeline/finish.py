"""The end of a run: look at rejected files again, describe the shards, complete.

A refused run fails its job: the job's state must not say that the directory is complete. The reason
is written to the output first. A runner that retries the step gets the same result.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipeline.dicom.dataset import MAX_FILE_BYTES
from beam_pipeline.errors import AlreadyComplete, Refusal, TooManyRejects
from beam_pipeline.options import Options
from beam_pipeline.progress import report_refusal
from beam_pipeline.shards.manifest import describe_shards, encode_json
from beam_pipeline.shards.output import finish_output, write_refusal
from beam_pipeline.shards.rejects import Reject, check_rejects, read_rejects
from beam_pipeline.shards.unfinished import Plan, Unfinished
from beam_pipeline.shards.writer import ShardResult
from headct.commands import spell
from headct.errors import HeadctError, OutputError, StoreError, UsageError
from headct.layout import (
    CARD,
    CARD_ATTEMPTS,
    INDEX,
    MANIFEST,
    REJECTS_TABLE,
    SHARDS_A_PART,
    inventory_table,
    plan_table,
    written_table,
)
from headct.reasons import Reason, Rejected
from headct.stores import Folder, InputFiles, Reading, decode_source, find_input


def finish_directory(written: int | HeadctError, options: Options) -> None:
    """Complete the shard directory, or record why it cannot be and raise that.

    Args:
        written: how many shards were, or what made it impossible to write them all.
        options: of the run.

    Raises:
        Refusal: the directory cannot be completed.
    """
    folder = options.files.folder
    try:
        if isinstance(written, HeadctError):
            raise written
        _finish(Unfinished(folder), written, options)
        finish_output(folder)
    except AlreadyComplete:
        folder.remove_partial()  # of workers that were ended with this run
        finish_output(folder)  # what this run wrote after the other had removed it all
    except HeadctError as error:
        error = _with_page(error, folder)
        report_refusal(error)
        with suppress(HeadctError):  # the store that failed may be that of the output
            write_refusal(folder, error.exit_code, str(error))
        raise Refusal(str(error), error.exit_code) from None


def _with_page(error: HeadctError, folder: Folder) -> HeadctError:
    """Write a page about too many rejects, and return the error that names it."""
    if not isinstance(error, TooManyRejects):
        return error
    # Imported late: only a refused run needs it.
    from beam_pipeline.card.card import render_refused

    try:
        folder.write(CARD, render_refused(error.files_seen, read_rejects(folder)).encode())
    except Exception:  # of the page, which is only a help: the refusal has to be told
        return error
    explanation = f"{error.explanation}, and {CARD} explains each reason"
    return TooManyRejects(error.files_seen, error.by_reason, error.allowed, explanation)


def _finish(unfinished: Unfinished, written: int, options: Options) -> None:
    folder, files = unfinished.folder, options.files
    unfinished.check_needed()  # a runner may do this step again, which was done
    plan = unfinished.read_plan()
    if written != len(plan.shards):
        raise OutputError(f"{written} of {len(plan.shards)} shards were written")
    parts = unfinished.read_all([*map(written_table, plan.shards)], columns=[])
    results = [ShardResult.of(part) for part in parts]
    rejects: list[Reject] = unfinished.read(REJECTS_TABLE).to_pylist()
    rejects += [reject for result in results for reject in result.rejects]
    if rejects:  # else the input is not needed any more
        check_rejections(unfinished, plan, results, find_input(files.input, files.storage_patience))
    check_rejects(unfinished, plan.files_seen, rejects, options.run.max_reject_fraction)
    folder.remove_partial()  # of workers that died
    folder.make_durable(result.file for result in results)
    manifest = describe_shards(unfinished, plan, options, results, rejects)
    if may_try_card(folder):
        with card_optional(folder):
            _write_card(folder, options, manifest, rejects)
    folder.write(MANIFEST, encode_json(manifest))


def _write_card(
    folder: Folder, options: Options, manifest: dict[str, Any], rejects: Sequence[Reject]
) -> None:
    # Imported late: only this step of a run needs it.
    from beam_pipeline.card.card import write_card

    files, timeout = options.files, min(options.run.decode_timeout, CARD_PATIENCE)
    try:
        source = find_input(files.input, min(files.storage_patience, CARD_PATIENCE))
    except (StoreError, UsageError):  # it was there when the run began
        source = None
    with folder.open(INDEX) as index:
        write_card(folder, index, manifest, rejects, source, timeout)


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


CARD_PATIENCE = 30.0  # seconds for a slice that was decoded before
_MOST_ATTEMPTS = 2  # a third would end the process a third time

_logger = logging.getLogger(__name__)


def may_try_card(folder: Folder) -> bool:
    """Whether to make the card, which may have ended the processes that tried it before.

    Counts the attempt: one that ends its process, as when memory runs out, leaves no other trace.

    Raises:
        OutputError: the attempt cannot be recorded.
        StoreError: the folder's store fails.
    """
    folder.remove(CARD)  # of a run that was refused
    attempts = 0
    if folder.exists(CARD_ATTEMPTS):
        with suppress(ValueError):
            attempts = int(folder.read(CARD_ATTEMPTS))
    if attempts >= _MOST_ATTEMPTS:
        _warn(folder, "the processes that made it ended")
        return False
    folder.write(CARD_ATTEMPTS, str(attempts + 1).encode(), durable=False)
    return True


@contextmanager
def card_optional(folder: Folder) -> Iterator[None]:
    """Let the block fail with a warning, unless the output cannot be written.

    Raises:
        AlreadyComplete: another run has completed the directory.
        OutputError: the output cannot be written.
        StoreError: the folder's store fails.
    """
    try:
        yield
    except (AlreadyComplete, OutputError, StoreError):
        raise
    except Exception as error:  # whatever a card's bug raises: the shards are good without it
        _logger.debug("The data card", exc_info=True)
        _warn(folder, type(error).__name__)


def _warn(folder: Folder, why: str) -> None:
    _logger.warning(
        "The data card could not be made (%s); %s makes it.", why, spell("card", shards=folder.url)
    )
