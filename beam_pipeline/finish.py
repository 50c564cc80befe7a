"""The end of a run: the directory described and complete, or why it is not."""

import pandas as pd

from beam_pipeline.errors import OutputError, PipelineError, TooManyRejects, UsageError
from beam_pipeline.manifest import REJECTS, count_reasons, encode_rejects, write_description
from beam_pipeline.options import Options
from beam_pipeline.output import finish_output, write_refusal
from beam_pipeline.planning import PLAN, REJECT_COLUMNS, REJECTS_TABLE, Plan
from beam_pipeline.progress import report_refusal
from beam_pipeline.shards import ShardResult, written_name
from beam_pipeline.storage import Folder
from beam_pipeline.unfinished import Unfinished


def check_rejects(files_seen: int, rejects: pd.DataFrame, allowed: float) -> None:
    """Raise if too many files are rejected to trust the rest.

    Raises:
        TooManyRejects: more than the allowed fraction.
        UsageError: all of them.
    """
    if len(rejects) > allowed * files_seen:
        raise TooManyRejects(files_seen, count_reasons(rejects), allowed)
    if len(rejects) == files_seen:
        raise UsageError(f"none of {files_seen} files can be used; see rejects.jsonl")


def finish_directory(written: int | PipelineError, options: Options) -> None:
    """Complete the shard directory, or leave word of why it cannot be.

    Args:
        written: how many shards were, or what made it impossible to write them all.
        options: of the run.

    Raises:
        PipelineError: not even that word could be left.
    """
    folder = Folder(options.output, options.storage_patience)
    try:
        if isinstance(written, PipelineError):
            raise written
        _finish(Unfinished(folder), written, options)
    except PipelineError as error:
        report_refusal(error)
        write_refusal(folder, error.exit_code, str(error))
    else:
        finish_output(folder)


def _finish(unfinished: Unfinished, written: int, options: Options) -> None:
    folder = unfinished.folder
    plan = Plan.decode(folder.read(PLAN))
    results = []
    if written:
        parts = unfinished.read_all([*map(written_name, plan.shards)], columns=[])
        results = [ShardResult.of(part) for part in parts]
    planned = unfinished.read(REJECTS_TABLE).to_pandas()
    found = [reject for result in results for reject in result.rejects]
    rejects = pd.concat([planned, pd.DataFrame(found, columns=list(REJECT_COLUMNS))])
    folder.write(REJECTS, encode_rejects(rejects))
    check_rejects(plan.files_seen, rejects, options.max_reject_fraction)
    if written != len(plan.shards):
        raise OutputError(f"{written} of {len(plan.shards)} shards were written")
    folder.remove_partial()  # of workers that died
    folder.make_durable(result.file for result in results)
    write_description(unfinished, plan, options, results, rejects)
