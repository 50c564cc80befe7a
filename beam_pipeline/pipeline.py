"""The data flow, from top to bottom. Only keys move between steps; no step hands on pixels."""

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_pipeline.options import LOCAL, Options
from beam_pipeline.transforms import FinishDirectory, InspectFiles, PlanShards, WriteShards


def build(pipeline: beam.Pipeline, options: Options, *, local: bool) -> None:
    """DICOM files to a shard directory.

    Args:
        pipeline: to add the steps to.
        options: of the run.
        local: whether to work in processes of this machine instead of the runner's workers.
    """
    inventory = pipeline | InspectFiles(options, local=local)  # frames: a row a file
    plan = inventory | PlanShards(options)
    results = plan.shards | WriteShards(options, local=local)  # ShardResult
    plan[PlanShards.PLAN] | FinishDirectory(options, results)  # writes manifest.json


def run(options: Options, runner: str, beam_argv: list[str]) -> None:
    """Run the pipeline to its end.

    Args:
        options: of the run.
        runner: `local`, or the name of a Beam runner.
        beam_argv: arguments for that runner.
    """
    local = runner == LOCAL
    # By name: Beam's DirectRunner would look for a binary on the network and behave accordingly.
    chosen = FnApiRunner() if local else runner
    with beam.Pipeline(runner=chosen, options=PipelineOptions(beam_argv)) as pipeline:
        build(pipeline, options, local=local)
