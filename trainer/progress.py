"""What the terminal shows: a live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

SPARSE_SECONDS = 30.0


@dataclass
class Display:
    """Shows one phase at a time: an epoch's steps, or the examples of a split."""

    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    live: Progress | None = None
    task: Any = None
    started: float = 0.0
    last_line: float = 0.0
    title: str = ""
    total: int = 0
    before: int = 0

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """A new phase of `total` parts, of which `done` were done before."""
        self.end()
        self.title, self.total, self.before = title, total, done
        self.started = self.last_line = time.monotonic()
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
                console=self.console,
                transient=True,
            )
            self.live.start()
            self.task = self.live.add_task(title, total=total, completed=done, detail="")

    def update(self, done: int, detail: Callable[[], str] = str) -> None:
        """`done` parts of the phase are done; `detail` is made only where it is shown."""
        if self.live is not None:
            self.live.update(self.task, completed=done, detail=detail())
        elif time.monotonic() - self.last_line >= SPARSE_SECONDS:
            self.last_line = time.monotonic()
            parts = (f"{self.title}: {done} of {self.total}", self.time_left(done), detail())
            self.say(", ".join(filter(None, parts)))

    def time_left(self, done: int) -> str:
        """How long the rest takes at the speed so far; nothing before any part is done."""
        if done <= self.before:
            return ""
        each = (time.monotonic() - self.started) / (done - self.before)
        return f"{timedelta(seconds=round(each * (self.total - done)))} left"

    def end(self) -> None:
        """Takes the live line away."""
        if self.live is not None:
            self.live.stop()
            self.live = None


def number(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash where it is not defined."""
    return "-" if value is None else f"{value:.{digits}f}"


def span(ends: list[float] | None) -> str:
    """An interval, or a dash where it is not defined."""
    return "-" if ends is None else f"{ends[0]:.3f}-{ends[1]:.3f}"


def figures_table(figures: dict[str, Any], title: str) -> Table:
    """The figures of a split, a row a label."""
    table = Table(title=title, title_justify="left")
    for name in ("label", "positives", "log loss", "ROC AUC", "avg. precision"):
        table.add_column(name, justify="left" if name == "label" else "right")
    for label, each in figures["labels"].items():
        table.add_row(
            label,
            str(each["positives"]),
            number(each["log_loss"]),
            number(each["roc_auc"]),
            number(each["average_precision"]),
        )
    table.add_section()
    table.add_row(
        "weighted / mean",
        f"of {figures['examples']}",
        number(figures["weighted_log_loss"]),
        number(figures["mean_roc_auc"]),
        number(figures["mean_average_precision"]),
    )
    table.add_row("prevalence alone", "", number(figures["prevalence_log_loss"]), "", "")
    ranges = figures["intervals_95"]
    table.add_row(
        "95 % interval", "", span(ranges["weighted_log_loss"]), span(ranges["mean_roc_auc"]), ""
    )
    return table
