"""Comparison page of several runs: figures, and differences with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from headct.errors import UsageError
from headct.json_documents import read_json
from trainer.display import Display, explain_weights
from trainer.evaluation.bootstrap import (
    SAMPLES,
    Array,
    ResampledFigures,
    interval,
    mean_of_defined,
    resample_figures,
)
from trainer.evaluation.measured import Measured, measure_frame, read_predictions
from trainer.options import label_weights
from trainer.report.page import (
    NUMBER,
    TEXT,
    Picture,
    Table,
    caption,
    code,
    decimal,
    signed,
    with_interval,
    write_page,
)
from trainer.report.plots import (
    DIAGONAL,
    PRECISION_AXES,
    ROC_AXES,
    SERIES,
    Line,
    column,
    draw_by_epoch,
    draw_in_unit_square,
    draw_svg,
    precision_line,
    roc_line,
)
from trainer.runs.outputs import check_output
from trainer.runs.run_directory import RunDirectory, read_description

SECTIONS = {
    "runs": "Runs",
    "figures": "Figures",
    "differences": "Differences",
    "curves": "Curves",
    "options": "Options that differ",
}


@dataclass(frozen=True)
class ComparedFigure:
    """A figure to compare runs by.

    Attributes:
        key: key in the figures of a label.
        total: key in the figures of all labels together.
        title: title in tables.
        digits: decimal places.
    """

    key: str
    total: str
    title: str
    digits: int = 3


LOSS = ComparedFigure("log_loss", "weighted_log_loss", "Log loss (nats), lower is better", 4)
AUC = ComparedFigure("roc_auc", "mean_roc_auc", "ROC AUC, higher is better")
PRECISION = ComparedFigure(
    "average_precision", "mean_average_precision", "Average precision, higher is better"
)
FIGURES = (LOSS, AUC, PRECISION)


@dataclass(frozen=True)
class ComparedRun:
    """A complete run, with its predictions sorted by image id.

    Attributes:
        title: short name on the page.
        path: the run directory.
        description: content of run.json.
        metrics: content of metrics.json.
        history: content of history.json.
        frame: predictions, one row per slice.
        measured: figures of the predictions, with the label weights of the first run.
    """

    title: str
    path: Path
    description: dict[str, Any]
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    frame: pd.DataFrame
    measured: Measured

    @property
    def own_weights(self) -> dict[str, float]:
        """Label weights in the losses of the run's history."""
        text, names = self.description["options"]["label_weights"], self.measured.names
        return dict(zip(names, label_weights(text, names, saved=True), strict=True))

    @cached_property
    def resampled(self) -> ResampledFigures:
        """Figures per resample of patients, paired between runs of the same slices."""
        one = self.measured
        return resample_figures(one.labels, one.predicted, one.patients, samples=SAMPLES)

    def values(self, figure: ComparedFigure) -> list[float | None]:
        """Return a figure per label, then for all labels together."""
        figures = self.measured.figures
        labels = [figures["labels"][name][figure.key] for name in self.measured.names]
        return [*labels, figures[figure.total]]

    def resampled_values(self, figure: ComparedFigure) -> list[Array]:
        """Return the resamples of every entry of `values`, [S], without undefined means."""
        labels: Array = getattr(self.resampled, figure.key)
        if figure is LOSS:
            together = self.resampled.weighted_log_loss(self.measured.weights)
        else:
            together = mean_of_defined(labels)
        return [*labels.T, together]

    def has_slices_of(self, other: ComparedRun) -> bool:
        """Return whether both runs have the same shards, split, slices and labels."""
        mine, theirs = self.description["shards"], other.description["shards"]
        keys = ["image_id", "patient_id"] + [f"label_{name}" for name in self.measured.names]
        return (
            mine["digest"] == theirs["digest"]
            and self.metrics["split"] == other.metrics["split"]
            and self.frame[keys].equals(other.frame[keys])
        )


