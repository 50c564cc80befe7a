"""Jobs that were submitted: what can be asked of them, wherever they run."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from beam_pipeline.runners.choose import DATAFLOW, Launch
from beam_pipeline.runners.flink import UNKNOWN, FlinkCluster

ENDED = frozenset({"DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED"})
_ANSWER_SECONDS = 10.0
_SILENCE_SECONDS = 60.0  # for which a service may know nothing of a job that was there before


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


class Handle(Protocol):
    """What can be asked of a job."""

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, within some seconds.

        Raises:
            Exception: Beam's, if it failed.
        """
        ...

    def cancel(self) -> None:
        """Tell it to end."""
        ...


def running_job(job: Job, launched: Launch) -> Handle | None:
    """A job, if it has not ended."""
    handle = ask_for(job, launched)
    return handle if handle.state() not in (*ENDED, UNKNOWN) else None


def ask_for(job: Job, launched: Launch) -> "Asked":
    """A job of which nothing more is known than what the output folder keeps."""
    if job.runner == DATAFLOW.name:
        return _DataflowJob(job.id, launched.arguments)
    if "://" in job.service:
        return _FlinkJob(job.id, job.service)
    return _ServiceJob(job.id, job.service)


def flink_cluster(launched: Launch) -> FlinkCluster | None:
    """The Flink cluster that runs the job, if its address is given."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions

    options = PipelineOptions(list(launched.arguments))
    master = options.view_as(FlinkRunnerOptions).flink_master
    if launched.runner.name not in ("FlinkRunner", "PortableRunner") or master.startswith("["):
        return None
    return FlinkCluster(master if "://" in master else f"http://{master}")


class SubmittedJob:
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
        """See Handle."""
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """See Handle."""
        self._result.cancel()


class Asked:
    """A job that is asked for its state now and then.

    Attributes:
        runs_job: whether who is asked runs the job, and does not only pass on what is asked.
    """

    runs_job = True
    _unknown_since: float | None = None

    def state(self) -> str:
        """A state of Beam's PipelineState, or UNKNOWN if there is no such job or no answer."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Tell it to end."""
        raise NotImplementedError

    def wait(self, seconds: float) -> bool:
        """See Handle."""
        time.sleep(seconds)
        state = self.state()
        if state == "FAILED" or self._is_lost(state):
            raise RuntimeError(f"the job's state is {state}")
        return state in ENDED

    def _is_lost(self, state: str) -> bool:
        now = time.monotonic()
        if state != UNKNOWN:
            self._unknown_since = None
            return False
        if self._unknown_since is None:
            self._unknown_since = now
        return now - self._unknown_since >= _SILENCE_SECONDS


class _ServiceJob(Asked):
    """A job of a job service; whether its cluster does what is asked, it may not know."""

    runs_job = False

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


class _FlinkJob(Asked):
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


class _DataflowJob(Asked):
    """A job of Dataflow."""

    def __init__(self, job_id: str, arguments: Sequence[str]) -> None:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient

        self._id = job_id
        self._client = DataflowApplicationClient(PipelineOptions(list(arguments)))

    def state(self) -> str:
        from apache_beam.runners.dataflow.dataflow_runner import DataflowPipelineResult

        state = self._client.get_job(self._id).current_state
        return str(DataflowPipelineResult.api_jobstate_to_pipeline_state(state))

    def cancel(self) -> None:
        self._client.modify_job_state(self._id, "JOB_STATE_CANCELLED")
