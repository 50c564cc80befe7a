"""The end of a run: the directory described and complete, or why it is not.

A run that is refused fails its job: whoever watches the job's state must not believe in a directory
that is not there. The reason is in the output before that. A runner that tries the step again does
the same again.
"""

from contextlib import suppress

from beam_pipeline.directory.rejects import Reject, check_rejects, read_rejects
from beam_pipeline.directory.unfinished import Unfinished
from beam_pipeline.errors import AlreadyComplete, Refusal, TooManyRejects
from beam_pipeline.options import Options
from beam_pipeline.planning.plan_shards import Plan
from beam_pipeline.progress import report_refusal
from beam_pipeline.writing.manifest import write_description
from beam_pipeline.writing.output import finish_output, write_refusal
from beam_pipeline.writing.second_look import check_rejections
from beam_pipeline.writing.shards import ShardResult
from headct.errors import HeadctError, OutputError
from headct.layout import CARD, REJECTS_TABLE, written_table
from headct.stores import Folder, find_input


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
    plan = Plan.decode(unfinished.read_plan())
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
    write_description(unfinished, plan, options, results, rejects)
