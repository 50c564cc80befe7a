"""The data flow, from top to bottom: between steps move numbers and names of files, no more."""

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_pipeline.options import LOCAL, Options
from beam_pipeline.transforms import FinishDirectory, InspectFiles, PlanShards, WriteShards


def build(pipeline: beam.Pipeline, options: Options) -> None:
    """DICOM files to a shard directory, on any runner."""
    (
        pipeline
        | InspectFiles(options)  # one element: the parts of the inventory
        | PlanShards(options)  # numbers of shards
        | WriteShards(options)  # one element: those that were written
        | FinishDirectory(options)  # writes manifest.json
    )


def run(options: Options, runner: str, beam_argv: list[str]) -> None:
    """Run the pipeline to its end.

    Args:
        options: of the run.
        runner: `local`, or the name of a Beam runner.
        beam_argv: arguments for that runner.
    """
    # By name: Beam's DirectRunner would look for a binary on the network and behave accordingly.
    chosen = FnApiRunner() if runner == LOCAL else runner
    with beam.Pipeline(runner=chosen, options=PipelineOptions(beam_argv)) as pipeline:
        build(pipeline, options)
