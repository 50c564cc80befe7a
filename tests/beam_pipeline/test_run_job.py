"""What a user is told of a job that is interrupted, lost, or waits for workers."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import astuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from rich.console import Console

from beam_pipeline import progress
from beam_pipeline.errors import Refusal
from beam_pipeline.progress import Display
from beam_pipeline.runners import run_job
from beam_pipeline.runners.choose import RUNNERS, ChosenRunner
from beam_pipeline.runners.run_job import Job
from beam_pipeline.shards.output import write_refusal
from beam_pipeline.shards.unfinished import Unfinished
from headct.errors import Interrupted
from headct.stores import Folder

JOB = Job("FlinkRunner", "headct-1", "localhost:8099")
POOL = ("--environment_type", "EXTERNAL", "--environment_config", "localhost:50000")


class Fake(Job):
    """A job with one state after the other, that ends when it is canceled, or does not."""

    is_run_by_service = True
    states: ClassVar[list[str]] = []
    canceled: ClassVar[list[str]] = []

    def state(self, arguments: Sequence[str]) -> str:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def cancel(self, arguments: Sequence[str]) -> None:
        self.canceled.append(self.id)


class Asked(Fake):
    """A job that a job service only asks a cluster to cancel."""

    is_run_by_service = False


class Waiting(Future[None]):
    """The end of a job, which runs until it has been looked at some times."""

    def __init__(self, looks: int, end: BaseException | None = None) -> None:
        super().__init__()
        self._looks = looks
        self._end = end

    def look(self, ends: "list[Waiting]", seconds: float) -> Any:
        time.sleep(0.01)
        self._looks -= 1
        if self._looks <= 0:
            if self._end:
                raise self._end
            self.set_result(None)
        return SimpleNamespace(done=self._looks <= 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(run_job, "_ASK_SECONDS", 0.01)
    monkeypatch.setattr(run_job, "_CANCEL_SECONDS", 0.2)
    monkeypatch.setattr(run_job, "_FIRST_SIGN_SECONDS", 0.1)


def interrupt(job: Job, tmp_path: Path) -> str:
    chosen = ChosenRunner(RUNNERS["FlinkRunner"], (), cancel_on_interrupt=True)
    with pytest.raises(Interrupted) as raised:
        watch(Waiting(1, KeyboardInterrupt()), chosen, tmp_path, job)
    return str(raised.value)


def watch(end: Waiting, chosen: ChosenRunner, output: Path, job: Job = JOB) -> str:
    console = Console()
    unfinished = Unfinished(Folder(str(output)))
    with pytest.MonkeyPatch.context() as patch, console.capture() as shown:
        patch.setattr(run_job, "wait", end.look)
        with Display(console, unfinished) as display:
            cancel = partial(job.cancel, chosen.arguments)
            run_job._watch(end, cancel, job, chosen, display, console)
    return shown.get()


@pytest.mark.parametrize(
    ("kind", "states", "said"),
    [
        (
            Fake,
            ["RUNNING", "CANCELLED"],
            "interrupted; job headct-1 was canceled; the same command resumes",
        ),
        (
            Fake,
            ["RUNNING", "DONE"],
            "interrupted; job headct-1 had ended before (DONE); the same command resumes",
        ),
        (
            Fake,
            ["UNKNOWN", "RUNNING"],
            "interrupted; job headct-1 was told to end, and had not yet, at localhost:8099",
        ),
        (
            Asked,
            ["CANCELLED"],  # the service's word, not the cluster's
            "interrupted; the job service was asked to cancel job headct-1, at localhost:8099; the "
            "cluster may go on to the end; the same command resumes",
        ),
    ],
)
def test_canceled_is_what_the_cluster_says_is_canceled(
    kind: type[Fake],
    states: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(Fake, "states", states)
    monkeypatch.setattr(Fake, "canceled", [])
    assert interrupt(kind(*astuple(JOB)), tmp_path) == said
    assert Fake.canceled == ["headct-1"]


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
    monkeypatch.setattr(Fake, "canceled", [])
    monkeypatch.setattr(run_job, "_REFUSED_SECONDS", 0.05)
    write_refusal(Folder(str(tmp_path)), 3, "too many rejects")
    chosen = ChosenRunner(RUNNERS["FlinkRunner"], POOL)
    with pytest.raises(Refusal, match="too many rejects") as raised:
        watch(Waiting(1000), chosen, tmp_path, Fake(*astuple(JOB)))
    assert raised.value.exit_code == 3
    assert Fake.canceled == ["headct-1"]


def test_dataflow_has_its_own_word_for_machines_that_start(tmp_path: Path) -> None:
    assert "No worker" not in watch(Waiting(40), ChosenRunner(RUNNERS["DataflowRunner"]), tmp_path)


@pytest.mark.parametrize("resumed", [False, True])
def test_workers_that_write_are_not_called_silent(
    resumed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = tmp_path / ".unfinished" / "listing" / "00000.arrow"

    class Writing(Waiting):
        def look(self, ends: list[Waiting], seconds: float) -> Any:
            listing.parent.mkdir(parents=True, exist_ok=True)
            listing.write_bytes(b"new")
            return super().look(ends, seconds)

    if resumed:
        listing.parent.mkdir(parents=True)
        listing.write_bytes(b"old")
    monkeypatch.setattr(Display, "look", lambda display: None)
    chosen = ChosenRunner(RUNNERS["FlinkRunner"], POOL)
    assert "No worker" not in watch(Writing(40), chosen, tmp_path)
