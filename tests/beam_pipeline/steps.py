"""The pipeline's steps in this process, without Beam."""

from beam_pipeline.options import Options
from beam_pipeline.planning.inventory import inspect_part, list_parts
from beam_pipeline.planning.plan_shards import plan_shards
from beam_pipeline.shards.output import prepare_output, record_start
from beam_pipeline.shards.writer import write_shard
from beam_pipeline.workers import Later, Watch


def write_shards(options: Options) -> int:
    """All steps but the last; how many shards were written."""
    prepare_output(options.files.folder, options)
    record_start(options.files.folder, "local")
    for number, _ in enumerate(list_parts(options)):
        inspect_part(number, Watch(), options=options)
    plan = plan_shards(1, options)
    for number in range(len(plan.shards)):
        result = write_shard(number, Watch(), options=options)
        if isinstance(result, Later):
            result.finish()
    return len(plan.shards)
