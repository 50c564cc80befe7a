"""Runs the pipeline on a Beam runner, and shows meanwhile what the output folder tells of it."""

import json
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from beam_pipeline.errors import Interrupted, PipelineError, RunnerError
from beam_pipeline.flink import UNKNOWN, FlinkCluster
from beam_pipeline.layout import JOB
from beam_pipeline.options import Launch, Options
from beam_pipeline.progress import Watcher
from beam_pipeline.runners import DATAFLOW
from beam_pipeline.storage import Folder, is_local

_ENDED = frozenset({"DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED"})
_ANSWER_SECONDS = 10.0
_CANCEL_SECONDS = 60.0
_LOOK_SECONDS = 1.0  # between looks at a local folder,
_REMOTE_LOOK_SECONDS = 10.0  # and at another
_CAUSE_LENGTH = 300

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A job that outlives its launcher, as the output folder keeps it.

    Attributes:
        runner: its name.
        id: the runner's.
        service: who is asked for it: the address of a job service, or `project/region`.
    """

    runner: str
    id: str
    service: str

    @property
    def link(self) -> str:
        """Where to look at it."""
        if self.runner != DATAFLOW.name:
            return f"at {self.service}"
        project, region = self.service.split("/")
        return (
            f"https://console.cloud.google.com/dataflow/jobs/{region}/{self.id}?project={project}"
        )


class _Handle(Protocol):
    """What can be asked of a job."""

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, within some seconds.

        Raises:
            Exception: Beam's, if it failed.
        """
        ...

    def cancel(self) -> None: ...


def launch(options: Options, launched: Launch, watcher: Watcher, console: Console) -> bool:
    """Run the pipeline to its end; or watch the job that the same command submitted before.

    Returns:
        Whether it ran: False if a template was all that was asked for.

    Raises:
        RunnerError: the runner failed.
        Interrupted: Ctrl-C was pressed; the message says what becomes of the job.
        StoreError: the output's store fails.
    """
    folder = Folder(options.output, options.storage_patience)
    with _beam_log() as log:
        try:
            job = _find_job(folder, launched)
            handle = _running_job(job, launched) if job else None
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
                f"{launched.runner.name} failed: {_cause(error)}; its log is {log.path}"
            ) from None
    return True


def _submit(
    options: Options, launched: Launch, folder: Folder, console: Console
) -> tuple[_Handle | None, Job | None]:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

    from beam_pipeline.pipeline import build

    paths = [path for path in (options.input, options.output) if is_local(path)]
    if paths:
        _say(console, f"Every worker must find {' and '.join(paths)} at the same path.")
    with tempfile.TemporaryDirectory() as staging:
        arguments = [*launched.arguments, *_staged_package(launched, Path(staging))]
        beam_options = PipelineOptions(arguments)
        cluster = _flink_cluster(launched)
        if cluster:
            beam_options.view_as(GoogleCloudOptions).job_name = f"headct-{uuid.uuid4().hex[:12]}"
            for advice in cluster.advice():
                _say(console, advice)
        pipeline = beam.Pipeline(runner=launched.runner.name, options=beam_options)
        build(pipeline, options)
        result = pipeline.run()
    template = beam_options.view_as(GoogleCloudOptions).template_location
    if template:
        _say(console, f"The template is at {template}; a job made of it writes {options.output}.")
        return None, None
    job = _job_of(result, launched, beam_options)
    if job is None:
        _say(console, f"{launched.runner.name} runs the pipeline.")
    else:
        folder.write(JOB, json.dumps(asdict(job)).encode(), durable=False)
        _say(console, f"Job {job.id} was submitted, {job.link}")
    return _Submitted(result), job


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
    from beam_pipeline.staging import stage_package

    return list(stage_package(folder))


def _job_of(result: Any, launched: Launch, options: Any) -> Job | None:
    """What finds the job again; None if it ends with this process."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions, PortableOptions

    name = launched.runner.name
    if launched.runner is DATAFLOW:
        cloud = options.view_as(GoogleCloudOptions)
        return Job(name, result.job_id(), f"{cloud.project}/{cloud.region}")
    cluster = _flink_cluster(launched)
    if cluster:
        return Job(name, options.view_as(GoogleCloudOptions).job_name, cluster.url)
    endpoint = options.view_as(PortableOptions).job_endpoint
    return Job(name, result._job_id, endpoint) if endpoint and endpoint != "embed" else None


def _flink_cluster(launched: Launch) -> FlinkCluster | None:
    """The cluster that a job server of Beam's, which ends with this process, gives the job to."""
    from apache_beam.options.pipeline_options import (
        FlinkRunnerOptions,
        PipelineOptions,
        PortableOptions,
    )

    options = PipelineOptions(list(launched.arguments))
    master = options.view_as(FlinkRunnerOptions).flink_master
    if (
        launched.runner.name != "FlinkRunner"
        or options.view_as(PortableOptions).job_endpoint
        or master.startswith("[")
    ):
        return None
    return FlinkCluster(master if "://" in master else f"http://{master}")


def _find_job(folder: Folder, launched: Launch) -> Job | None:
    """The job that an earlier launcher submitted to the same runner."""
    if not folder.exists(JOB):
        return None
    with suppress(ValueError, TypeError, FileNotFoundError):
        job = Job(**json.loads(folder.read(JOB)))
        return job if job.runner == launched.runner.name else None
    return None


