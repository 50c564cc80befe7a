"""The functions here run in worker processes: they must be importable by name."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from beam_pipeline.errors import OutputError, Reason
from beam_pipeline.workers import WorkerFailed, WorkerPool


@dataclass(frozen=True)
class Letters:
    sources: tuple[str, ...]
    excluded: dict[str, Reason] = field(default_factory=dict)

    def excluding(self, source: str, reason: Reason) -> "Letters":
        return replace(self, excluded={**self.excluded, source: reason})


Outcome = dict[str, str]


def upper(task: Letters, note: Callable[[int], None]) -> Outcome:
    result = {}
    for place, source in enumerate(task.sources):
        note(place)
        if source in task.excluded:
            result[source] = task.excluded[source].value
        elif source == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif source == "hang":
            time.sleep(600)
        else:
            result[source] = source.upper()
    return result


def crash_once(task: Letters, note: Callable[[int], None], marker: Path) -> Outcome:
    note(0)
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return upper(task, note)


def fail(task: Letters, note: Callable[[int], None]) -> Outcome:
    raise KeyError("a bug")


def refuse(task: Letters, note: Callable[[int], None]) -> Outcome:
    raise OutputError("disk full")


def die_at_once(task: Letters, note: Callable[[int], None]) -> Outcome:
    os._exit(3)


def run(pool: WorkerPool[Letters, Outcome], *tasks: Letters) -> Outcome:
    return {key: value for result in pool.map(deque(tasks)) for key, value in result.items()}


def test_every_task_has_its_result() -> None:
    tasks = [Letters((letter, letter * 2)) for letter in "abcdefg"]
    result = run(WorkerPool(upper, 2), *tasks)
    assert result == {s: s.upper() for task in tasks for s in task.sources}
    assert list(WorkerPool(upper, 2).map(deque())) == []


def test_a_killed_worker_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = WorkerPool(partial(crash_once, marker=tmp_path / "killed"), 1)
    assert run(pool, Letters(("a",)), Letters(("b",))) == {"a": "A", "b": "B"}
    assert "A worker process died" in caplog.text


def test_a_source_that_crashes_its_process_twice_is_left_out() -> None:
    result = run(WorkerPool(upper, 1), Letters(("a", "crash", "b")), Letters(("c",)))
    assert result == {"a": "A", "crash": "decoder_crashed", "b": "B", "c": "C"}


def test_a_source_that_hangs_twice_is_left_out() -> None:
    result = run(WorkerPool(upper, 1, patience=1.0), Letters(("a", "hang", "b")))
    assert result == {"a": "A", "hang": "decoder_timed_out", "b": "B"}


def test_a_bug_ends_the_run_with_its_traceback() -> None:
    with pytest.raises(WorkerFailed, match="KeyError: 'a bug'"):
        run(WorkerPool(fail, 1), Letters(("a",)))


def test_a_pipeline_error_passes_as_itself() -> None:
    with pytest.raises(OutputError, match="disk full"):
        run(WorkerPool(refuse, 2), Letters(("a",)), Letters(("b",)))


def test_workers_that_always_die_end_the_run() -> None:
    with pytest.raises(WorkerFailed, match="before they touch a file"):
        run(WorkerPool(die_at_once, 1), Letters(("a",)))


def test_a_worker_that_is_killed_before_it_knows_its_work_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, killed = ForkServerProcess.start, [True, True]

    def start_later(process: ForkServerProcess) -> None:
        if killed:
            killed.pop()
            raise BrokenPipeError
        start(process)

    monkeypatch.setattr(ForkServerProcess, "start", start_later)
    test_every_task_has_its_result()
    assert not killed
