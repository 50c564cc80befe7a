"""The pipeline as a job on a Beam runner, from submission to its end; progress and advice."""

import json
import logging
import math
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from beam_pipeline.errors import RunnerError
from beam_pipeline.options import Options
from beam_pipeline.progress import Display
from beam_pipeline.runners.choose import DATAFLOW, ChosenRunner
from beam_pipeline.runners.job_server import ask_flink, flink_url, prepare_servers
from beam_pipeline.runners.staging import needs_package, stage_package
from beam_pipeline.shards.output import read_refusal
from headct.commands import on_sigterm
from headct.errors import HeadctError, Interrupted
from headct.layout import JOB
from headct.stores import Folder, is_local
from headct.terminal import LineFormatter

_CANCEL_SECONDS = 60.0
_REFUSED_SECONDS = 30.0  # time for a runner to repeat the step that refuses a run
_FIRST_SIGN_SECONDS = 60.0  # workers should have started by then
_SILENCE_SECONDS = 60.0  # a service that restarts may not know its jobs for a while
_ANSWER_SECONDS = 10.0
_ASK_SECONDS = 1.0  # interval between requests for a canceled job's state

_ENDED = frozenset({"DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED"})
_UNKNOWN = "UNKNOWN"
_FLINK_STATES = {"FINISHED": "DONE", "CANCELED": "CANCELLED", "FAILED": "FAILED"}

