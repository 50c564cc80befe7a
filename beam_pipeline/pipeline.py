"""The Beam pipeline; steps pass each other only numbers of tables."""

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_pipeline.options import Options
from beam_pipeline.transforms import FinishDirectory, InspectFiles, PlanShards, WriteShards


def build(pipeline: beam.Pipeline, options: Options) -> None:
    """Add the steps from DICOM files to a shard directory, for any runner."""
    (
        pipeline
        | InspectFiles(options)  # one element: outcomes of parts of the inventory
        | PlanShards(options)  # numbers of shards
        | WriteShards(options)  # one element: outcomes of shards
        | FinishDirectory(options)  # writes manifest.json
    )


def run_here(options: Options) -> None:
    """Run the pipeline locally, and wait for its end."""
    # FnApiRunner, because Beam's DirectRunner looks for a binary on the network.
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        build(pipeline, options)
