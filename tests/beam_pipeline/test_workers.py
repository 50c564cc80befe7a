"""The functions here run in worker processes: they must be importable by name."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from beam_pipeline.workers import Later, Watch, WorkerFailed, WorkerPool
from headct.errors import OutputError, StoreError
from tests.processes import run_python

Letters = tuple[str, ...]
Outcome = dict[str, str]


def upper(task: Letters, watch: Watch) -> Outcome:
    result = {}
    for place, letter in enumerate(task):
        if place in watch.excluded:
            result[letter] = watch.excluded[place].value
            continue
        watch.working(place)
        if letter == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if letter == "hang":
            time.sleep(600)
        result[letter] = letter.upper()
        watch.waiting()
    return result


def note_start(starts: Path) -> int:
    """How often a task was begun, this time too."""
    with starts.open("a") as file:
        file.write("x")
    return starts.stat().st_size


def be_killed(task: Letters, watch: Watch, starts: Path, times: int) -> Outcome:
    """While working on the first item."""
    if 0 not in watch.excluded:
        watch.working(0)
        if note_start(starts) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
    return upper(task, watch)


def run_out_of_memory(task: Letters, watch: Watch, starts: Path, times: int) -> Outcome:
    """While working on the first item, whose end is told all the same."""
    if 0 not in watch.excluded:
        watch.working(0)
        try:
            if note_start(starts) <= times:
                raise MemoryError
        finally:
            watch.waiting()
    return upper(task, watch)


def crash_once(task: Letters, watch: Watch, starts: Path) -> Outcome:
    watch.working(0)
    if note_start(starts) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return upper(task, watch)


def die_while_waiting(task: Letters, watch: Watch, starts: Path) -> Outcome:
    """Three times: more often than an item may crash."""
    result = upper(task, watch)
    if note_start(starts) <= 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def wait_for_storage(task: Letters, watch: Watch, starts: Path, seconds: float) -> Outcome:
    note_start(starts)
    watch.working(0)
    watch.waiting()
    time.sleep(seconds)
    return upper(task, watch)


def upload_for_ever(task: Letters, watch: Watch, folder: Path) -> Later[Outcome]:
    """What is left of the first task waits until the second has begun."""
    result = upper(task, watch)
    (folder / task[0]).touch()

    def finish() -> Outcome:
        while task == ("a",) and not (folder / "b").exists():
            time.sleep(0.01)
        return result

    return Later(finish)


def die_while_uploading(task: Letters, watch: Watch, starts: Path) -> Later[Outcome]:
    result = upper(task, watch)

    def finish() -> Outcome:
        if note_start(starts) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return Later(finish)


def refuse_later(task: Letters, watch: Watch) -> Later[Outcome]:
    def finish() -> Outcome:
        raise OutputError("disk full")

    return Later(finish)


def fail(task: Letters, watch: Watch) -> Outcome:
    raise KeyError("a bug")


def refuse(task: Letters, watch: Watch) -> Outcome:
    raise OutputError("disk full")


def die_at_once(task: Letters, watch: Watch) -> Outcome:
    os._exit(3)


def merge(results: Iterator[Outcome]) -> Outcome:
    return {key: value for result in results for key, value in result.items()}


def run(pool: WorkerPool[Letters, Outcome], *tasks: Letters) -> Outcome:
    return merge(pool.map(tasks))


def test_every_task_has_its_result() -> None:
    tasks = [(letter, letter * 2) for letter in "abcdefg"]
    result = run(WorkerPool(upper, 2), *tasks)
    assert result == {letter: letter.upper() for task in tasks for letter in task}
    assert run(WorkerPool(upper, 2)) == {}


def test_tasks_may_be_given_one_at_a_time() -> None:
    pool = WorkerPool(upper, 2)
    tasks = [(letter,) for letter in "abcdefg"]
    early = [result for task in tasks for result in pool.submit(task)]
    late = list(pool.finish())
    assert list(pool.finish()) == []
    pool.close()
    assert len(early) + len(late) == len(tasks)
    assert merge(iter(early + late)) == {letter: letter.upper() for letter in "abcdefg"}


def test_a_pool_that_was_closed_can_be_used_again() -> None:
    pool = WorkerPool(upper, 1)
    assert run(pool, ("a",)) == {"a": "A"}
    assert run(pool, ("b",)) == {"b": "B"}


def test_a_killed_worker_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = WorkerPool(partial(crash_once, starts=tmp_path / "starts"), 1)
    assert run(pool, ("a",), ("b",)) == {"a": "A", "b": "B"}
    assert "A worker process died" in caplog.text


@pytest.mark.parametrize(("times", "expected"), [(3, "A"), (4, "decoder_crashed")])
def test_a_process_may_be_killed_from_outside_wherever_it_is(
    tmp_path: Path, times: int, expected: str
) -> None:
    pool = WorkerPool(partial(be_killed, starts=tmp_path / "starts", times=times), 1)
    assert run(pool, ("a", "b")) == {"a": expected, "b": "B"}


@pytest.mark.parametrize(("times", "expected"), [(3, "A"), (4, "decoder_crashed")])
def test_an_item_that_memory_runs_out_at_is_tried_again_in_another_process(
    tmp_path: Path, times: int, expected: str
) -> None:
    pool = WorkerPool(partial(run_out_of_memory, starts=tmp_path / "starts", times=times), 1)
    assert run(pool, ("a", "b")) == {"a": expected, "b": "B"}


def test_an_item_that_crashes_its_process_twice_is_left_out() -> None:
    result = run(WorkerPool(upper, 1), ("a", "crash", "b"), ("c", "d"))
    assert result == {"a": "A", "crash": "decoder_crashed", "b": "B", "c": "C", "d": "D"}


def test_an_item_that_hangs_twice_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    result = run(WorkerPool(upper, 1, patience=1.0), ("a", "hang", "b"))
    assert result == {"a": "A", "hang": "decoder_timed_out", "b": "B"}
    assert "A worker process hung" in caplog.text


def test_several_items_of_a_task_may_be_left_out() -> None:
    result = run(WorkerPool(upper, 1, patience=1.0), ("crash", "a", "hang"))
    assert result == {"crash": "decoder_crashed", "a": "A", "hang": "decoder_timed_out"}


def test_a_process_that_dies_while_it_waits_is_no_items_fault(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    pool = WorkerPool(partial(die_while_waiting, starts=starts), 1)
    assert run(pool, ("a", "b")) == {"a": "A", "b": "B"}
    assert starts.stat().st_size == 4


def test_what_is_left_of_a_task_is_done_beside_the_next(tmp_path: Path) -> None:
    pool = WorkerPool(partial(upload_for_ever, folder=tmp_path), 1)
    assert run(pool, ("a",), ("b",), ("c",)) == {"a": "A", "b": "B", "c": "C"}


@pytest.mark.parametrize("tasks", [[("a",)], [("a",), ("b",)]])
def test_a_task_is_done_again_if_its_process_dies_before_the_end(
    tmp_path: Path, tasks: list[Letters]
) -> None:
    starts = tmp_path / "starts"
    pool = WorkerPool(partial(die_while_uploading, starts=starts), 1)
    assert run(pool, *tasks) == {task[0]: task[0].upper() for task in tasks}
    assert starts.stat().st_size == len(tasks) + 1


def test_a_crash_beside_an_upload_costs_neither(tmp_path: Path) -> None:
    pool = WorkerPool(partial(upload_for_ever, folder=tmp_path), 1, patience=0.5)
    found = run(pool, ("a",), ("crash", "b"), ("b",))
    assert found == {"a": "A", "crash": "decoder_crashed", "b": "B"}


def test_what_is_left_may_fail() -> None:
    with pytest.raises(OutputError, match="disk full"):
        run(WorkerPool(refuse_later, 1), ("a",), ("b",))


def test_waiting_for_storage_is_not_hanging(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    pool = WorkerPool(
        partial(wait_for_storage, starts=starts, seconds=2), 1, patience=0.5, storage_patience=60
    )
    assert run(pool, ("a", "b")) == {"a": "A", "b": "B"}
    assert starts.stat().st_size == 1


def test_storage_that_is_waited_for_too_long_ends_the_run(tmp_path: Path) -> None:
    pool = WorkerPool(
        partial(wait_for_storage, starts=tmp_path / "starts", seconds=600),
        1,
        storage_patience=1.0,
        storage="s3://bucket/slices",
    )
    with pytest.raises(StoreError, match=r"^s3://bucket/slices: no answer for [123] s; the same"):
        run(pool, ("a",))
    assert (tmp_path / "starts").stat().st_size == 1
    assert multiprocessing.active_children() == []


def test_a_bug_ends_the_run_with_its_traceback() -> None:
    with pytest.raises(WorkerFailed, match="KeyError: 'a bug'"):
        run(WorkerPool(fail, 1), ("a",))


def test_a_pipeline_error_passes_as_itself() -> None:
    with pytest.raises(OutputError, match="disk full"):
        run(WorkerPool(refuse, 2), ("a",), ("b",))


def test_workers_that_always_die_end_the_run() -> None:
    with pytest.raises(WorkerFailed, match="before they touch a file"):
        run(WorkerPool(die_at_once, 1), ("a",))


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


def test_processes_that_cannot_be_started_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(process: ForkServerProcess) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(ForkServerProcess, "start", never)
    with pytest.raises(WorkerFailed, match="before they can be told what to do"):
        run(WorkerPool(upper, 1), ("a",))


def processes() -> int:
    return len(multiprocessing.active_children())


def test_processes_live_while_there_is_work_and_are_no_more_than_allowed() -> None:
    assert processes() == 0
    pool = WorkerPool(upper, 2)
    assert processes() == 0
    list(pool.submit(("a",)))
    assert processes() == 1
    for letter in "bcdef":
        list(pool.submit((letter,)))
        assert 1 <= processes() <= 2
    list(pool.finish())
    assert 1 <= processes() <= 2
    pool.close()
    assert processes() == 0


def test_one_task_starts_one_process() -> None:
    pool = WorkerPool(upper, 8)
    list(pool.submit(("a",)))
    assert processes() == 1
    list(pool.finish())
    list(pool.submit(("b",)))  # there is one that is free
    assert processes() == 1
    list(pool.finish())
    pool.close()


def test_pools_that_share_slots_have_no_more_processes_than_slots() -> None:
    slots = threading.Semaphore(2)
    first, second = (WorkerPool(upper, 2, slots=slots) for _ in range(2))
    list(first.submit(("a",)))
    list(second.submit(("b",)))
    results = [*second.submit(("c",)), *second.submit(("d",))]  # by the only process it may have
    assert processes() == 2
    results += second.finish()
    first.close()
    results += [*second.submit(("e",)), *second.submit(("f",)), *second.submit(("g",))]
    assert processes() == 2
    results += second.finish()
    second.close()
    assert sorted("".join(result) for result in results) == ["b", "c", "d", "e", "f", "g"]
    assert all(slots.acquire(blocking=False) for _ in range(2)), "all were given back"
    assert not slots.acquire(blocking=False)


def test_a_pool_waits_for_a_slot() -> None:
    slots = threading.Semaphore(1)
    first, second = (WorkerPool(upper, 1, slots=slots) for _ in range(2))
    list(first.submit(("a",)))
    results: list[Outcome] = []
    waiting = threading.Thread(target=lambda: results.extend(second.map([("b",)])))
    waiting.start()
    assert list(first.finish()) == [{"a": "A"}]
    assert processes() == 1
    assert not results
    first.close()
    waiting.join(60)
    assert results == [{"b": "B"}]


def test_a_result_that_nobody_takes_leaves_no_process() -> None:
    results = WorkerPool(upper, 2).map([("a",), ("b",), ("c",)])
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert processes() == 0


MAIN = """
import sys
from pathlib import Path

