"""Runs the pipeline on a Beam runner, and shows meanwhile what the output folder tells of it."""

import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from beam_pipeline.errors import Interrupted, PipelineError, RunnerError
from beam_pipeline.layout import JOB
from beam_pipeline.options import Options
from beam_pipeline.progress import Watcher
from beam_pipeline.runners import DATAFLOW, Launch
from beam_pipeline.running.jobs import (
    Handle,
    Job,
    SubmittedJob,
    ask_for,
    flink_cluster,
    running_job,
)
from beam_pipeline.storage import Folder, is_local

_CANCEL_SECONDS = 60.0
_LOOK_SECONDS = 1.0  # between looks at a local folder,
_REMOTE_LOOK_SECONDS = 10.0  # and at another
_CAUSE_LENGTH = 300

_logger = logging.getLogger(__name__)


def launch(options: Options, launched: Launch, watcher: Watcher, console: Console) -> bool:
    """Run the pipeline to its end; or watch the job that the same command submitted before.

    Returns:
        Whether it ran: False if a template was all that was asked for.

    Raises:
        RunnerError: the runner failed.
        Interrupted: Ctrl-C was pressed; the message says what becomes of the job.
        StoreError: the output's store fails.
    """
    folder = options.files.folder
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as from Ctrl-C
    with _beam_log() as log:
        try:
            job = _find_job(folder, launched)
            handle = running_job(job, launched) if job else None
            if job and handle:
                _say(console, f"Job {job.id} is still running, {job.link}")
            else:
                handle, job = _submit(options, launched, folder, console)
            if handle is None:
                return False
            _watch(handle, job, launched, watcher)
        except PipelineError:
            raise
        except Exception as error:
            _logger.exception("The pipeline could not be run")
            log.keep = True
            raise RunnerError(
                f"{launched.runner.name} failed: {_cause(error)}{_remedy(error)};"
                f" its log is {log.path}"
            ) from None
    return True


def _submit(
    options: Options, launched: Launch, folder: Folder, console: Console
) -> tuple[Handle | None, Job | None]:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import (
        FlinkRunnerOptions,
        GoogleCloudOptions,
        PipelineOptions,
    )

    from beam_pipeline.pipeline import build

    paths = [path for path in (options.files.input, options.files.output) if is_local(path)]
    if paths:
        _say(console, f"Every worker must find {' and '.join(paths)} at the same path.")
    with tempfile.TemporaryDirectory() as staging:
        arguments = [*launched.arguments, *_staged_package(launched, Path(staging))]
        beam_options = PipelineOptions(arguments)
        cluster = flink_cluster(launched)
        if cluster:
            beam_options.view_as(GoogleCloudOptions).job_name = f"headct-{uuid.uuid4().hex[:12]}"
            if not any(a.startswith("--flink_version") for a in launched.arguments):
                # Beam's job server is made for one version, its newest if nothing is said.
                beam_options.view_as(FlinkRunnerOptions).flink_version = cluster.version()
            for advice in cluster.advice():
                _say(console, advice)
        pipeline = beam.Pipeline(runner=launched.runner.name, options=beam_options)
        build(pipeline, options)
        result = pipeline.run()
    template = beam_options.view_as(GoogleCloudOptions).template_location
    if template:
        _say(
            console,
            f"The template is at {template}; a job made of it writes {options.files.output}.",
        )
        return None, None
    job = _job_of(result, launched, beam_options)
    if job is None:
        _say(console, f"{launched.runner.name} runs the pipeline.")
    else:
        folder.write(JOB, json.dumps(asdict(job)).encode(), durable=False)
        _say(console, f"Job {job.id} was submitted, {job.link}")
    return SubmittedJob(result), job


def _staged_package(launched: Launch, folder: Path) -> Sequence[str]:
    """Arguments that let workers from Beam's own image install what runs here."""
    from apache_beam.options.pipeline_options import (
        PipelineOptions,
        PortableOptions,
        SetupOptions,
        WorkerOptions,
    )

    options = PipelineOptions(list(launched.arguments))
    portable = options.view_as(PortableOptions)
    has_image = options.view_as(WorkerOptions).sdk_container_image or portable.environment_config
    starts_containers = portable.environment_type in (None, "DOCKER")
    if launched.runner.name == "PrismRunner" and portable.environment_type is None:
        starts_containers = False  # its workers are threads of this process
    if has_image or not starts_containers or options.view_as(SetupOptions).setup_file:
        return []
    from beam_pipeline.running.staging import stage_package

    return list(stage_package(folder))