_CAUSE_LENGTH = 300
_PYTHON_TRACEBACK = "Traceback (most recent call last):"
_BEAM_PREFIX = re.compile(r"Pipeline \S+ failed in state [A-Z]+: ")
# Stack frames of Java or Scala (Spark prints them without `at`), and other lines without a cause.
_NOISE = re.compile(
    r"(at )?[\w.$<>/@-]+\(([\w$]+\.\w+:\d+|Native Method|Unknown Source|.*\.java)\)"
    r"|Driver stacktrace:|\.\.\. \d+ more|The currently active SparkContext.*"
)
_CAUSED_BY = "Caused by: "
# Messages of Beam's runners, Flink and Spark about a lost worker.
_LOST_WORKER = re.compile(
    r"StatusRuntimeException|client cancelled|Multiplexer hanging up|Socket closed|Stream removed"
    r"|Connection (refused|reset|unexpectedly closed)|Broken pipe|TaskManager .*(lost|timed out)"
    r"|ExecutorLostFailure|executor .* (lost|exited)|disassociated|Worker .*(lost|exited|died)"
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A job that outlives the command; recorded in the output folder for the next command.

    Attributes:
        runner: name of the runner.
        id: the runner's id of the job; on Flink the job's name, since Beam does not report ids.
        service: service that knows the job: the address of a job service, the URL of a Flink
            cluster, or `project/region`.
    """

    runner: str
    id: str
    service: str

    @property
    def link(self) -> str:
        """Page of the job for the user."""
        if self.runner != DATAFLOW.name:
            return f"at {self.service}"
        project, region = self.service.split("/")
        return (
            f"https://console.cloud.google.com/dataflow/jobs/{region}/{self.id}?project={project}"
        )

    @property
    def is_run_by_service(self) -> bool:
        """Whether the service runs the job itself; Beam's job service only asks a cluster."""
        return self.runner == DATAFLOW.name or "://" in self.service

    def state(self, arguments: Sequence[str]) -> str:
        """Return a state of Beam's PipelineState; UNKNOWN without an answer or without the job.

        Args:
            arguments: Beam's options for the runner, with the credentials for Dataflow.
        """
        if self.runner == DATAFLOW.name:
            from apache_beam.runners.dataflow.dataflow_runner import DataflowPipelineResult

            state = _dataflow(arguments).get_job(self.id).current_state
            return str(DataflowPipelineResult.api_jobstate_to_pipeline_state(state))
        if self.is_run_by_service:
            try:
                job = self._on_flink()
            except OSError:
                return _UNKNOWN
            return _FLINK_STATES.get(job["state"], "RUNNING") if job else _UNKNOWN
        import grpc
        from apache_beam.portability.api import beam_job_api_pb2

        try:
            answer = self._ask("GetState", beam_job_api_pb2.GetJobStateRequest(job_id=self.id))
        except grpc.RpcError:
            return _UNKNOWN
        return str(beam_job_api_pb2.JobState.Enum.Name(answer.state))

    def cancel(self, arguments: Sequence[str]) -> None:
        """Tell the job to end; may raise anything of the runner's client."""
        if self.runner == DATAFLOW.name:
            _dataflow(arguments).modify_job_state(self.id, "JOB_STATE_CANCELLED")
        elif self.is_run_by_service:
            job = self._on_flink()
            if job:
                ask_flink(self.service, f"/jobs/{job['jid']}?mode=cancel", "PATCH")
        else:
            from apache_beam.portability.api import beam_job_api_pb2

            self._ask("Cancel", beam_job_api_pb2.CancelJobRequest(job_id=self.id))

    def wait_until_finish(self, arguments: Sequence[str], seconds: float) -> None:
        """Wait for the job's end, and ask for its state at intervals.

        Raises:
            RuntimeError: the job failed, or was unknown to the service for a minute.
        """
        answered = time.monotonic()
        while (state := self.state(arguments)) not in _ENDED:
            if state != _UNKNOWN:
                answered = time.monotonic()
            elif time.monotonic() - answered >= _SILENCE_SECONDS:
                break
            time.sleep(seconds)
        if state in ("FAILED", _UNKNOWN):
            raise RuntimeError(f"the job's state is {state}")

    def _on_flink(self) -> dict[str, Any] | None:
        """Return the newest job with the name."""
        jobs = ask_flink(self.service, "/jobs/overview")["jobs"]
        named = (job for job in jobs if job["name"] == self.id)
        return max(named, key=lambda job: job["start-time"], default=None)

    def _ask(self, method: str, request: Any) -> Any:
        import grpc
        from apache_beam.portability.api import beam_job_api_pb2_grpc

        with grpc.insecure_channel(self.service) as channel:
            service = beam_job_api_pb2_grpc.JobServiceStub(channel)
            return getattr(service, method)(request, timeout=_ANSWER_SECONDS)


def _dataflow(arguments: Sequence[str]) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient

    return DataflowApplicationClient(PipelineOptions(list(arguments)))


def run_job(options: Options, chosen: ChosenRunner, display: Display, console: Console) -> bool:
    """Submit the pipeline, or reattach to an earlier command's job; wait for the job's end.

    Returns:
        False if the runner only wrote a template, True if the job ran.

    Raises:
        RunnerError: the runner failed.
        Refusal: a worker ended the run.
        Interrupted: Ctrl-C was pressed; the message says whether the job continues.
        StoreError: the output's store fails.
    """
    folder, arguments = options.files.folder, chosen.arguments
    descriptor, name = tempfile.mkstemp(prefix="beam_pipeline-", suffix=".log")
    os.close(descriptor)
    keep_log = False
    try:
        with on_sigterm(), _redirected_output(name):
            job: Job | None = None
            try:
                job = _find_job(folder, chosen)
                if job is not None:
                    end = _in_thread(partial(job.wait_until_finish, arguments, display.interval))
                    cancel: Callable[[], Any] = partial(job.cancel, arguments)
                    _print(console, f"Job {job.id} is still running, {job.link}")
                else:
                    result, job = _submit(options, chosen, folder, console)
                    if result is None:
                        return False
                    end, cancel = _in_thread(result.wait_until_finish), result.cancel
                _watch(end, cancel, job, chosen, display, console)
            except HeadctError:
                raise
            except Exception as error:
                refusal = read_refusal(folder)  # a refused run fails its job
                if refusal is not None:
                    raise refusal from None
                _logger.exception("The pipeline could not be run")
                keep_log = True
                raise RunnerError(
                    f"{chosen.runner.name} failed: {cause(error)}{after_failure(error, job)};"
                    f" its log is {name}"
                ) from None
    finally:
        if not keep_log:
            Path(name).unlink(missing_ok=True)
    return True


def _find_job(folder: Folder, chosen: ChosenRunner) -> Job | None:
    """Return the job that an earlier command submitted to the same runner, if it still runs."""
    with suppress(ValueError, TypeError, FileNotFoundError):
        job = Job(**json.loads(folder.read(JOB)))
        is_job = all(isinstance(value, str) for value in asdict(job).values())
        if is_job and job.runner == chosen.runner.name:
            return None if job.state(chosen.arguments) in (*_ENDED, _UNKNOWN) else job
    return None


def _in_thread(action: Callable[[], Any]) -> "Future[None]":
    """Run a function in a thread that does not keep the process alive."""
    end: Future[None] = Future()

    def run() -> None:
        try:
            action()
            end.set_result(None)
        except Exception as error:
            end.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return end


def _submit(
    options: Options, chosen: ChosenRunner, folder: Folder, console: Console
) -> tuple[Any, Job | None]:
    """Submit the pipeline.

    Returns:
        Beam's result, None for a template; and the record to find the job again, None if the job
        ends with this process.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import (
        GoogleCloudOptions,
        PipelineOptions,
        PortableOptions,
    )

    from beam_pipeline.pipeline import build

    paths = [path for path in (options.files.input, options.files.output) if is_local(path)]
    if paths:
        _print(console, f"Every worker must find {' and '.join(paths)} at the same path.")
    with tempfile.TemporaryDirectory() as staging:
        package = stage_package(Path(staging)) if needs_package(chosen.arguments) else []
        beam_options = PipelineOptions([*chosen.arguments, *package])
        prepare_servers(chosen, beam_options, Path(staging))
        cluster = _advised_cluster(chosen, console)
        cloud = beam_options.view_as(GoogleCloudOptions)
        if cluster:
            cloud.job_name = f"headct-{uuid.uuid4().hex[:12]}"
        pipeline = beam.Pipeline(runner=chosen.runner.name, options=beam_options)
        build(pipeline, options)
        result = pipeline.run()
    if cloud.template_location:
        _print(
            console,
            f"The template is at {cloud.template_location}; a job made of it writes"
            f" {options.files.output}.",
        )
        return None, None
    endpoint = beam_options.view_as(PortableOptions).job_endpoint
    job = None
    if chosen.runner is DATAFLOW:
        job = Job(chosen.runner.name, result.job_id(), f"{cloud.project}/{cloud.region}")
    elif cluster:
        job = Job(chosen.runner.name, cloud.job_name, cluster)
    elif endpoint and endpoint != "embed":
        job = Job(chosen.runner.name, result._job_id, endpoint)
    if job is None:
        _print(console, f"{chosen.runner.name} runs the pipeline.")
    else:
        folder.write(JOB, json.dumps(asdict(job)).encode(), durable=False)
        _print(console, f"Job {job.id} was submitted, {job.link}")
    return result, job


def _advised_cluster(chosen: ChosenRunner, console: Console) -> str | None:
    """Return the URL of the Flink cluster if it answers; print advice on its settings."""
    url = flink_url(chosen)
    if url is None:
        return None
    try:
        settings = {entry["key"]: entry["value"] for entry in ask_flink(url, "/jobmanager/config")}
    except (OSError, ValueError, LookupError):
        _logger.warning("%s does not answer as Flink's REST interface does", url)
        return None
    # Flink 1.19 renamed this setting.
    strategy = settings.get("restart-strategy.type") or settings.get("restart-strategy")
    if strategy in (None, "none", "off", "disable"):
        _print(
            console,
            "Flink's restart-strategy is not set: a worker that is lost ends the job, and the "
            "same command resumes. With 'restart-strategy: fixed-delay' the job continues.",
        )
    if settings.get("cluster.evenly-spread-out-slots") != "true":
        _print(
            console,
            "Flink's cluster.evenly-spread-out-slots is not set: all tasks may run on one task "
            "manager while others are idle.",
        )
    return url


def _watch(
    end: "Future[None]",
    cancel: Callable[[], Any],
    job: Job | None,
    chosen: ChosenRunner,
    display: Display,
    console: Console,
) -> None:
    """Wait for a job's end, and show its progress.

    Raises:
        Exception: the job failed.
    """
    is_dataflow = chosen.runner is DATAFLOW
    # Dataflow takes minutes to start machines, and reports their start itself.
    expected = math.inf if is_dataflow else time.monotonic() + _FIRST_SIGN_SECONDS
    # Dataflow fails the job after four tries; observers of the job should see this failure.
    patience = math.inf if is_dataflow else _REFUSED_SECONDS
    last_accepted = time.monotonic()
    try:
        while not wait([end], display.interval).done:
            display.look()
            if time.monotonic() > expected:
                expected = math.inf
                if not display.sees_workers():
                    _print(console, _explain_silence(chosen, display.folder.url))
            refusal = read_refusal(display.folder)
            if refusal is None:
                last_accepted = time.monotonic()
            elif time.monotonic() - last_accepted > patience:
                with suppress(Exception):  # the runner's client may raise anything
                    cancel()
                raise refusal
        end.result()
    except KeyboardInterrupt:
        raise Interrupted(_after_interrupt(cancel, job, chosen)) from None


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


def _after_interrupt(cancel: Callable[[], Any], job: Job | None, chosen: ChosenRunner) -> str:
    """Return the fate of an interrupted job; cancel the job if the user asked for it."""
    if job is None:
        with suppress(Exception):  # the runner's client may raise anything
            cancel()
        return "interrupted; the same command resumes"
    name = f"interrupted; job {job.id}"
    if not chosen.cancel_on_interrupt:
        return f"{name} is still running, {job.link}; the same command watches it"
    try:
        job.cancel(chosen.arguments)
    except Exception as error:  # the runner's client may raise anything
        return f"{name} could not be canceled ({cause(error)}), {job.link}"
    if not job.is_run_by_service:
        return (
            f"interrupted; the job service was asked to cancel job {job.id}, {job.link}; the "
            "cluster may go on to the end; the same command resumes"
        )
    end = time.monotonic() + _CANCEL_SECONDS
    while time.monotonic() < end:
        with suppress(Exception):  # retried
            state = job.state(chosen.arguments)
            if state in _ENDED:
                how = "was canceled" if state == "CANCELLED" else f"had ended before ({state})"
                return f"{name} {how}; the same command resumes"
        time.sleep(_ASK_SECONDS)
    return f"{name} was told to end, and had not yet, {job.link}"


def after_failure(error: Exception, job: Job | None) -> str:
    """Return the job's fate and advice; empty if a step failed or the fate is unknown."""
    import grpc

    text, lost_service = _text(error), False
    lost_worker = _PYTHON_TRACEBACK not in text and bool(_LOST_WORKER.search(text))
    if isinstance(error, grpc.RpcError):
        gone = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        lost_service = error.code() in gone or bool(_LOST_WORKER.search(text))
    if lost_service and job:
        return (
            f" (the job service was lost; the cluster may still run job {job.id}); the same command"
            " resumes"
        )
    if lost_service or lost_worker:
        return " (a worker or the job server was lost); the same command resumes"
    return ""


def cause(error: BaseException) -> str:
    """Return the line with the cause, from a worker's traceback or Java's exceptions."""
    text = _BEAM_PREFIX.sub("", _text(error), count=1)
    _, traceback, last = text.rpartition(_PYTHON_TRACEBACK)
    if traceback:  # the first line after the indented stack frames
        lines = [line for line in last.splitlines() if line.strip()]
        line = next((line.strip() for line in lines if not line[0].isspace()), lines[-1].strip())
    else:  # the message of an exception, and of its last cause
        stripped = map(str.strip, text.splitlines())
        messages = [line for line in stripped if line and not _NOISE.fullmatch(line)]
        causes = [line for line in messages if line.startswith(_CAUSED_BY)]
        line = messages[0].removeprefix(_CAUSED_BY) if messages else ""
        if causes and (last := causes[-1].removeprefix(_CAUSED_BY)) not in line:
            line = f"{line}; caused by {last}"
    if line == "unknown error":  # Beam's message for a job without an error message
        line = "it gives no reason: look at the cluster's logs"
    line = line or type(error).__name__
    return line if len(line) <= _CAUSE_LENGTH else f"{line[:_CAUSE_LENGTH]}..."


def _text(error: BaseException) -> str:
    details: Any = getattr(error, "details", None)  # gRPC's errors have details
    return (details() if callable(details) else None) or str(error)


@contextmanager
def _redirected_output(log: str) -> Iterator[None]:
    """Send the output of Beam, its threads and servers to a file while the block runs.

    Their log goes to the file until the process ends: workers may be threads of this process, and
    outlive an interrupted job.
    """
    handler = logging.FileHandler(log)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.INFO)
    # gRPC's threads raise errors when their peer closes the connection.
    threading.excepthook = lambda ended: _logger.error("A thread ended: %r", ended.exc_value)
    terminal = os.dup(2)
    try:
        with Path(log).open("a") as file:
            os.dup2(file.fileno(), 2)  # servers that Beam starts inherit the descriptor
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
