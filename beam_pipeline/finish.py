"""The last step of a run: recheck rejected files, describe the shards, write the manifest.

A refused run records the reason in the output and then fails its job, whose state must not say that
the directory is complete. A retry of the step gives the same result.
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
from beam_pipeline.errors import ENDED_BY, AlreadyComplete, Refusal, TooManyRejects
from beam_pipeline.options import Options
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
    """Complete the shard directory, or record and raise the reason why not.

    Args:
        written: number of written shards, or the error that prevented a shard.
        options: options of the run.

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
        folder.remove_partial()  # of this run's workers
        finish_output(folder)  # tables that this run wrote after the other run's cleanup
    except HeadctError as error:
        error = _with_page(error, folder)
        ENDED_BY[folder.url] = error
        with suppress(HeadctError):  # the output's store may have failed
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
    except Exception:  # the page is optional; the refusal must be reported
        return error
    explanation = f"{error.explanation}, and {CARD} explains each reason"
    return TooManyRejects(error.files_seen, error.by_reason, error.allowed, explanation)


def _finish(unfinished: Unfinished, written: int, options: Options) -> None:
    folder, files = unfinished.folder, options.files
    unfinished.check_needed()  # a runner may repeat this step
    plan = unfinished.read_plan()
    if written != len(plan.shards):
        raise OutputError(f"{written} of {len(plan.shards)} shards were written")
    parts = unfinished.read_all([*map(written_table, plan.shards)], columns=[])
    results = [ShardResult.of(part) for part in parts]
    rejects: list[Reject] = unfinished.read(REJECTS_TABLE).to_pylist()
    rejects += [reject for result in results for reject in result.rejects]
    if rejects:  # otherwise the input is no longer needed
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
    except (StoreError, UsageError):  # the input has disappeared during the run
        source = None
    with folder.open(INDEX) as index:
        write_card(folder, index, manifest, rejects, source, timeout)


_UNREAD = frozenset({Reason.VANISHED, Reason.READ_ERROR})


class Unread(NamedTuple):
    """A file that could not be read.

    Attributes:
        source: path relative to the input.
        was_there: whether the file was accessible when listed.
        reason: reason of the rejection.
    """

    source: str
    was_there: bool
    reason: str


def check_rejections(
    unfinished: Unfinished, plan: Plan, results: Sequence[ShardResult], files: InputFiles
) -> None:
    """Raise a StoreError if missing files are back, or files changed during the run.

    Args:
        unfinished: the tables of the run.
        plan: plan of the shards.
        results: results of all shards, in the plan's order.
        files: the input.

    Raises:
        StoreError: files are back or changed, or the input's store fails.
    """
    files_listed = plan.files_seen + plan.skipped
    unread = [*_of_headers(unfinished, files_listed), *_of_shards(unfinished, results)]
    changed = sum(result.changed for result in results)
    if passing := changed + count_passing(unread, files):
        raise StoreError(files.root, f"{passing} files came back or changed during the run")


def count_passing(unread: Iterable[Unread], files: InputFiles) -> int:
    """Count the files that are now readable, or unreadable for another reason.

    Raises:
        StoreError: the input's store fails.
    """
    with files.reading() as reading:
        looks = reading.ahead(unread, partial(_look, reading))
        return sum(_passes(file, look) for file, look in looks)


def _look(reading: Reading, file: Unread) -> Future[int]:
    # No retry for a link that was dangling when it was listed.
    return reading.part(file.source, 0, MAX_FILE_BYTES, len, again=file.was_there)


def _passes(file: Unread, look: Future[int]) -> bool:
    try:
        look.result()
    except OSError as error:
        return Rejected.unread(error).reason != file.reason
    return True


def _of_headers(unfinished: Unfinished, files_listed: int) -> Iterator[Unread]:
    """Yield the files with unreadable headers."""
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
    """Yield the files that could not be read for writing."""
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


CARD_PATIENCE = 30.0  # seconds per slice, which was decoded before
_MOST_ATTEMPTS = 2  # a third attempt would probably crash again

_logger = logging.getLogger(__name__)


def may_try_card(folder: Folder) -> bool:
    """Return whether to make the card, after counting the attempt.

    The count limits attempts that crash the process, for example when memory runs out.

    Raises:
        OutputError: the attempt cannot be recorded.
        StoreError: the folder's store fails.
    """
    folder.remove(CARD)  # of a refused run
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
    except Exception as error:  # a bug of the card must not fail the run
        _logger.debug("The data card", exc_info=True)
        _warn(folder, type(error).__name__)


def _warn(folder: Folder, why: str) -> None:
    _logger.warning(
        "The data card could not be made (%s); %s makes it.", why, spell("card", shards=folder.url)
    )
