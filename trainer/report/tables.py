"""The tables of a run's report: headings and rows, for the macro `table`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import Floats, Ints, label_log_losses
from trainer.evaluation.thresholds import RATES, SENSITIVITY
from trainer.report.figures import confusion
from trainer.report.page import UNDEFINED, decimal, percent, with_interval

TEXT, NUMBER = "text", "number"
RULES = {
    "youden": "Threshold with the highest Youden index (sensitivity + specificity - 1)",
    "sensitivity": f"Highest threshold with a sensitivity of at least {SENSITIVITY}",
}


@dataclass(frozen=True)
class Table:
    """What a table shows; columns are (heading, "text" or "number")."""

    caption: str
    columns: list[tuple[str, str]]
    rows: list[list[Any]]
    totals: list[list[Any]] = field(default_factory=list)
    note: str = ""


def ranking_table(measured: Measured, what: str, errors: dict[str, float] | None) -> Table:
    """ROC AUC and average precision; calibration errors where there are some."""
    figures, ends = measured.figures, measured.intervals
    rows = []
    for name, each in figures["labels"].items():
        between = ends["labels"][name]
        row = [name, each["positives"], percent(each["positives"] / len(measured.labels))]
        for key in ("roc_auc", "average_precision"):
            row.append(with_interval(each[key], between[key]))
        rows.append([*row, *([decimal(errors[name])] if errors else [])])
    mean = ["Mean", "", ""] + [
        with_interval(figures[f"mean_{key}"], ends[f"mean_{key}"])
        for key in ("roc_auc", "average_precision")
    ]
    headings = ["Positives", "Share", "ROC AUC", "Average precision"]
    headings += ["Calibration error"] if errors else []
    return Table(
        f"ROC AUC and average precision by label ({what}: {len(measured.labels)})",
        [("Label", TEXT), *((heading, NUMBER) for heading in headings)],
        rows,
        [[*mean, *([""] if errors else [])]],
        "95 % intervals beside the figures. Guessing has a ROC AUC of 0.5, and an average precision"
        " of the share of positives.",
    )


def loss_table(measured: Measured, prevalence: tuple[float, ...]) -> Table:
    """The weighted log loss, label by label."""
    share = np.array(measured.weights) / sum(measured.weights)
    alone = label_log_losses(measured.labels, np.tile(prevalence, (len(measured.labels), 1)))
    figures, ends = measured.figures, measured.intervals
    total = figures["weighted_log_loss"]
    rows = []
    for i, (name, each) in enumerate(figures["labels"].items()):
        part = share[i] * each["log_loss"]
        loss = with_interval(each["log_loss"], ends["labels"][name]["log_loss"], 4)
        percentage = percent(part / total) if total else UNDEFINED
        weight = f"{measured.weights[i]:g}"
        rows.append([name, loss, decimal(alone[i], 4), weight, decimal(part, 4), percentage])
    sums = [
        "Weighted mean",
        with_interval(total, ends["weighted_log_loss"], 4),
        decimal(float(share @ alone), 4),
        f"{sum(measured.weights):g}",
        decimal(total, 4),
        percent(1),
    ]
    headings = ("Log loss", "Prevalence alone", "Weight", "Part of the mean", "Share of it")
    return Table(
        "Log loss by label (nats), and its part of the weighted mean",
        [("Label", TEXT), *((heading, NUMBER) for heading in headings)],
        rows,
        [sums],
        "Prevalence alone: the loss of answering each slice with the share of positives in the"
        " training data.",
    )


def threshold_tables(measured: Measured, what: str) -> list[Table]:
    """A table for each way to choose a threshold; none where no label has both kinds."""
    headings = ["Threshold", "TP", "FN", "TN", "FP", "Sensitivity", "Specificity", "PPV", "NPV"]
    tables = []
    for number, text in enumerate(RULES.values()):
        rows: list[list[Any]] = []
        for name, points in measured.points.items():
            if points:
                point = points[number]
                found = [point.rates[each] for each in RATES]
                rates = [with_interval(each.value, each.ends) for each in found]
                rows.append([name, readable(point.threshold), *point.counts, *rates])
        if rows:
            columns = [("Label", TEXT), *((heading, NUMBER) for heading in headings)]
            tables.append(Table(f"{text}, {what}", columns, rows))
    return tables


def readable(threshold: float) -> str:
    """A threshold to four places; of a small one, what is not zero of it."""
    return f"{threshold:.4f}" if threshold >= 0.001 else f"{threshold:.2e}"


def mean_table(labels: Ints, predicted: Floats, names: tuple[str, ...]) -> Table:
    """The mean probability of each label where each label is true."""
    rows = [
        [name, *(UNDEFINED if np.isnan(each) else f"{each:.2f}" for each in row)]
        for name, row in zip(names, confusion(labels, predicted), strict=True)
    ]
    return Table(
        "Mean probability of the label at the top where the label at the left is present",
        [("Present", TEXT), *((name, NUMBER) for name in names)],
        rows,
    )
