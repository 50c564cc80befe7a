"""Jobs that are asked for their state, of a job service that answers as Beam's does."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from beam_pipeline.runners import jobs
from beam_pipeline.runners.choose import RUNNERS, Launch
from beam_pipeline.runners.jobs import Job, ask_for

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
def job(service: Service) -> Iterator[jobs.Asked]:
    server = grpc.server(ThreadPoolExecutor(2))
    beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    launched = Launch(RUNNERS["PortableRunner"], (f"--job_endpoint=127.0.0.1:{port}",))
    yield ask_for(Job("PortableRunner", "the-job", f"127.0.0.1:{port}"), launched)
    server.stop(0)


def test_a_job_runs_until_its_service_says_that_it_ended(service: Service, job: jobs.Asked) -> None:
    service.states = [State.RUNNING, State.DONE]
    assert not job.wait(0)
    assert job.wait(0)


def test_a_job_that_failed_is_an_error(service: Service, job: jobs.Asked) -> None:
    service.states = [State.FAILED]
    with pytest.raises(RuntimeError, match="FAILED"):
        job.wait(0)


def test_a_service_that_does_not_answer_for_a_while_costs_nothing(
    service: Service, job: jobs.Asked
) -> None:
    service.states = [State.RUNNING, None, None, None, State.RUNNING, None, State.DONE]
    assert [job.wait(0) for _ in range(7)] == [False] * 6 + [True]
    assert service.asked == 7


def test_a_service_that_knows_nothing_of_a_job_for_long_is_an_error(
    service: Service, job: jobs.Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.states = [State.RUNNING, None]
    monkeypatch.setattr(jobs, "_SILENCE_SECONDS", 0.2)
    assert not job.wait(0)
    assert not job.wait(0), "for it may answer again"
    with pytest.raises(RuntimeError, match="UNKNOWN"):
        job.wait(0.3)


def test_a_job_service_does_not_speak_for_its_cluster(job: jobs.Asked) -> None:
    assert not job.runs_job


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
    cluster = jobs.flink_cluster(Launch(RUNNERS[runner], tuple(arguments)))
    assert (cluster.url if cluster else None) == url
    if cluster:
        assert ask_for(Job(runner, "headct-1", cluster.url), Launch(RUNNERS[runner])).runs_job