with Path({imported!r}).open("a") as file:
    file.write(__name__ + "\\n")

if __name__ == "__main__":
    from beam_pipeline.workers import WorkerPool
    from tests.beam_pipeline.test_workers import upper

    print(sorted(next(iter(r)) for r in WorkerPool(upper, 2).map([("a",), ("b",), ("c",)])))
    assert sys.modules["__main__"].__dict__ is globals()
"""


@pytest.mark.parametrize("as_module", [False, True])
def test_a_process_does_not_import_the_main_module(tmp_path: Path, as_module: bool) -> None:
    imported = tmp_path / "imported"
    (tmp_path / "mainly.py").write_text(MAIN.format(imported=str(imported)))
    done = run_python(*(("-m", "mainly") if as_module else ("mainly.py",)), cwd=tmp_path)
    assert done.stdout == "['a', 'b', 'c']\n"
    assert imported.read_text().split() == ["__main__"]


COMMAND = """
import sys, threading
from beam_pipeline.workers import WorkerPool, fork_server
from tests.beam_pipeline.test_workers import tell_of_imports

if __name__ == "__main__":
    sys.modules["imported_before"] = threading
    print("not twice", end="")
    if {threaded}:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    fork_server("")
    print(*WorkerPool(tell_of_imports, 2).map(["imported_before"] * 3))
"""


def tell_of_imports(module: str, _: Watch) -> tuple[bool, bool]:
    """Whether the process has a module, and ends by SIGTERM."""
    return module in sys.modules, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("threaded", [False, True])
def test_workers_have_what_a_command_without_threads_imported(
    tmp_path: Path, threaded: bool
) -> None:
    (tmp_path / "command.py").write_text(COMMAND.format(threaded=threaded))
    done = run_python("command.py", cwd=tmp_path)
    assert done.stdout == f"not twice{' '.join([str((not threaded, True))] * 3)}\n"
    assert not done.stderr
