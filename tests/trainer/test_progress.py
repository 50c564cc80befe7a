import io

import pytest
from rich.console import Console

from trainer import progress
from trainer.progress import Display


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only the test moves."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_now_and_then_where_there_is_no_terminal(clock: list[float]) -> None:
    shown = io.StringIO()
    display = Display(Console(file=shown))
    display.begin("epoch 1 of 2", 100, done=40)
    asked = []
    for seconds, done in ((29, 41), (1, 45), (29, 46), (31, 70)):
        clock[0] += seconds
        display.update(done, lambda done=done: asked.append(done) or "loss 0.5")
    assert shown.getvalue().splitlines() == [
        "epoch 1 of 2: 45 of 100, 0:05:30 left, loss 0.5",
        "epoch 1 of 2: 70 of 100, 0:01:30 left, loss 0.5",
    ]
    assert asked == [45, 70]


def test_nothing_is_said_of_a_time_that_nothing_tells(clock: list[float]) -> None:
    shown = io.StringIO()
    display = Display(Console(file=shown))
    display.begin("predicting test", 10)
    clock[0] += 60
    display.update(0)
    assert shown.getvalue() == "predicting test: 0 of 10\n"


def test_a_live_line_on_a_terminal_goes_away() -> None:
    shown = io.StringIO()
    display = Display(Console(file=shown, force_terminal=True, width=120))
    display.begin("epoch 1 of 2", 10)
    display.update(5, lambda: "loss 0.25")
    display.live.refresh()
    assert "5/10" in shown.getvalue()
    assert "loss 0.25" in shown.getvalue()
    display.end()
    assert display.live is None
