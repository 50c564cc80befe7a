"""Jobs on a service that answers as Beam's does, and on a server that answers as Flink 1.19."""

import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
from rich.console import Console

from beam_pipeline.runners import run_job
from beam_pipeline.runners.choose import RUNNERS, ChosenRunner
from beam_pipeline.runners.job_server import find_job_server, flink_url
from beam_pipeline.runners.run_job import Job
from tests.headct.ports import serving

State = beam_job_api_pb2.JobState


class Service(beam_job_api_pb2_grpc.JobServiceServicer):
    """Answers with one state after the other; None stands for a service that cannot answer."""

    def __init__(self) -> None:
        self.states: list[int | None] = []
        self.asked = 0

    def GetState(  # noqa: N802
        self, request: beam_job_api_pb2.GetJobStateRequest, context: grpc.ServicerContext
    ) -> beam_job_api_pb2.JobStateEvent:
        self.asked += 1
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if request.job_id != "the-job" or state is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return beam_job_api_pb2.JobStateEvent(state=state)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def job(service: Service) -> Iterator[Job]:
    server = grpc.server(ThreadPoolExecutor(2))
    beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Job("PortableRunner", "the-job", f"127.0.0.1:{port}")
    server.stop(0)


def test_a_job_that_failed_is_an_error(service: Service, job: Job) -> None:
    service.states = [State.FAILED]
    with pytest.raises(RuntimeError, match="FAILED"):
        job.wait_until_finish([], 0)


def test_a_service_that_does_not_answer_for_a_while_costs_nothing(
    service: Service, job: Job
) -> None:
    service.states = [State.RUNNING, None, None, None, State.RUNNING, None, State.DONE]
    job.wait_until_finish([], 0)
    assert service.asked == 7


def test_a_service_that_knows_nothing_of_a_job_for_long_is_an_error(
    service: Service, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.states = [State.RUNNING, None]
    monkeypatch.setattr(run_job, "_SILENCE_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match="UNKNOWN"):
        job.wait_until_finish([], 0.05)
    assert service.asked > 3, "for it may answer again"


def test_a_job_service_does_not_speak_for_its_cluster(job: Job) -> None:
    assert not job.is_run_by_service


@pytest.mark.parametrize(
    ("runner", "arguments", "url"),
    [
        ("FlinkRunner", ["--flink_master=http://h:8081"], "http://h:8081"),
        ("FlinkRunner", ["--flink_master=h:8081", "--job_endpoint=h:8099"], "http://h:8081"),
        ("PortableRunner", ["--flink_master=h:8081", "--job_endpoint=h:8099"], "http://h:8081"),
        ("FlinkRunner", ["--job_endpoint=h:8099"], None),
        ("FlinkRunner", ["--flink_master=[local]"], None),
        ("SparkRunner", ["--spark_master_url=spark://h:7077"], None),
    ],
)
def test_a_flink_cluster_is_asked_where_its_address_is_given(
    runner: str, arguments: list[str], url: str | None
) -> None:
    assert flink_url(ChosenRunner(RUNNERS[runner], tuple(arguments))) == url
    if url:
        assert Job(runner, "headct-1", url).is_run_by_service


class Cluster(ThreadingHTTPServer):
    """Jobs and settings, and which jobs were canceled."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: list[dict[str, Any]] = []
        self.settings: dict[str, str] = {}
        self.canceled: list[str] = []

    def add_job(self, jid: str, name: str, state: str, start: int) -> None:
        self.jobs.append({"jid": jid, "name": name, "state": state, "start-time": start})


class Handler(BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        answers: dict[str, Any] = {
            "/jobs/overview": {"jobs": self.server.jobs},
            "/config": {"flink-version": "1.19.3", "flink-commit": "0000000"},
            "/jobmanager/config": [
                {"key": key, "value": value} for key, value in self.server.settings.items()
            ],
        }
        self._answer(200, answers[self.path])

    def do_PATCH(self) -> None:
        path, _, query = self.path.partition("?")
        assert query == "mode=cancel"
        self.server.canceled.append(path.removeprefix("/jobs/"))
        self._answer(202, {})

    def _answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    server = Cluster()
    with serving(server):
        yield server


@pytest.fixture
def flink(cluster: Cluster) -> str:
    return f"http://127.0.0.1:{cluster.server_port}/"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("CREATED", "RUNNING"),
        ("RUNNING", "RUNNING"),
        ("RESTARTING", "RUNNING"),
        ("CANCELLING", "RUNNING"),
        ("FINISHED", "DONE"),
        ("CANCELED", "CANCELLED"),
        ("FAILED", "FAILED"),
    ],
)
def test_the_newest_job_of_a_name_has_a_state(
    cluster: Cluster, flink: str, state: str, expected: str
) -> None:
    job = Job("FlinkRunner", "headct-1", flink)
    assert job.state([]) == "UNKNOWN"
    cluster.add_job("a", "headct-1", "FAILED" if state != "FAILED" else "RUNNING", 5)
    cluster.add_job("b", "headct-1", state, 7)
    cluster.add_job("c", "headct-2", "INITIALIZING", 9)
    assert job.state([]) == expected


def test_a_job_is_canceled_by_its_name(cluster: Cluster, flink: str) -> None:
    job = Job("FlinkRunner", "headct-1", flink)
    job.cancel([])
    assert cluster.canceled == []
    cluster.add_job("a", "headct-1", "RUNNING", 5)
    cluster.add_job("b", "headct-2", "RUNNING", 6)
    job.cancel([])
    assert cluster.canceled == ["a"]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({}, ["restart-strategy", "evenly-spread-out-slots"]),
        ({"restart-strategy": "none"}, ["restart-strategy", "evenly-spread-out-slots"]),
        ({"restart-strategy": "fixed-delay"}, ["evenly-spread-out-slots"]),
        (
            {"restart-strategy.type": "fixed-delay", "cluster.evenly-spread-out-slots": "true"},
            [],
        ),
        ({"cluster.evenly-spread-out-slots": "true"}, ["restart-strategy"]),
    ],
)
def test_settings_that_a_long_job_needs_are_named(
    cluster: Cluster, flink: str, settings: dict[str, str], advice: list[str]
) -> None:
    cluster.settings = settings
    console, chosen = Console(), ChosenRunner(RUNNERS["FlinkRunner"], ("--flink_master", flink))
    with console.capture() as shown:
        assert run_job._advised_cluster(chosen, console) == flink
    found = shown.get().splitlines()
    assert len(found) == len(advice)
    assert all(word in line for word, line in zip(advice, found, strict=True))


def test_the_job_server_has_the_clusters_version(flink: str, tmp_path: Path) -> None:
    jar = tmp_path / "server.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", "Main-Class: org.apache.beam.runners.flink.Server")
    given = ("--flink_master", flink, "--flink_job_server_jar", str(jar))
    chosen = find_job_server(ChosenRunner(RUNNERS["FlinkRunner"], given))
    assert chosen.arguments == (*given, "--flink_version", "1.19")


def test_a_flink_cluster_without_an_answer() -> None:
    job = Job("FlinkRunner", "headct-1", "http://127.0.0.1:1")
    assert job.state([]) == "UNKNOWN"
    with pytest.raises(OSError, match="refused"):
        job.cancel([])
