"""Submitted jobs: wait for them, query their state, cancel them."""

import json
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from beam_pipeline.runners.choose import DATAFLOW, ChosenRunner

ENDED = frozenset({"DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED"})
UNKNOWN = "UNKNOWN"
_FLINK_STATES = {"FINISHED": "DONE", "CANCELED": "CANCELLED", "FAILED": "FAILED"}
_ANSWER_SECONDS = 10.0
_SILENCE_SECONDS = 60.0  # a service that restarts may not know its jobs for a while


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


class SubmittedJob:
    """A job that this process submitted, with Beam's result object."""

    def __init__(self, result: Any) -> None:
        self._result = result
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._wait_until_finish, daemon=True)
        self._thread.start()

    def _wait_until_finish(self) -> None:
        try:
            self._result.wait_until_finish()
        except Exception as error:
            self._error = error

    def wait(self, seconds: float) -> bool:
        """Wait for some seconds; return whether the job has ended.

        Raises:
            Exception: the job failed; the exception is Beam's.
        """
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Tell the job to end."""
        self._result.cancel()


class JobClient(ABC):
    """Asks a service about a job, submitted by any process.

    Attributes:
        runs_job: whether the service itself runs the job; otherwise the service forwards requests
            to a cluster, and the cluster may ignore them.
    """

    runs_job = True

    def __init__(self) -> None:
        self._answered = time.monotonic()

    @abstractmethod
    def state(self) -> str:
        """Return a state of Beam's PipelineState; UNKNOWN without an answer or without the job."""

    @abstractmethod
    def cancel(self) -> None:
        """Tell the job to end."""

    def wait(self, seconds: float) -> bool:
        """Wait for some seconds; return whether the job has ended.

        Raises:
            RuntimeError: the job failed, or was unknown to the service for a minute.
        """
        time.sleep(seconds)
        state = self.state()
        if state != UNKNOWN:
            self._answered = time.monotonic()
        if state == "FAILED" or time.monotonic() - self._answered >= _SILENCE_SECONDS:
            raise RuntimeError(f"the job's state is {state}")
        return state in ENDED


def connect(job: Job, arguments: Sequence[str]) -> JobClient:
    """Return a client for a job.

    Args:
        job: the job.
        arguments: arguments of the runner, with the credentials for Dataflow.
    """
    if job.runner == DATAFLOW.name:
        return _DataflowJob(job.id, arguments)
    if "://" in job.service:
        return _FlinkJob(job.id, job.service)
    return _ServiceJob(job.id, job.service)


class _ServiceJob(JobClient):
    """A job of a portable job service; the service may not know its cluster's state."""

    runs_job = False

    def __init__(self, job_id: str, endpoint: str) -> None:
        super().__init__()
        self._id = job_id
        self._endpoint = endpoint

    def state(self) -> str:
        import grpc
        from apache_beam.portability.api import beam_job_api_pb2

        request = beam_job_api_pb2.GetJobStateRequest(job_id=self._id)
        try:
            answer = self._call("GetState", request)
        except grpc.RpcError:
            return UNKNOWN
        return str(beam_job_api_pb2.JobState.Enum.Name(answer.state))

    def cancel(self) -> None:
        from apache_beam.portability.api import beam_job_api_pb2

        self._call("Cancel", beam_job_api_pb2.CancelJobRequest(job_id=self._id))

    def _call(self, method: str, request: Any) -> Any:
        import grpc
        from apache_beam.portability.api import beam_job_api_pb2_grpc

        with grpc.insecure_channel(self._endpoint) as channel:
            service = beam_job_api_pb2_grpc.JobServiceStub(channel)
            return getattr(service, method)(request, timeout=_ANSWER_SECONDS)


class _DataflowJob(JobClient):
    """A job of Dataflow."""

    def __init__(self, job_id: str, arguments: Sequence[str]) -> None:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient

        super().__init__()
        self._id = job_id
        self._client = DataflowApplicationClient(PipelineOptions(list(arguments)))

    def state(self) -> str:
        from apache_beam.runners.dataflow.dataflow_runner import DataflowPipelineResult

        state = self._client.get_job(self._id).current_state
        return str(DataflowPipelineResult.api_jobstate_to_pipeline_state(state))

    def cancel(self) -> None:
        self._client.modify_job_state(self._id, "JOB_STATE_CANCELLED")


@dataclass(frozen=True)
class FlinkCluster:
    """REST interface of a Flink cluster; every method raises OSError without an answer.

    https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/ops/rest_api/

    Attributes:
        url: URL of the interface, with its scheme.
    """

    url: str

    def version(self) -> str:
        """Return the version in Beam's form, such as 1.19."""
        return ".".join(self.request("/config")["flink-version"].split(".")[:2])

    def advice(self) -> list[str]:
        """Return one sentence per missing setting that a job of hours needs."""
        settings = {entry["key"]: entry["value"] for entry in self.request("/jobmanager/config")}
        advice = []
        # Flink 1.19 renamed this setting.
        strategy = settings.get("restart-strategy.type") or settings.get("restart-strategy")
        if strategy in (None, "none", "off", "disable"):
            advice.append(
                "Flink's restart-strategy is not set: a worker that is lost ends the job, and the "
                "same command resumes. With 'restart-strategy: fixed-delay' the job continues."
            )
        if settings.get("cluster.evenly-spread-out-slots") != "true":
            advice.append(
                "Flink's cluster.evenly-spread-out-slots is not set: all tasks may run on one task "
                "manager while others are idle."
            )
        return advice

    def request(self, path: str, method: str = "GET") -> Any:
        """Return the JSON answer to a request."""
        request = urllib.request.Request(self.url.rstrip("/") + path, method=method)
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            return json.loads(answer.read() or b"null")


def flink_cluster(chosen: ChosenRunner) -> FlinkCluster | None:
    """Return the Flink cluster that runs the job, if its address is given."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions

    options = PipelineOptions(list(chosen.arguments))
    master = options.view_as(FlinkRunnerOptions).flink_master
    if chosen.runner.name not in ("FlinkRunner", "PortableRunner") or master.startswith("["):
        return None
    return FlinkCluster(master if "://" in master else f"http://{master}")


class _FlinkJob(JobClient):
    """The newest job with a name on a Flink cluster."""

    def __init__(self, name: str, url: str) -> None:
        super().__init__()
        self._name = name
        self._cluster = FlinkCluster(url)

    def state(self) -> str:
        try:
            job = self._newest()
        except OSError:
            return UNKNOWN
        return _FLINK_STATES.get(job["state"], "RUNNING") if job else UNKNOWN

    def cancel(self) -> None:
        job = self._newest()
        if job:
            self._cluster.request(f"/jobs/{job['jid']}?mode=cancel", "PATCH")

    def _newest(self) -> dict[str, Any] | None:
        jobs = self._cluster.request("/jobs/overview")["jobs"]
        named = (job for job in jobs if job["name"] == self._name)
        return max(named, key=lambda job: job["start-time"], default=None)
