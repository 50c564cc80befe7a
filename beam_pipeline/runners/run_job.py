"""Run the pipeline as a job on a Beam runner; show progress from the output folder."""

import json
import logging
import math
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from beam_pipeline.errors import RunnerError
from beam_pipeline.options import Options
from beam_pipeline.progress import Display
from beam_pipeline.runners.choose import DATAFLOW, ChosenRunner
from beam_pipeline.runners.failures import cause, lost_service, lost_worker
from beam_pipeline.runners.job_server import prepare_servers
from beam_pipeline.runners.jobs import (
    ENDED,
    UNKNOWN,
    FlinkCluster,
    Job,
    JobClient,
    SubmittedJob,
    connect,
    flink_cluster,
)
from beam_pipeline.shards.output import read_refusal
from headct.errors import HeadctError, Interrupted
from headct.layout import JOB
from headct.stores import Folder, is_local
from headct.terminal import LineFormatter

_CANCEL_SECONDS = 60.0
_REFUSED_SECONDS = 30.0  # time for a runner to repeat the step that refuses a run
_FIRST_SIGN_SECONDS = 60.0  # workers should have started by then
_LOOK_SECONDS = 1.0  # interval between reads of a local folder
_REMOTE_LOOK_SECONDS = 10.0

_logger = logging.getLogger(__name__)


def run_job(options: Options, chosen: ChosenRunner, poller: Display, console: Console) -> bool:
    """Submit the pipeline, or reattach to an earlier command's job; wait for the job's end.

    Returns:
        False if the runner only wrote a template, True if the job ran.

    Raises:
        RunnerError: the runner failed.
        Refusal: a worker ended the run.
        Interrupted: Ctrl-C was pressed; the message says whether the job continues.
        StoreError: the output's store fails.
    """
    folder = options.files.folder
    job: Job | None = None
    keep_log = False
    log = _create_log()
    try:
        with _sigterm_interrupts(), _redirected_output(log):
            try:
                job = _find_job(folder, chosen)
                handle: SubmittedJob | JobClient | None = _reattach(job, chosen, console)
                if handle is None:
                    job = None
                    handle, job = _submit(options, chosen, folder, console)
                if handle is None:
                    return False
                _watch(handle, job, chosen, poller, console)
            except HeadctError:
                raise
            except Exception as error:
                refusal = read_refusal(folder)  # a refused run fails its job
                if refusal is not None:
                    raise refusal from None
                _logger.exception("The pipeline could not be run")
                keep_log = True
                raise RunnerError(
                    f"{chosen.runner.name} failed: {cause(error)}{_after_failure(error, job)};"
                    f" its log is {log}"
                ) from None
    finally:
        if not keep_log:
            log.unlink(missing_ok=True)
    return True


def _find_job(folder: Folder, chosen: ChosenRunner) -> Job | None:
    """Return the job that an earlier command submitted to the same runner."""
    if not folder.exists(JOB):
        return None
    with suppress(ValueError, TypeError, FileNotFoundError):
        job = Job(**json.loads(folder.read(JOB)))
        if all(isinstance(value, str) for value in asdict(job).values()):
            return job if job.runner == chosen.runner.name else None
    return None


def _reattach(job: Job | None, chosen: ChosenRunner, console: Console) -> JobClient | None:
    """Return a client for a job that is still running."""
    if job is None:
        return None
    client = connect(job, chosen.arguments)
    if client.state() in (*ENDED, UNKNOWN):
        return None
    _print(console, f"Job {job.id} is still running, {job.link}")
    return client


def _submit(
    options: Options, chosen: ChosenRunner, folder: Folder, console: Console
) -> tuple[SubmittedJob | None, Job | None]:
    """Submit the pipeline.

    Returns:
        The job, None for a template; and the record to find the job again, None if the job ends
        with this process.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

    from beam_pipeline.pipeline import build

    paths = [path for path in (options.files.input, options.files.output) if is_local(path)]
    if paths:
        _print(console, f"Every worker must find {' and '.join(paths)} at the same path.")
    with tempfile.TemporaryDirectory() as staging:
        arguments = [*chosen.arguments, *_staged_package(chosen, Path(staging))]
        beam_options = PipelineOptions(arguments)
        prepare_servers(chosen, beam_options, Path(staging))
        cluster = _advising_cluster(chosen, console)
        if cluster:
            beam_options.view_as(GoogleCloudOptions).job_name = f"headct-{uuid.uuid4().hex[:12]}"
        pipeline = beam.Pipeline(runner=chosen.runner.name, options=beam_options)
        build(pipeline, options)
        result = pipeline.run()
    template = beam_options.view_as(GoogleCloudOptions).template_location
    if template:
        _print(
            console,
            f"The template is at {template}; a job made of it writes {options.files.output}.",
        )
        return None, None
    job = _job_of(result, chosen, cluster, beam_options)
    if job is None:
        _print(console, f"{chosen.runner.name} runs the pipeline.")
    else:
        folder.write(JOB, json.dumps(asdict(job)).encode(), durable=False)
        _print(console, f"Job {job.id} was submitted, {job.link}")
    return SubmittedJob(result), job


def _staged_package(chosen: ChosenRunner, folder: Path) -> list[str]:
    """Return Beam's options that install this package on workers of Beam's own image."""
    from apache_beam.options.pipeline_options import (
        PipelineOptions,
        PortableOptions,
        SetupOptions,
        WorkerOptions,
    )

    from beam_pipeline.runners.staging import stage_package

    options = PipelineOptions(list(chosen.arguments))
    portable = options.view_as(PortableOptions)
    has_image = options.view_as(WorkerOptions).sdk_container_image or portable.environment_config
    starts_containers = portable.environment_type in (None, "DOCKER")
    if has_image or not starts_containers or options.view_as(SetupOptions).setup_file:
        return []
    return stage_package(folder)


def _advising_cluster(chosen: ChosenRunner, console: Console) -> FlinkCluster | None:
    """Return the Flink cluster if its given address answers; print advice on its settings."""
    cluster = flink_cluster(chosen)
    if cluster is None:
        return None
    try:
        advice = cluster.advice()
    except (OSError, ValueError, LookupError):
        _logger.warning("%s does not answer as Flink's REST interface does", cluster.url)
        return None
    for sentence in advice:
        _print(console, sentence)
    return cluster


def _job_of(
    result: Any, chosen: ChosenRunner, cluster: FlinkCluster | None, options: Any
) -> Job | None:
    """Return the record to find the job again; None if the job ends with this process."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions, PortableOptions

    name, cloud = chosen.runner.name, options.view_as(GoogleCloudOptions)
    if chosen.runner is DATAFLOW:
        return Job(name, result.job_id(), f"{cloud.project}/{cloud.region}")
    if cluster:
        return Job(name, cloud.job_name, cluster.url)
    endpoint = options.view_as(PortableOptions).job_endpoint
    return Job(name, result._job_id, endpoint) if endpoint and endpoint != "embed" else None


