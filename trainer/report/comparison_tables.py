"""The tables of a comparison: headings and rows, for the macro `table`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.evaluation.bootstrap import Array, interval, mean_of_defined
from trainer.progress import explain_weights
from trainer.report.compared_runs import ComparedRun
from trainer.report.page import code, signed, with_interval
from trainer.report.tables import NUMBER, TEXT, Table

FIGURES = {
    "log_loss": ("Log loss (nats), lower is better", 4),
    "roc_auc": ("ROC AUC, higher is better", 3),
    "average_precision": ("Average precision, higher is better", 3),
}
TOTALS = {
    "log_loss": "weighted_log_loss",
    "roc_auc": "mean_roc_auc",
    "average_precision": "mean_average_precision",
}


def run_table(runs: Sequence[ComparedRun]) -> Table:
    """What each run is."""
    headings = ("Run", "Directory", "Model", "Split", "Shards", "Slices", "Patients", "Best epoch")
    kinds = (TEXT,) * 5 + (NUMBER,) * 3
    rows = [
        [
            each.title,
            code(str(each.path)),
            each.description["options"].get("model", ""),
            each.metrics["split"],
            code(each.description["shards"]["digest"][:12]),
            each.metrics["examples"],
            each.metrics["patients"],
            f"{each.metrics['best_epoch']} of {each.metrics['epochs']}",
        ]
        for each in runs
    ]
    return Table("The runs", list(zip(headings, kinds, strict=True)), rows)


def resampled_of(run: ComparedRun, key: str) -> tuple[Array, Array]:
    """A figure in each resample: of each label, [S, L], and of all together."""
    each: Array = getattr(run.resampled, key)
    if key == "log_loss":
        return each, run.resampled.weighted_log_loss(run.measured.weights)
    return each, mean_of_defined(each)


def figure_table(runs: Sequence[ComparedRun], key: str) -> Table:
    """A figure with its interval, a column a run."""
    caption, digits = FIGURES[key]
    drawn = [resampled_of(each, key) for each in runs]

    def cells(values: list[Any], resampled: list[Array]) -> list[Any]:
        pairs = zip(values, resampled, strict=True)
        return [with_interval(value, interval(array), digits) for value, array in pairs]

    rows = [
        [
            name,
            *cells(
                [run.measured.figures["labels"][name][key] for run in runs],
                [each[:, i] for each, _ in drawn],
            ),
        ]
        for i, name in enumerate(runs[0].measured.names)
    ]
    totals = cells([run.measured.figures[TOTALS[key]] for run in runs], [all_ for _, all_ in drawn])
    columns = [("Label", TEXT), *((each.title, NUMBER) for each in runs)]
    name = total_name(runs[0], key)
    return Table(caption, columns, rows, [[name, *totals]])


def total_name(first: ComparedRun, key: str) -> str:
    """What the last row is, and by whose weights."""
    if key != "log_loss":
        return "Mean"
    return f"Mean, weights: {explain_weights(first.measured.figures['label_weights'])}"


def difference_table(first: ComparedRun, others: Sequence[ComparedRun], key: str) -> Table:
    """What each run has more than the first, with intervals of the same resamples."""
    _, digits = FIGURES[key]
    labels, together = resampled_of(first, key)
    drawn = [resampled_of(each, key) for each in others]

    def cells(before: float | None, after: list[Any], resampled: list[Array]) -> list[Any]:
        found: list[Any] = []
        for value, array in zip(after, resampled, strict=True):
            ends = interval(array)
            found += [
                signed(None if value is None or before is None else value - before, ends, digits),
                verdict(ends, key == "log_loss"),
            ]
        return found

    figures = first.measured.figures
    rows = [
        [
            name,
            *cells(
                figures["labels"][name][key],
                [run.measured.figures["labels"][name][key] for run in others],
                [each[:, i] - labels[:, i] for each, _ in drawn],
            ),
        ]
        for i, name in enumerate(first.measured.names)
    ]
    total = cells(
        figures[TOTALS[key]],
        [run.measured.figures[TOTALS[key]] for run in others],
        [all_ - together for _, all_ in drawn],
    )
    columns = [("Label", TEXT)]
    for run in others:
        columns += [(f"{run.title} - {first.title}", NUMBER), (f"Verdict on {run.title}", TEXT)]
    name = total_name(first, key)
    return Table(f"Difference: {FIGURES[key][0]}", columns, rows, [[name, *total]])


def verdict(ends: list[float] | None, lower_is_better: bool) -> str:
    """Which way an interval of differences points."""
    if ends is None:
        return "no interval"
    if ends[0] <= 0 <= ends[1]:
        return "undecided"
    return "better" if (ends[1] < 0) == lower_is_better else "worse"


def option_table(runs: Sequence[ComparedRun]) -> Table | None:
    """Options and versions that are not the same in all runs; None where all are."""
    columns = [("Option", TEXT), *((each.title, TEXT) for each in runs)]
    rows = []
    for part in ("options", "versions"):
        every = [each.description[part] for each in runs]
        for name in dict.fromkeys(name for one in every for name in one):
            values = [str(one.get(name, "")) for one in every]
            if len(set(values)) > 1:
                rows.append([name, *values])
    return Table("Options and versions that differ", columns, rows) if rows else None
