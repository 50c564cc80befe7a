"""Runs the pipeline on a Beam runner, and shows meanwhile what the output folder tells of it."""

import json
import logging
import math
import os
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

from beam_pipeline.errors import RunnerError
from beam_pipeline.options import Options
from beam_pipeline.progress import Watcher
from beam_pipeline.runners.choose import DATAFLOW, Launch
from beam_pipeline.runners.failures import cause, lost_service, lost_worker
from beam_pipeline.runners.flink import FlinkCluster
from beam_pipeline.runners.job_server import prepare_servers
from beam_pipeline.runners.jobs import (
    ENDED,
    Handle,
    Job,
    SubmittedJob,
    ask_for,
    flink_cluster,
    running_job,
)
from beam_pipeline.writing.output import read_refusal
from headct.errors import HeadctError, Interrupted
from headct.layout import JOB
from headct.stores import Folder, is_local
from headct.terminal import LineFormatter

_CANCEL_SECONDS = 60.0
_REFUSED_SECONDS = 30.0  # for which a runner may repeat the step that refuses a run
_FIRST_SIGN_SECONDS = 60.0  # after which workers should have begun
_LOOK_SECONDS = 1.0  # between looks at a local folder,
_REMOTE_LOOK_SECONDS = 10.0  # and at another

_logger = logging.getLogger(__name__)


def launch(options: Options, launched: Launch, watcher: Watcher, console: Console) -> bool:
    """Run the pipeline to its end; or watch the job that the same command submitted before.

    Returns:
        Whether it ran: False if a template was all that was asked for.

    Raises:
        RunnerError: the runner failed.
        Refusal: a worker ended the run.
        Interrupted: Ctrl-C was pressed; the message says what becomes of the job.
        StoreError: the output's store fails.
    """
    folder = options.files.folder
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as from Ctrl-C
    job: Job | None = None
    with _beam_log() as log:
        try:
            job = _find_job(folder, launched)
            handle = running_job(job, launched) if job else None
            if job and handle:
                _say(console, f"Job {job.id} is still running, {job.link}")
            else:
                job = None
                handle, job = _submit(options, launched, folder, console)
            if handle is None:
                return False
            _watch(handle, job, launched, watcher, console)
        except HeadctError:
            raise
        except Exception as error:
            refusal = read_refusal(folder)  # a refused run fails its job
            if refusal is not None:
                raise refusal from None
            _logger.exception("The pipeline could not be run")
            log.keep = True
            raise RunnerError(
                f"{launched.runner.name} failed: {cause(error)}{_after_failure(error, job)};"
                f" its log is {log.path}"
            ) from None
    return True


def _after_failure(error: Exception, job: Job | None) -> str:
    """What becomes of the job, and what to do; empty if nothing is known."""
    if lost_service(error) and job:
        return (
            f" (the job service was lost; the cluster may still run job {job.id}); the same command"
            " resumes"
        )
    if lost_service(error) or lost_worker(error):
        return " (a worker or the job server was lost); the same command resumes"
    return ""


def _submit(
    options: Options, launched: Launch, folder: Folder, console: Console
) -> tuple[Handle | None, Job | None]:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

    from beam_pipeline.pipeline import build

    paths = [path for path in (options.files.input, options.files.output) if is_local(path)]
    if paths:
        _say(console, f"Every worker must find {' and '.join(paths)} at the same path.")
    with tempfile.TemporaryDirectory() as staging:
        arguments = [*launched.arguments, *_staged_package(launched, Path(staging))]
        beam_options = PipelineOptions(arguments)
        prepare_servers(launched, beam_options, Path(staging))
        cluster = _ask_cluster(launched, console)
        if cluster:
            beam_options.view_as(GoogleCloudOptions).job_name = f"headct-{uuid.uuid4().hex[:12]}"
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
    job = _job_of(result, launched, cluster, beam_options)
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
    if has_image or not starts_containers or options.view_as(SetupOptions).setup_file:
        return []
    from beam_pipeline.runners.staging import stage_package

    return list(stage_package(folder))