def write_comparison(paths: Sequence[Path], output: Path) -> None:
    """Write a page that compares runs with the first run.

    Raises:
        UsageError: a run is incomplete or damaged, or the runs have different labels.
    """
    if not 2 <= len(paths) <= len(SERIES):
        raise UsageError(f"--runs: must be 2 to {len(SERIES)} run directories, here: {len(paths)}")
    check_output(output)
    runs = read_runs(paths)
    first, others = runs[0], runs[1:]
    paired = [run for run in others if run.has_slices_of(first)]
    values = {
        "title": " and ".join(run.title for run in runs) if len(runs) == 2 else f"{len(runs)} runs",
        "first": first.title,
        "sections": SECTIONS,
        "runs": run_table(runs),
        "figures": [figure_table(runs, figure) for figure in FIGURES],
        "unpaired": [run.title for run in others if run not in paired],
        "differences": [difference_table(first, paired, figure) for figure in FIGURES if paired],
        "samples": SAMPLES,
        "course": course_plots(runs),
        "roc": label_plots(runs, "ROC curves", AUC, roc_line, ROC_AXES, DIAGONAL),
        "precision": label_plots(
            runs, "Precision-recall curves", PRECISION, precision_line, PRECISION_AXES
        ),
        "options": option_table(runs),
    }
    write_page(output, "compare.html.jinja", **values)
    Display().print_unwrapped(f"written: {output}")


def read_runs(paths: Sequence[Path]) -> list[ComparedRun]:
    """Read the runs; the label weights of the first run apply to all runs.

    Raises:
        UsageError: a run is incomplete or damaged, or the runs have different labels.
    """
    described = [read_description(RunDirectory(path)) for path in paths]
    names = tuple(described[0]["shards"]["labels"])
    weights = label_weights(described[0]["options"]["label_weights"], names, saved=True)
    runs = []
    for path, title, description in zip(paths, short_titles(paths), described, strict=True):
        run, labels = RunDirectory(path), tuple(description["shards"]["labels"])
        if labels != names:
            raise UsageError(
                f"{path}: has labels {', '.join(labels)}; {paths[0]}: {', '.join(names)}"
            )
        if not run.is_complete:
            raise UsageError(f"{path}: training is not complete, so there is nothing to compare")
        metrics = read_json(run.metrics)
        frame = read_predictions(run.predictions(metrics["split"]), names)
        frame = frame.sort_values("image_id", ignore_index=True)
        measured = measure_frame(frame, names, weights)
        history = read_json(path / "history.json")
        runs.append(ComparedRun(title, path, description, metrics, history, frame, measured))
    return runs


