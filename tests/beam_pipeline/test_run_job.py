"""What a user is told of a job that is interrupted, lost, or waits for workers."""

import time
from pathlib import Path

import grpc
import pytest
from rich.console import Console

from beam_pipeline.errors import Refusal
from beam_pipeline.progress import Display
from beam_pipeline.runners import run_job
from beam_pipeline.runners.choose import RUNNERS, ChosenRunner
from beam_pipeline.runners.jobs import Job, JobClient
from beam_pipeline.shards.output import write_refusal
from beam_pipeline.shards.unfinished import Unfinished
from headct.errors import Interrupted
from headct.stores import Folder

JOB = Job("FlinkRunner", "headct-1", "localhost:8099")
POOL = ("--environment_type", "EXTERNAL", "--environment_config", "localhost:50000")


class Fake(JobClient):
    """A job with one state after the other, that ends when it is canceled, or does not."""

    def __init__(self, runs_job: bool, *states: str) -> None:
        self.runs_job = runs_job
        self.states = list(states)
        self.canceled = False

    def state(self) -> str:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def cancel(self) -> None:
        self.canceled = True


class Waiting:
    """A job that runs until it has been looked at some times."""

    def __init__(self, looks: int, end: BaseException | None = None) -> None:
        self._looks = looks
        self._end = end

    def wait(self, seconds: float) -> bool:
        time.sleep(0.01)
        self._looks -= 1
        if self._looks <= 0 and self._end:
            raise self._end
        return self._looks <= 0

    def cancel(self) -> None:
        raise AssertionError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_job, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(run_job, "_CANCEL_SECONDS", 0.2)
    monkeypatch.setattr(run_job, "_FIRST_SIGN_SECONDS", 0.1)


def interrupt(asked: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setattr(run_job, "connect", lambda job, arguments: asked)
    chosen = ChosenRunner(RUNNERS["FlinkRunner"], (), cancel_on_interrupt=True)
    with pytest.raises(Interrupted) as raised:
        watch(Waiting(1, KeyboardInterrupt()), chosen, tmp_path)
    assert asked.canceled
    return str(raised.value)


def watch(handle: Waiting, chosen: ChosenRunner, output: Path) -> str:
    console = Console()
    unfinished = Unfinished(Folder(str(output)))
    with Display(console, unfinished) as display, console.capture() as shown:
        run_job._watch(handle, JOB, chosen, display, console)
    return shown.get()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            Fake(True, "RUNNING", "CANCELLED"),
            "interrupted; job headct-1 was canceled; the same command resumes",
        ),
        (
            Fake(True, "RUNNING", "DONE"),
            "interrupted; job headct-1 had ended before (DONE); the same command resumes",
        ),
        (
            Fake(True, "UNKNOWN", "RUNNING"),
            "interrupted; job headct-1 was told to end, and had not yet, at localhost:8099",
        ),
        (
            Fake(False, "CANCELLED"),  # the service's word, not the cluster's
            "interrupted; the job service was asked to cancel job headct-1, at localhost:8099; the "
            "cluster may go on to the end; the same command resumes",
        ),
    ],
)
def test_canceled_is_what_the_cluster_says_is_canceled(
    asked: Fake, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert interrupt(asked, monkeypatch, tmp_path) == said


def test_silence_of_workers_is_told_once(tmp_path: Path) -> None:
    shown = watch(Waiting(40), ChosenRunner(RUNNERS["FlinkRunner"], POOL), tmp_path)
    assert shown.count("No worker has written to") == 1
    assert "; look at the output of the pool at localhost:50000." in shown
    assert "python -c 'import beam_pipeline'" in shown


@pytest.mark.parametrize("environment", ["DOCKER", "PROCESS", "LOOPBACK", "EXTERNAL"])
def test_where_to_look_depends_on_how_workers_start(environment: str) -> None:
    chosen = ChosenRunner(RUNNERS["SparkRunner"], ("--environment_type", environment))
    others = {
        run_job._explain_silence(
            ChosenRunner(RUNNERS["SparkRunner"], ("--environment_type", other)), "out"
        )
        for other in {"DOCKER", "PROCESS", "LOOPBACK", "EXTERNAL"} - {environment}
    }
    assert run_job._explain_silence(chosen, "out") not in others


def test_a_run_that_its_runner_repeats_although_it_was_refused_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = Fake(True, "RUNNING")
    monkeypatch.setattr(run_job, "connect", lambda job, arguments: asked)
    monkeypatch.setattr(run_job, "_REFUSED_SECONDS", 0.05)
    write_refusal(Folder(str(tmp_path)), 3, "too many rejects")
    with pytest.raises(Refusal, match="too many rejects") as raised:
        watch(Waiting(1000), ChosenRunner(RUNNERS["FlinkRunner"], POOL), tmp_path)
    assert raised.value.exit_code == 3
    assert asked.canceled


def test_dataflow_has_its_own_word_for_machines_that_start(tmp_path: Path) -> None:
    assert "No worker" not in watch(Waiting(40), ChosenRunner(RUNNERS["DataflowRunner"]), tmp_path)


@pytest.mark.parametrize("resumed", [False, True])
def test_workers_that_write_are_not_called_silent(resumed: bool, tmp_path: Path) -> None:
    listing = tmp_path / ".unfinished" / "listing" / "00000.arrow"

    class Writing(Waiting):
        def wait(self, seconds: float) -> bool:
            listing.parent.mkdir(parents=True, exist_ok=True)
            listing.write_bytes(b"new")
            return super().wait(seconds)

    if resumed:
        listing.parent.mkdir(parents=True)
        listing.write_bytes(b"old")
    console = Console()
    unfinished = Unfinished(Folder(str(tmp_path)))
    with Display(console, unfinished) as display, console.capture() as shown:
        display.look = lambda: None  # type: ignore[method-assign]
        chosen = ChosenRunner(RUNNERS["FlinkRunner"], POOL)
        run_job._watch(Writing(40), JOB, chosen, display, console)
    assert "No worker" not in shown.get()


class Gone(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "Socket closed"


@pytest.mark.parametrize(
    ("error", "job", "said"),
    [
        (
            Gone(),
            JOB,
            " (the job service was lost; the cluster may still run job headct-1); the same command"
            " resumes",
        ),
        (
            Gone(),
            None,
            " (a worker or the job server was lost); the same command resumes",
        ),
        (
            RuntimeError("Pipeline x failed in state FAILED: CANCELLED: client cancelled"),
            JOB,
            " (a worker or the job server was lost); the same command resumes",
        ),
        (RuntimeError("Traceback (most recent call last):\nKeyError: 'x'"), JOB, ""),
    ],
)
def test_what_to_do_after_a_loss(error: Exception, job: Job | None, said: str) -> None:
    assert run_job._after_failure(error, job) == said