def _job_of(result: Any, launched: Launch, options: Any) -> Job | None:
    """What finds the job again; None if it ends with this process."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions, PortableOptions

    name = launched.runner.name
    if launched.runner is DATAFLOW:
        cloud = options.view_as(GoogleCloudOptions)
        return Job(name, result.job_id(), f"{cloud.project}/{cloud.region}")
    cluster = flink_cluster(launched)
    if cluster:
        return Job(name, options.view_as(GoogleCloudOptions).job_name, cluster.url)
    endpoint = options.view_as(PortableOptions).job_endpoint
    return Job(name, result._job_id, endpoint) if endpoint and endpoint != "embed" else None


def _find_job(folder: Folder, launched: Launch) -> Job | None:
    """The job that an earlier launcher submitted to the same runner."""
    if not folder.exists(JOB):
        return None
    with suppress(ValueError, TypeError, FileNotFoundError):
        job = Job(**json.loads(folder.read(JOB)))
        return job if job.runner == launched.runner.name else None
    return None


def _watch(handle: Handle, job: Job | None, launched: Launch, watcher: Watcher) -> None:
    """Wait for the end of a job."""
    seconds = _LOOK_SECONDS if is_local(watcher.url) else _REMOTE_LOOK_SECONDS
    try:
        while not handle.wait(seconds):
            watcher.look()
    except KeyboardInterrupt:
        raise Interrupted(_after_interrupt(handle, job, launched)) from None


def _after_interrupt(handle: Handle, job: Job | None, launched: Launch) -> str:
    if job is None:
        with suppress(Exception):
            handle.cancel()
        return "interrupted; the same command resumes"
    if not launched.cancel_on_interrupt:
        return (
            f"interrupted; job {job.id} is still running, {job.link}; the same command watches it"
        )
    try:
        ask_for(job, launched).cancel()
    except Exception as error:  # whatever a runner's client raises: the job may go on
        return f"interrupted; job {job.id} could not be canceled ({_cause(error)}), {job.link}"
    with suppress(Exception):  # Beam's, of a job that was canceled
        end = time.monotonic() + _CANCEL_SECONDS
        while time.monotonic() < end:
            if handle.wait(1.0):
                break
        else:
            return f"interrupted; job {job.id} was told to end, and had not yet, {job.link}"
    return f"interrupted; job {job.id} was canceled; the same command resumes"


@dataclass
class _Log:
    path: Path
    keep: bool = False


@contextmanager
def _beam_log() -> Iterator[_Log]:
    """Beam's log goes to a file for the rest of this process, which is kept if the run fails.

    So does what its threads print, which may go on for a while after the run was interrupted.
    """
    descriptor, name = tempfile.mkstemp(prefix="beam_pipeline-", suffix=".log")
    os.close(descriptor)
    log = _Log(Path(name))
    handler = logging.FileHandler(name)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    # The second is what Python goes back to when it ends.
    sys.stderr = sys.__stderr__ = log.path.open("a", buffering=1)  # type: ignore[misc]
    # Threads of gRPC end with tracebacks when the other side of a connection goes away first.
    threading.excepthook = _log_thread
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Processes that are started meanwhile inherit the descriptor.
    terminal = os.dup(2)
    os.dup2(sys.stderr.fileno(), 2)
    try:
        yield log
    finally:
        os.dup2(terminal, 2)
        if not log.keep:
            log.path.unlink(missing_ok=True)


def _log_thread(arguments: threading.ExceptHookArgs) -> None:
    error = arguments.exc_value or arguments.exc_type
    _logger.error("A thread ended with an error", exc_info=error if error else None)  # type: ignore[arg-type]


def _cause(error: BaseException) -> str:
    """The last line of Beam's message, which is that of a worker's traceback if there is one."""
    text = str(error)
    details = getattr(error, "details", None)  # of gRPC's errors
    if callable(details):
        text = details() or text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return text if len(text) <= _CAUSE_LENGTH else f"{text[:_CAUSE_LENGTH]}..."


def _remedy(error: BaseException) -> str:
    """What to do where Beam cannot fetch the program that gives jobs to Flink and Spark."""
    server = re.search(r"(flink|spark)\S*job.server", str(error))
    return (
        f"; give the job server that you have with --{server[1]}_job_server_jar, or the address"
        " of one that runs with --job_endpoint (JOB_ENDPOINT=)"
        if server
        else ""
    )


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