def short_titles(paths: Sequence[Path]) -> list[str]:
    """Return the names of the run directories, preceded by the parents if names are equal."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) == len(names):
        return names
    longer = [f"{path.resolve().parent.name}/{path.resolve().name}" for path in paths]
    return longer if len(set(longer)) == len(longer) else [str(path) for path in paths]


def run_table(runs: Sequence[ComparedRun]) -> Table:
    """Make a table with one row per run."""
    headings = ("Run", "Directory", "Model", "Split", "Shards", "Slices", "Patients", "Best epoch")
    kinds = (TEXT,) * 5 + (NUMBER,) * 3
    rows = [
        [
            run.title,
            code(str(run.path)),
            run.description["options"].get("model", ""),
            run.metrics["split"],
            code(run.description["shards"]["digest"][:12]),
            run.metrics["examples"],
            run.metrics["patients"],
            f"{run.metrics['best_epoch']} of {run.metrics['epochs']}",
        ]
        for run in runs
    ]
    return Table("The runs", list(zip(headings, kinds, strict=True)), rows)


def figure_table(runs: Sequence[ComparedRun], figure: ComparedFigure) -> Table:
    """Make a table of a figure and its intervals: one row per label, one column per run."""
    columns = [
        [
            with_interval(value, interval(resampled), figure.digits)
            for value, resampled in zip(
                run.values(figure), run.resampled_values(figure), strict=True
            )
        ]
        for run in runs
    ]
    headings = [(run.title, NUMBER) for run in runs]
    return label_table(figure.title, runs[0], figure, headings, columns)


def difference_table(
    first: ComparedRun, others: Sequence[ComparedRun], figure: ComparedFigure
) -> Table:
    """Make a table of differences from the first run, with intervals from paired resamples."""
    headings: list[tuple[str, str]] = []
    columns: list[list[Any]] = []
    for run in others:
        pairs = zip(run.values(figure), first.values(figure), strict=True)
        differences = [None if a is None or b is None else a - b for a, b in pairs]
        resamples = zip(run.resampled_values(figure), first.resampled_values(figure), strict=True)
        ends = [interval(a - b) for a, b in resamples]
        headings += [(f"{run.title} - {first.title}", NUMBER), (f"Verdict on {run.title}", TEXT)]
        columns += [
            [signed(a, end, figure.digits) for a, end in zip(differences, ends, strict=True)],
            [verdict(end, figure is LOSS) for end in ends],
        ]
    return label_table(f"Difference: {figure.title}", first, figure, headings, columns)


def label_table(
    title: str,
    first: ComparedRun,
    figure: ComparedFigure,
    headings: list[tuple[str, str]],
    columns: list[list[Any]],
) -> Table:
    """Make a table with one row per label, and the mean; columns have one cell per row."""
    weights = explain_weights(first.measured.figures["label_weights"])
    mean = f"Mean, weights: {weights}" if figure is LOSS else "Mean"
    rows = [list(row) for row in zip([*first.measured.names, mean], *columns, strict=True)]
    return Table(title, [("Label", TEXT), *headings], rows[:-1], rows[-1:])


def verdict(ends: list[float] | None, lower_is_better: bool) -> str:
    """Return which run an interval of differences favors."""
    if ends is None:
        return "no interval"
    if ends[0] <= 0 <= ends[1]:
        return "undecided"
    return "better" if (ends[1] < 0) == lower_is_better else "worse"


def option_table(runs: Sequence[ComparedRun]) -> Table | None:
    """Make a table of the options and versions that differ between runs; None if none differ."""
    columns = [("Option", TEXT), *((run.title, TEXT) for run in runs)]
    rows = []
    for key in ("options", "versions"):
        recorded = [run.description[key] for run in runs]
        for name in dict.fromkeys(name for options in recorded for name in options):
            values = [str(options.get(name, "")) for options in recorded]
            if len(set(values)) > 1:
                rows.append([name, *values])
    return Table("Options and versions that differ", columns, rows) if rows else None


def course_plots(runs: Sequence[ComparedRun]) -> list[Picture]:
    """Plot validation loss by epoch, one plot per set of label weights, and mean ROC AUC."""
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault(explain_weights(run.own_weights), []).append(run)
    losses = [
        course_plot(group, "val_loss", f"Validation loss, weights: {weights}", (0, None))
        for weights, group in groups.items()
    ]
    return [*losses, course_plot(runs, "val_mean_roc_auc", "Mean ROC AUC", (None, 1))]


def course_plot(
    runs: Sequence[ComparedRun], key: str, title: str, ylim: tuple[float | None, float | None]
) -> Picture:
    """Plot a figure by epoch, one line per run."""
    lines = [
        Line(run.title, column(run.history, "epoch"), column(run.history, key)) for run in runs
    ]
    svg = draw_svg(f"{key} {title}", draw_by_epoch, lines, title.partition(",")[0], ylim)
    last = "; ".join(f"{line.name}: {line.y[-1]:.4f}" for line in lines)
    alt = f"{title}, by epoch; after the last epoch, {last}."
    # A plot of one line has no legend.
    whose = "on the fold left out" if len(runs) > 1 else runs[0].title
    return Picture(svg, alt, caption(title, f"by epoch, {whose}"))


def label_plots(
    runs: Sequence[ComparedRun],
    title: str,
    figure: ComparedFigure,
    make_line: Callable[[str, Any, Any], Line],
    axes: tuple[str, str],
    chance: Line | None = None,
) -> list[Picture]:
    """Plot one line per run, one plot per label with positives and negatives in all runs."""
    plots = []
    for i, name in runs[0].measured.defined:
        if not all((i, name) in run.measured.defined for run in runs):
            continue
        lines = [
            make_line(run.title, run.measured.labels[:, i], run.measured.predicted[:, i])
            for run in runs
        ]
        svg = draw_svg(f"{title} {name}", draw_in_unit_square, lines, axes, chance)
        values = "; ".join(f"{run.title} {decimal(run.values(figure)[i])}" for run in runs)
        alt = f"{title} of {name}. {figure.title.split(',')[0]}: {values}."
        plots.append(Picture(svg, alt, caption(name, values)))
    return plots
