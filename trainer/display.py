"""Terminal output: progress (a live line or occasional lines), figures, explanations."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import PurePath
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from headct.commands import spell
from headct.printable import show_line
from headct.terminal import can_redraw

_SPARSE_SECONDS = 30.0


@dataclass
class Display:
    """Shows the progress of one task at a time, such as the steps of an epoch."""

    console: Console = field(
        default_factory=lambda: Console(highlight=False, soft_wrap=True, emoji=False)
    )
    live: Progress | None = None
    task: Any = None
    started: float = 0.0
    last_line: float = 0.0
    title: str = ""
    total: int = 0
    before: int = 0

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(show_line(text), markup=False)

    def print_unwrapped(self, text: str) -> None:
        """Print a line without wrapping, so that paths and commands can be copied."""
        self.console.print(show_line(text), markup=False, highlight=False, soft_wrap=True)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Begin a task of `total` items; an earlier start has completed `done` items."""
        self.end()
        self.title, self.total, self.before = title, total, done
        self.started = self.last_line = time.monotonic()
        if can_redraw(self.console):
            self.live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                console=self.console,
                transient=True,
            )
            self.live.start()
            self.task = self.live.add_task(title, total=total, completed=done, detail="")

    def update(self, done: int, detail: Callable[[], str] = str) -> None:
        """Show that `done` items are done; call `detail` only if the line is shown."""
        if self.live is not None:
            self.live.update(self.task, completed=done, detail=detail())
        elif time.monotonic() - self.last_line >= _SPARSE_SECONDS:
            self.last_line = time.monotonic()
            left = ""
            if done > self.before:  # at the speed so far
                per_item = (time.monotonic() - self.started) / (done - self.before)
                left = f"{timedelta(seconds=round(per_item * (self.total - done)))} left"
            parts = (f"{self.title}: {done} of {self.total}", left, detail())
            self.say(", ".join(filter(None, parts)))

    def end(self) -> None:
        """Remove the live line."""
        if self.live is not None:
            self.live.stop()
            self.live = None


def number(value: float | None, digits: int = 4) -> str:
    """Format a figure; a dash if it is undefined."""
    return "-" if value is None else f"{value:.{digits}f}"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: `1 scan`, `2 scans`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def next_command(name: str, **options: PurePath | Sequence[PurePath]) -> str:
    """Return the hint at the end of a command: the next command, with the same backend."""
    keras = sys.modules.get("keras")  # not loaded by all commands
    backend = keras.backend.backend() if keras else os.environ.get("KERAS_BACKEND")
    return f"Next: {spell(name, **options, backend=None if backend == 'tensorflow' else backend)}"


def span(ends: list[float] | None) -> str:
    """Format an interval; a dash if it is undefined."""
    return "-" if ends is None else f"{ends[0]:.3f}-{ends[1]:.3f}"


def show_figures(display: Display, figures: dict[str, Any], title: str) -> None:
    """Print the figures of a split, one row per label, and explain them."""
    # 80 columns fit labels of 16 letters.
    table = Table(title=Text(show_line(title)), title_justify="left")
    names = ("label", "positives", "log loss", "ROC AUC", "95 %\ninterval", "average\nprecision")
    for name in names:
        table.add_column(name, justify="left" if name == "label" else "right", overflow="fold")
    ranges = figures["intervals_95"]
    for label, of_label in figures["labels"].items():
        table.add_row(
            Text(label),
            str(of_label["positives"]),
            number(of_label["log_loss"]),
            number(of_label["roc_auc"]),
            span(ranges["labels"][label]["roc_auc"]),
            number(of_label["average_precision"]),
        )
    table.add_section()
    table.add_row(
        "weighted / mean",
        f"of {figures['examples']}",
        number(figures["weighted_log_loss"]),
        number(figures["mean_roc_auc"]),
        span(ranges["mean_roc_auc"]),
        number(figures["mean_average_precision"]),
    )
    table.add_row("prevalence alone", "", number(figures["prevalence_log_loss"]), "0.5000", "", "")
    display.console.print(table)
    for line in explain_figures(figures):
        display.say(line)


def show_members(display: Display, ensemble: Mapping[str, Any], title: str) -> None:
    """Print the members of an ensemble, and what each adds; explain the figures."""
    table = Table(title=Text(show_line(f"{title}: members")), title_justify="left")
    for name in (
        "member",
        "weight",
        "log loss",
        "mean\nROC AUC",
        "ensemble less\nmember",
        "with less\nwithout it",
    ):
        table.add_column(name, justify="left" if name == "member" else "right", overflow="fold")
    for member in ensemble["members"]:
        table.add_row(
            Text(member["name"]),
            number(member["weight"], 2),
            number(member["weighted_log_loss"]),
            number(member["mean_roc_auc"]),
            *(signed_span(member[f"ensemble_minus_{other}"]) for other in ("alone", "without")),
        )
    display.console.print(table)
    for line in explain_members(ensemble):
        display.say(line)


