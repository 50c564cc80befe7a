"""(b) A plain Beam pipeline: the same conversion, then Beam's own WriteToTFRecord.

python -m tests.benchmarks.plain_beam --input FOLDER --output FOLDER --workers 2
"""

import argparse
import sys
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from tests.benchmarks.notebook_script import PER_SHARD, convert_file


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--mode", default="multi_processing", help="Beam's direct_running_mode")
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    paths = sorted(map(str, options.input.iterdir()))
    beam_options = PipelineOptions(
        direct_running_mode=options.mode, direct_num_workers=options.workers
    )
    # By name: DirectRunner may fetch and use another runner, for which these options mean nothing.
    with beam.Pipeline(runner=FnApiRunner(), options=beam_options) as pipeline:
        (
            pipeline
            | beam.Create(paths)
            | beam.Reshuffle()
            | beam.Map(convert_file)
            | beam.io.WriteToTFRecord(
                str(options.output / "shard"),
                file_name_suffix=".tfrecord",
                num_shards=-(-len(paths) // PER_SHARD),
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