def _ask_cluster(launched: Launch, console: Console) -> FlinkCluster | None:
    """The Flink cluster, if its address is given and it answers; shows what it should have set."""
    cluster = flink_cluster(launched)
    if cluster is None:
        return None
    try:
        advice = cluster.advice()
    except (OSError, ValueError, LookupError):
        _logger.warning("%s does not answer as Flink's REST interface does", cluster.url)
        return None
    for line in advice:
        _say(console, line)
    return cluster


def _job_of(
    result: Any, launched: Launch, cluster: FlinkCluster | None, options: Any
) -> Job | None:
    """What finds the job again; None if it ends with this process."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions, PortableOptions

    name = launched.runner.name
    if launched.runner is DATAFLOW:
        cloud = options.view_as(GoogleCloudOptions)
        return Job(name, result.job_id(), f"{cloud.project}/{cloud.region}")
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
        if all(isinstance(value, str) for value in asdict(job).values()):
            return job if job.runner == launched.runner.name else None
    return None


def _watch(
    handle: Handle, job: Job | None, launched: Launch, watcher: Watcher, console: Console
) -> None:
    """Wait for the end of a job."""
    seconds = _LOOK_SECONDS if is_local(watcher.folder.url) else _REMOTE_LOOK_SECONDS
    # Dataflow starts machines, which takes minutes, and says so itself.
    expected = math.inf if launched.runner is DATAFLOW else time.monotonic() + _FIRST_SIGN_SECONDS
    accepted = time.monotonic()  # when the run had not been refused yet
    # Dataflow tries four times and then fails the job, as whoever watches it should see.
    patience = math.inf if launched.runner is DATAFLOW else _REFUSED_SECONDS
    try:
        while not handle.wait(seconds):
            watcher.look()
            if time.monotonic() > expected:
                expected = math.inf
                if not watcher.sees_workers():
                    _say(console, _silence(launched, watcher.folder.url))
            refusal = read_refusal(watcher.folder)
            if refusal is None:
                accepted = time.monotonic()
            elif time.monotonic() - accepted > patience:
                with suppress(Exception):  # a client's: the refusal is what ended the run
                    (ask_for(job, launched) if job else handle).cancel()
                raise refusal
    except KeyboardInterrupt:
        raise Interrupted(_after_interrupt(handle, job, launched)) from None


def _silence(launched: Launch, output: str) -> str:
    """Where to look for what keeps workers from starting."""
    from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

    options = PipelineOptions(list(launched.arguments)).view_as(PortableOptions)
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


def _after_interrupt(handle: Handle, job: Job | None, launched: Launch) -> str:
    if job is None:
        with suppress(Exception):
            handle.cancel()
        return "interrupted; the same command resumes"
    if not launched.cancel_on_interrupt:
        return (
            f"interrupted; job {job.id} is still running, {job.link}; the same command watches it"
        )
    asked = ask_for(job, launched)
    try:
        asked.cancel()
    except Exception as error:  # whatever a runner's client raises: the job may go on
        return f"interrupted; job {job.id} could not be canceled ({cause(error)}), {job.link}"
    if not asked.runs_job:
        return (
            f"interrupted; the job service was asked to cancel job {job.id}, {job.link}; the "
            "cluster may go on to the end; the same command resumes"
        )
    end = time.monotonic() + _CANCEL_SECONDS
    while time.monotonic() < end:
        with suppress(Exception):  # a client's: it is asked again
            state = asked.state()
            if state in ENDED:
                how = "was canceled" if state == "CANCELLED" else f"had ended before ({state})"
                return f"interrupted; job {job.id} {how}; the same command resumes"
        time.sleep(_LOOK_SECONDS)
    return f"interrupted; job {job.id} was told to end, and had not yet, {job.link}"


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
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
