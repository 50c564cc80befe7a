"""The end of a run: the directory described and complete, or why it is not."""

from collections.abc import Sequence

import pandas as pd

from beam_pipeline.errors import OutputError, PipelineError, TooManyRejects, UsageError
from beam_pipeline.manifest import REJECTS, count_reasons, encode_rejects, write_description
from beam_pipeline.options import Options
from beam_pipeline.output import finish_output, write_refusal
from beam_pipeline.plan import Plan
from beam_pipeline.shards import ShardResult
from beam_pipeline.storage import Folder


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


def finish_directory(
    plan: Plan | PipelineError, results: Sequence[ShardResult | PipelineError], options: Options
) -> None:
    """Complete the shard directory, or leave word of why it cannot be.

    Args:
        plan: or what made planning impossible.
        results: of every shard, or what made writing it impossible.
        options: of the run.
    """
    folder = Folder(options.output)
    try:
        if isinstance(plan, PipelineError):
            raise plan
        written = _written(results)
        rejects = pd.concat([plan.rejects, *(result.rejects for result in written)])
        folder.write(REJECTS, encode_rejects(rejects))
        check_rejects(plan.files_seen, rejects, options.max_reject_fraction)
        if len(written) != plan.shard_count:
            raise OutputError(f"{len(written)} of {plan.shard_count} shards were written")
        folder.remove_partial()  # of workers that died
        folder.make_durable(result.file for result in written)
        write_description(folder, plan, options, written, rejects)
    except PipelineError as error:
        write_refusal(folder, error.exit_code, str(error))
    else:
        finish_output(folder)


def _written(results: Sequence[ShardResult | PipelineError]) -> list[ShardResult]:
    written = []
    for result in results:
        if isinstance(result, PipelineError):
            raise result
        written.append(result)
    return written
