"""How a command is spelled in a hint, and how a program ends."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from headct import commands
from headct.commands import STARTED_BY, on_sigterm, run_program, spell
from headct.errors import Interrupted, StorageError, UsageError


@pytest.mark.parametrize(
    ("started_by", "lines"),
    [
        (
            "make",
            [
                "make train SHARDS='a b'",
                "make evaluate RUN=r BACKEND=jax",
                "make export RUN=r",
                """make compare RUNS=''"'"'a b'"'"' c'""",
            ],
        ),
        (
            "headct",
            [
                "headct train --shards 'a b' --run out/run",
                "headct evaluate --run r --backend jax",
                "headct export --run r --output r/export",
                "headct compare --runs 'a b' c",
            ],
        ),
        (
            None,
            [
                "python -m trainer train --shards 'a b' --run out/run",
                "python -m trainer evaluate --run r --backend jax",
                "python -m trainer export --run r --output r/export",
                "python -m trainer compare --runs 'a b' c",
            ],
        ),
    ],
)
def test_hints_are_in_the_form_that_started_the_command(
    started_by: str | None, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STARTED_BY, raising=False)
    if started_by:
        monkeypatch.setenv(STARTED_BY, started_by)
    assert [
        spell("train", shards="a b"),
        spell("evaluate", run=Path("r"), shards=None, backend="jax"),
        spell("export", run=Path("r"), backend="jax"),
        spell("compare", runs=[Path("a b"), Path("c")]),
    ] == lines


def raising(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no\nsuch"), 2, r"p: error: no\nsuch"),
        (StorageError("s3://k:secret@b"), 5, "p: error: s3://***@b"),
        (Interrupted("cancelled"), 130, "p: cancelled"),
        (KeyboardInterrupt(), 130, "p: interrupted; the same command resumes"),
        (
            ModuleNotFoundError("x", name="cv2.x"),
            2,
            "p: cv2 is not installed; pip install headct-shards",
        ),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("p", raising(error)) == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("started_by", ["make", "headct", None])
@pytest.mark.parametrize("missing", [{"psutil"}, {"psutil", "keras"}, {"psutil", "tensorflow"}])
def test_a_missing_trainer_is_named_by_its_library_and_brought_in_the_form_that_started_it(
    started_by: str | None,
    missing: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(STARTED_BY, raising=False)
    if started_by:
        monkeypatch.setenv(STARTED_BY, started_by)
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name in missing else name)
    assert run_program("trainer", raising(ModuleNotFoundError("x", name="psutil"))) == 2
    named = max(missing, key=["psutil", "keras", "tensorflow"].index)
    by_make = "`make train` brings it, and so does the extra `trainer`: "
    assert capsys.readouterr().err == (
        f"trainer: {named} is not installed; {'' if started_by == 'headct' else by_make}"
        "pip install 'headct-shards[trainer]'\n"
    )


def test_a_bug_keeps_its_traceback() -> None:
    for bug in (ValueError("x"), ModuleNotFoundError("x", name="trainer.lost")):
        with pytest.raises(type(bug)):
            run_program("p", raising(bug))
    assert run_program("p", lambda: None) == 0
    assert run_program("p", lambda: 4) == 4


def test_the_replaced_stderr_of_a_runner_gets_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        monkeypatch.setattr(sys, "stderr", sys.stdout)
        raise UsageError("why")

    run_program("p", run)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "p: error: why\n")


def test_sigterm_is_handled_in_the_main_thread_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), on_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    seen = []

    def run() -> None:
        with on_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_exit_of_a_program_does_not_search_for_garbage() -> None:
    program = """
from headct.commands import run_program

class Cycle:
    def __init__(self):
        self.itself = self

    def __del__(self):
        print("found by a search")

print("exit code", run_program("p", lambda: None))
Cycle()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("exit code 0\n", "")
