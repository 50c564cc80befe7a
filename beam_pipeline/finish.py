"""The last step of a run: recheck rejected files, describe the shards, write manifest and card.

A refused run records the reason in the output and then fails its job, whose state must not say that
the directory is complete. A retry of the step gives the same result.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipeline.dicom.dataset import MAX_FILE_BYTES
from beam_pipeline.errors import ENDED_BY, AlreadyComplete, Refusal, TooManyRejects
from beam_pipeline.options import Options
from beam_pipeline.shards.manifest import (
    check_rejects,
    describe_shards,
    encode_json,
    read_rejects,
)
from beam_pipeline.shards.output import finish_output, remove_other_shards, write_refusal
from beam_pipeline.shards.unfinished import Plan, Reject, ShardResult, Unfinished
from headct.commands import is_step, spell
from headct.errors import HeadctError, OutputError, StoreError, UsageError
from headct.layout import (
    CARD,
    MANIFEST,
    REJECTS_TABLE,
    SHARDS_A_PART,
    inventory_table,
    plan_table,
    written_table,
)
from headct.reasons import Reason, Rejected
from headct.stores import Folder, InputFiles, Reading, decode_source, find_input

_logger = logging.getLogger(__name__)

CARD_PATIENCE = 30.0  # seconds per slice, which was decoded before
_UNREAD = frozenset({Reason.VANISHED, Reason.READ_ERROR})


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
        folder.write(CARD, render_refused(error.files, read_rejects(folder)).encode())
    except Exception:  # the page is optional; the refusal must be reported
        return error
    explanation = f"{error.explanation}, and {CARD} explains each reason"
    return TooManyRejects(error.files, error.by_reason, error.allowed, explanation)


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
    allowed = options.run.max_reject_fraction
    check_rejects(unfinished, plan.files_seen, rejects, allowed)
    if plan.not_sampled:  # all files would hide faults in a sample of the slices
        in_sample = [reject for result in results for reject in result.rejects]
        check_rejects(unfinished, plan.slices, in_sample, allowed)
    folder.remove_partial()  # of workers that died
    folder.remove(CARD)  # of a refused run
    remove_other_shards(folder, plan.shards)
    folder.make_durable(result.file for result in results)
    manifest = describe_shards(unfinished, plan, options, results, rejects)
    folder.write(MANIFEST, encode_json(manifest))
    if not is_step():
        _write_card(folder, options, manifest)


def _write_card(folder: Folder, options: Options, manifest: dict[str, Any]) -> None:
    """Write the data card of a complete directory; log a warning if that fails."""
    # Imported late: only this step of a run needs it.
    from beam_pipeline.card.card import write_card

    files, timeout = options.files, min(options.run.decode_timeout, CARD_PATIENCE)
    source = None
    try:
        with suppress(StoreError, UsageError):  # the input has disappeared during the run
            source = find_input(files.input, min(files.storage_patience, CARD_PATIENCE))
        write_card(folder, timeout, source, manifest)
    except Exception as error:  # a failure of the card must not fail the run
        _logger.debug("The data card", exc_info=True)
        command = spell("card", shards=folder.url)
        _logger.warning(
            "The data card could not be made (%s); %s makes it.", type(error).__name__, command
        )


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
    rows = [*_unread_headers(unfinished, plan), *_unread_slices(unfinished, results)]
    passing = sum(result.changed for result in results)
    with files.reading() as reading:
        for row, look in reading.ahead(rows, partial(_look, reading)):
            try:
                look.result()
                passing += 1
            except OSError as error:
                passing += Rejected.unread(error).reason != row["reason"]
    if passing:
        raise StoreError(files.root, f"{passing} files came back or changed during the run")


def _look(reading: Reading, row: dict[str, Any]) -> Future[int]:
    # No retry for a link that was dangling when it was listed: such a file has no version.
    source, again = decode_source(row["source"]), bool(row["version"])
    return reading.part(source, 0, MAX_FILE_BYTES, len, again=again)


def _unread_headers(unfinished: Unfinished, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield the rows of files with unreadable headers: source, version and reason."""
    if _UNREAD.isdisjoint(unfinished.read(REJECTS_TABLE, ["reason"])["reason"].to_pylist()):
        return
    number, seen = 0, 0
    while seen < plan.files_seen + plan.skipped:
        table = unfinished.read(inventory_table(number), ("source", "version", "reason"))
        reasons = pc.cast(table["reason"], pa.string())
        yield from table.filter(pc.is_in(reasons, pa.array(sorted(_UNREAD)))).to_pylist()
        number, seen = number + 1, seen + len(table)


def _unread_slices(
    unfinished: Unfinished, results: Sequence[ShardResult]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the plan of files that could not be read for writing, with the reason."""
    for number, result in enumerate(results):
        rejects = {row["image_id"]: row for row in result.rejects if row["reason"] in _UNREAD}
        if rejects:
            part, batch = divmod(number, SHARDS_A_PART)
            for row in unfinished.read_batch(plan_table(part), batch).to_pylist():
                if row["image_id"] in rejects:
                    yield row | {"reason": rejects[row["image_id"]]["reason"]}
