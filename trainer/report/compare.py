"""Runs side by side: their figures, and how sure one can be that they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.metrics import precision_recall_curve, roc_curve

from headct.errors import UsageError
from trainer.evaluation.bootstrap import SAMPLES
from trainer.progress import Display, explain_weights
from trainer.report.compared_runs import ComparedRun, read_runs
from trainer.report.comparison_tables import (
    FIGURES,
    difference_table,
    figure_table,
    option_table,
    run_table,
)
from trainer.report.drawings import SERIES, Drawing, Line, draw_by_epoch, draw_in_unit_square
from trainer.report.page import decimal, write_page
from trainer.report.plots import DIAGONAL, column, label_line
from trainer.runs.outputs import check_output

SECTIONS = {
    "runs": "Runs",
    "figures": "Figures",
    "differences": "Differences",
    "curves": "Curves",
    "options": "Options that differ",
}


def write_comparison(paths: Sequence[Path], output: Path) -> None:
    """Writes a page that sets runs side by side; the first is what the others are compared with.

    Raises:
        UsageError: a run is not complete or damaged, or the runs have different labels.
    """
    if not 2 <= len(paths) <= len(SERIES):
        raise UsageError(f"--runs: must be 2 to {len(SERIES)} run directories, here: {len(paths)}")
    check_output(output)
    runs = read_runs(paths)
    first, others = runs[0], runs[1:]
    paired = [each for each in others if each.measured_as(first)]
    values = {
        "title": " and ".join(each.title for each in runs)
        if len(runs) == 2
        else f"{len(runs)} runs",
        "first": first.title,
        "sections": SECTIONS,
        "runs": run_table(runs),
        "figures": [figure_table(runs, key) for key in FIGURES],
        "unpaired": [each.title for each in others if each not in paired],
        "differences": [difference_table(first, paired, key) for key in FIGURES] if paired else [],
        "samples": SAMPLES,
        "course": course_drawings(runs),
        "roc": roc_drawings(runs),
        "precision": precision_drawings(runs),
        "options": option_table(runs),
    }
    write_page(output, "compare.html.jinja", **values)
    Display().point_out(f"written: {output}")


def course_drawings(runs: Sequence[ComparedRun]) -> list[Drawing]:
    """Validation loss, a drawing for each set of weights, and mean ROC AUC, by epoch."""
    groups: dict[str, list[ComparedRun]] = {}
    for each in runs:
        groups.setdefault(explain_weights(each.own_weights), []).append(each)
    losses = [
        course_drawing(group, "val_loss", f"Validation loss, weights: {weights}")
        for weights, group in groups.items()
    ]
    return [*losses, course_drawing(runs, "val_mean_roc_auc", "Mean ROC AUC", top=1)]


def course_drawing(
    runs: Sequence[ComparedRun], key: str, title: str, top: float | None = None
) -> Drawing:
    """A figure by epoch, one line per run."""
    lines = [
        Line(each.title, [row["epoch"] for row in each.history], column(each.history, key))
        for each in runs
    ]
    svg = draw_by_epoch(lines, title.partition(",")[0], f"{key} {title}", top=top)
    last = "; ".join(f"{line.name}: {line.y[-1]:.4f}" for line in lines)
    # A drawing of one line has no legend.
    whose = f"by epoch, {'on the fold left out' if len(runs) > 1 else runs[0].title}"
    return Drawing(
        svg, f"{title}, by epoch; after the last epoch, {last}.", label_line(title, whose)
    )


def roc_drawings(runs: Sequence[ComparedRun]) -> list[Drawing]:
    """A label's ROC curves, one line per run."""

    def curve(labels: Any, predicted: Any) -> tuple[Any, Any]:
        false, true, _ = roc_curve(labels, predicted)
        return false, true

    axes = ("1 - specificity", "sensitivity")
    return label_drawings(runs, "ROC curves", "roc_auc", axes, curve, [DIAGONAL])


def precision_drawings(runs: Sequence[ComparedRun]) -> list[Drawing]:
    """A label's precision-recall curves, one line per run."""

    def curve(labels: Any, predicted: Any) -> tuple[Any, Any]:
        precision, recall, _ = precision_recall_curve(labels, predicted)
        return recall, precision

    axes = ("recall (sensitivity)", "precision (PPV)")
    return label_drawings(runs, "Precision-recall curves", "average_precision", axes, curve, [])


def label_drawings(
    runs: Sequence[ComparedRun],
    what: str,
    key: str,
    axes: tuple[str, str],
    curve: Any,
    chance: list[Line],
) -> list[Drawing]:
    """A plot a label; labels that any run has one kind of are left out."""
    drawings = []
    for i, name in enumerate(runs[0].measured.names):
        if not all(run.measured.has_both(i) for run in runs):
            continue
        lines = [
            Line(run.title, *curve(run.measured.labels[:, i], run.measured.predicted[:, i]))
            for run in runs
        ]
        svg = draw_in_unit_square(lines, *axes, f"{what} {name}", chance=chance)
        found = "; ".join(
            f"{run.title} {decimal(run.measured.figures['labels'][name][key])}" for run in runs
        )
        figure = FIGURES[key][0].split(",")[0]
        drawings.append(
            Drawing(svg, f"{what} of {name}. {figure}: {found}.", label_line(name, found))
        )
    return drawings