def signed_span(difference: Mapping[str, Any]) -> str:
    """Format a difference and its interval in two lines."""
    ends = difference["ends"]
    spread = f"\n{ends[0]:+.4f} to {ends[1]:+.4f}" if ends else ""
    return f"{difference['value']:+.4f}{spread}"


def explain_members(ensemble: Mapping[str, Any]) -> list[str]:
    """Say how the members' answers are averaged, and compare the ensemble with the best member."""
    best = min(ensemble["members"], key=lambda member: float(member["weighted_log_loss"]))
    value, ends = (best["ensemble_minus_alone"][name] for name in ("value", "ends"))
    surely = ends is not None and (ends[1] < 0 or ends[0] > 0)
    return [
        f"Mean of {ensemble['mean']}; weights: {ensemble['weights']}. Differences of the weighted"
        " log loss, below 0 where the ensemble is better, with 95 % intervals over patients.",
        f"The ensemble's log loss is {abs(value):.4f} {'lower' if value < 0 else 'higher'} than"
        f" that of {best['name']}, its best member"
        + ("." if surely else "; too few patients to be sure."),
    ]


def explain_weights(weights: Mapping[str, float]) -> str:
    """Describe the label weights of a log loss; labels with the commonest weight are `others`."""
    (usual, _), *rest = Counter(weights.values()).most_common()
    if not rest:
        return "all labels alike"
    named = [f"{label} {weight:g}" for label, weight in weights.items() if weight != usual]
    return f"{', '.join(named)}, others {usual:g}"


def explain_figures(figures: dict[str, Any]) -> list[str]:
    """Compare the figures of a split with guessing; explain missing figures."""
    loss = number(figures["weighted_log_loss"], 3)
    ends = figures["intervals_95"]["weighted_log_loss"]
    lines = [
        f"Log loss {loss}{f' (95 % interval {span(ends)})' if ends else ''}, where answering every"
        f" slice with the training prevalence gives {number(figures['prevalence_log_loss'], 3)}:"
        f" {verdict(figures)}."
    ]
    if figures["mean_roc_auc"] is not None:
        lines.append(
            f"Mean ROC AUC {number(figures['mean_roc_auc'], 3)}, where guessing gives 0.5 and"
            " perfect ranking 1."
        )
    if "label_weights" in figures:  # earlier versions did not write them
        lines.append(f"Weights in the log loss: {explain_weights(figures['label_weights'])}.")
    if (level := figures.get("label_level")) not in (None, "image"):
        lines.append(
            f"Labels are per {level}: a slice is judged by the labels of its {level}, and is"
            " positive even if it does not show the finding itself."
        )
    lines += explain_training(figures)
    split = figures["split"]
    for label, of_label in figures["labels"].items():
        if of_label["roc_auc"] is None:
            kind = "negatives" if of_label["positives"] else "positives"
            lines.append(f"{label}: no ROC AUC, since there are no {kind} in {split}.")
    if ends is None:
        lines.append(f"There are no intervals, since {split} holds one patient.")
    return lines


def explain_training(figures: dict[str, Any]) -> list[str]:
    """Warn if figures do not apply to unseen patients."""
    split, trained = figures["split"], figures.get("trained_on", False)
    if trained is None:
        return [
            f"Whether the run was trained on patients of {split} is not known: its ids cannot be"
            " compared with those of the training, or the run does not record them."
        ]
    if not trained:
        return []
    by = (figures.get("overlap") or {}).get("by", [])
    # Image ids may be file names, and other patients' images can have the same names.
    known = " (known by image_id alone)" if by == ["image_id"] else ""
    if trained is True:
        return [f"{split} was trained on{known}: these figures say nothing of unseen patients."]
    return [
        f"{split} was trained on, {trained} of its {figures['patients']} patients{known}: these"
        " figures are not of unseen patients alone."
    ]


def verdict(figures: dict[str, Any]) -> str:
    """Compare the log loss and its interval with the log loss of the prevalence.

    No verdict if the run was, or may have been, trained on the same patients.
    """
    trained = figures.get("trained_on", False)
    if trained is not False:
        return (
            f"no verdict, since the run {'may have been' if trained is None else 'was'} trained"
            " on these patients"
        )
    loss, guess = figures["weighted_log_loss"], figures["prevalence_log_loss"]
    ends = figures["intervals_95"]["weighted_log_loss"]
    if loss >= guess:
        return "no better than guessing"
    if ends is None or ends[1] >= guess:
        return f"better than guessing, but too few patients ({figures['patients']}) to be sure"
    return "clearly better than guessing"