def _running_job(job: Job, launched: Launch) -> _Handle | None:
    handle = _ask_for(job, launched)
    return handle if handle.state() not in (*_ENDED, UNKNOWN) else None


def _ask_for(job: Job, launched: Launch) -> "_Asked":
    if job.runner == DATAFLOW.name:
        return _DataflowJob(job.id, launched.arguments)
    if _flink_cluster(launched):
        return _FlinkJob(job.id, job.service)
    return _ServiceJob(job.id, job.service)


def _watch(handle: _Handle, job: Job | None, launched: Launch, watcher: Watcher) -> None:
    """Wait for the end of a job."""
    seconds = _LOOK_SECONDS if is_local(watcher.url) else _REMOTE_LOOK_SECONDS
    try:
        while not handle.wait(seconds):
            watcher.look()
    except KeyboardInterrupt:
        raise Interrupted(_after_interrupt(handle, job, launched)) from None


def _after_interrupt(handle: _Handle, job: Job | None, launched: Launch) -> str:
    if job is None:
        with suppress(Exception):
            handle.cancel()
        return "interrupted; the same command resumes"
    if not launched.cancel_on_interrupt:
        return (
            f"interrupted, but job {job.id} goes on, {job.link}; the same command watches it again"
        )
    with suppress(Exception):  # it may have ended, or its service may be gone: seen below
        _ask_for(job, launched).cancel()
        end = time.monotonic() + _CANCEL_SECONDS
        while time.monotonic() < end:
            if handle.wait(1.0):
                break
        else:
            return f"interrupted; job {job.id} was told to end, and had not yet, {job.link}"
    return f"interrupted; job {job.id} was canceled; the same command resumes"


class _Submitted:
    """A job that this process submitted."""

    def __init__(self, result: Any) -> None:
        self._result = result
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        try:
            self._result.wait_until_finish()
        except Exception as error:
            self._error = error

    def wait(self, seconds: float) -> bool:
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def cancel(self) -> None:
        self._result.cancel()


class _Asked:
    """A job that is asked for its state now and then."""

    def state(self) -> str:
        """A state of Beam's PipelineState, or UNKNOWN if there is no such job."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Tell it to end."""
        raise NotImplementedError

    def wait(self, seconds: float) -> bool:
        time.sleep(seconds)
        state = self.state()
        if state in ("FAILED", UNKNOWN):
            raise RuntimeError(f"the job's state is {state}")
        return state in _ENDED


class _ServiceJob(_Asked):
    """A job of a job service."""

    def __init__(self, job_id: str, endpoint: str) -> None:
        self._id = job_id
        self._endpoint = endpoint

    def state(self) -> str:
        import grpc
        from apache_beam.portability.api import beam_job_api_pb2

        request = beam_job_api_pb2.GetJobStateRequest(job_id=self._id)
        try:
            answer = self._ask("GetState", request)
        except grpc.RpcError:
            return UNKNOWN
        return str(beam_job_api_pb2.JobState.Enum.Name(answer.state))

    def cancel(self) -> None:
        from apache_beam.portability.api import beam_job_api_pb2

        self._ask("Cancel", beam_job_api_pb2.CancelJobRequest(job_id=self._id))

    def _ask(self, method: str, request: Any) -> Any:
        import grpc
        from apache_beam.portability.api import beam_job_api_pb2_grpc

        with grpc.insecure_channel(self._endpoint) as channel:
            service = beam_job_api_pb2_grpc.JobServiceStub(channel)
            return getattr(service, method)(request, timeout=_ANSWER_SECONDS)


class _FlinkJob(_Asked):
    """A job of a Flink cluster, known by its name: Beam does not tell Flink's id."""

    def __init__(self, name: str, url: str) -> None:
        self._name = name
        self._cluster = FlinkCluster(url)

    def state(self) -> str:
        try:
            return self._cluster.state(self._name)
        except OSError:
            return UNKNOWN

    def cancel(self) -> None:
        self._cluster.cancel(self._name)


class _DataflowJob(_Asked):
    """A job of Dataflow."""

    def __init__(self, job_id: str, arguments: Sequence[str]) -> None:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient

        self._id = job_id
        self._client = DataflowApplicationClient(PipelineOptions(list(arguments)))

    def state(self) -> str:
        from apache_beam.runners.dataflow.dataflow_runner import DataflowPipelineResult

        state = self._client.get_job(self._id).currentState
        return str(DataflowPipelineResult.api_jobstate_to_pipeline_state(state))

    def cancel(self) -> None:
        self._client.modify_job_state(self._id, "JOB_STATE_CANCELLED")


@dataclass
class _Log:
    path: Path
    keep: bool = False


@contextmanager
def _beam_log() -> Iterator[_Log]:
    """Beam's log goes to a file for the rest of this process, which is kept if the run fails."""
    descriptor, name = tempfile.mkstemp(prefix="beam_pipeline-", suffix=".log")
    os.close(descriptor)
    log = _Log(Path(name))
    handler = logging.FileHandler(name)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    # Threads of gRPC end with tracebacks when the other side of a connection goes away first.
    threading.excepthook = _log_thread
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        yield log
    finally:
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


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