def _watch(
    handle: SubmittedJob | JobClient,
    job: Job | None,
    chosen: ChosenRunner,
    poller: Display,
    console: Console,
) -> None:
    """Wait for a job's end, and show its progress."""
    seconds = _LOOK_SECONDS if is_local(poller.folder.url) else _REMOTE_LOOK_SECONDS
    is_dataflow = chosen.runner is DATAFLOW
    # Dataflow takes minutes to start machines, and reports their start itself.
    expected = math.inf if is_dataflow else time.monotonic() + _FIRST_SIGN_SECONDS
    # Dataflow fails the job after four tries; observers of the job should see this failure.
    patience = math.inf if is_dataflow else _REFUSED_SECONDS
    last_accepted = time.monotonic()
    try:
        while not handle.wait(seconds):
            poller.look()
            if time.monotonic() > expected:
                expected = math.inf
                if not poller.sees_workers():
                    _print(console, _explain_silence(chosen, poller.folder.url))
            refusal = read_refusal(poller.folder)
            if refusal is None:
                last_accepted = time.monotonic()
            elif time.monotonic() - last_accepted > patience:
                with suppress(Exception):  # the runner's client may raise anything
                    (connect(job, chosen.arguments) if job else handle).cancel()
                raise refusal
    except KeyboardInterrupt:
        raise Interrupted(_after_interrupt(handle, job, chosen)) from None


def _explain_silence(chosen: ChosenRunner, output: str) -> str:
    """Return advice on where to find why workers do not start."""
    from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

    options = PipelineOptions(list(chosen.arguments)).view_as(PortableOptions)
    where = {
        "EXTERNAL": f"look at the output of the pool at {options.environment_config}",
        "PROCESS": "look at the boot program's output, in the logs of the cluster's machines",
        "LOOPBACK": "see that the cluster's machines reach this one, where the workers are",
    }.get(options.environment_type or "DOCKER", "look at the containers' logs")
    return (
        f"No worker has written to {output} for {_FIRST_SIGN_SECONDS:.0f} s. See that the cluster "
        f"has free slots and that `python -c 'import beam_pipeline'` works where workers start; "
        f"{where}."
    )


def _after_failure(error: Exception, job: Job | None) -> str:
    """Return the job's fate and advice; empty if the fate is unknown."""
    if lost_service(error) and job:
        return (
            f" (the job service was lost; the cluster may still run job {job.id}); the same command"
            " resumes"
        )
    if lost_service(error) or lost_worker(error):
        return " (a worker or the job server was lost); the same command resumes"
    return ""


def _after_interrupt(
    handle: SubmittedJob | JobClient, job: Job | None, chosen: ChosenRunner
) -> str:
    """Return the fate of an interrupted job; cancel the job if the user asked for it."""
    if job is None:
        with suppress(Exception):  # the runner's client may raise anything
            handle.cancel()
        return "interrupted; the same command resumes"
    if not chosen.cancel_on_interrupt:
        return (
            f"interrupted; job {job.id} is still running, {job.link}; the same command watches it"
        )
    client = connect(job, chosen.arguments)
    try:
        client.cancel()
    except Exception as error:  # the runner's client may raise anything
        return f"interrupted; job {job.id} could not be canceled ({cause(error)}), {job.link}"
    if not client.runs_job:
        return (
            f"interrupted; the job service was asked to cancel job {job.id}, {job.link}; the "
            "cluster may go on to the end; the same command resumes"
        )
    end = time.monotonic() + _CANCEL_SECONDS
    while time.monotonic() < end:
        with suppress(Exception):  # retried
            state = client.state()
            if state in ENDED:
                how = "was canceled" if state == "CANCELLED" else f"had ended before ({state})"
                return f"interrupted; job {job.id} {how}; the same command resumes"
        time.sleep(_LOOK_SECONDS)
    return f"interrupted; job {job.id} was told to end, and had not yet, {job.link}"


def _create_log() -> Path:
    descriptor, name = tempfile.mkstemp(prefix="beam_pipeline-", suffix=".log")
    os.close(descriptor)
    return Path(name)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _redirected_output(log: Path) -> Iterator[None]:
    """Send the log and output of Beam, its threads and servers to a file while the block runs."""
    handler = logging.FileHandler(log)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    terminal = os.dup(2)
    with log.open("a") as file:
        os.dup2(file.fileno(), 2)  # servers that Beam starts inherit the descriptor
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        root.handlers[:] = handlers
        root.setLevel(level)
        handler.close()


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
