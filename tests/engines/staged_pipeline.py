"""Runs a serialized pipeline in Beam's SDK harness, in a process of its own.

    python -P staged_pipeline.py FOLDER

`FOLDER/staged` holds what a worker of a cluster finds there, and the pipeline as `pipeline.pb`. Its
containers are replaced by the program that they start, `sdk_worker_main`, run by the same Python,
in which what was staged must be installed.
"""

import os
import shlex
import sys
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner


def run(folder: Path) -> None:
    """Run to the end."""
    serialized = (folder / "staged" / "pipeline.pb").read_bytes()
    pipeline = beam_runner_api_pb2.Pipeline.FromString(serialized)
    os.environ["SEMI_PERSISTENT_DIRECTORY"] = str(folder)  # for the harness
    harness = [sys.executable, "-P", "-m", "apache_beam.runners.worker.sdk_worker_main"]
    for environment in pipeline.components.environments.values():
        environment.urn = python_urns.SUBPROCESS_SDK
        environment.payload = shlex.join(harness).encode()
        del environment.dependencies[:]
    FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([])).wait_until_finish()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
