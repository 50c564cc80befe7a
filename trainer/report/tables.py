"""Tables of a run's report."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import label_log_losses
from trainer.evaluation.thresholds import RATES, SENSITIVITY
from trainer.report.page import NUMBER, TEXT, UNDEFINED, Table, decimal, percent, with_interval
from trainer.report.plots import confusion

RULES = (
    "Threshold with the highest Youden index (sensitivity + specificity - 1)",
    f"Highest threshold with a sensitivity of at least {SENSITIVITY}",
)


def ranking_table(measured: Measured, what: str, errors: dict[str, float] | None = None) -> Table:
    """Make a table of ROC AUC, average precision and, if given, calibration errors."""
    figures, ends = measured.figures, measured.intervals
    rows = []
    for name, label in figures["labels"].items():
        row = [name, label["positives"], percent(label["positives"] / len(measured.labels))]
        for key in ("roc_auc", "average_precision"):
            row.append(with_interval(label[key], ends["labels"][name][key]))
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
    """Make a table of the log loss per label, and its share of the weighted mean."""
    shares = np.array(measured.weights) / sum(measured.weights)
    alone = label_log_losses(measured.labels, np.tile(prevalence, (len(measured.labels), 1)))
    figures, ends = measured.figures, measured.intervals
    total = figures["weighted_log_loss"]
    rows = []
    for i, (name, label) in enumerate(figures["labels"].items()):
        part = shares[i] * label["log_loss"]
        loss = with_interval(label["log_loss"], ends["labels"][name]["log_loss"], 4)
        percentage = percent(part / total) if total else UNDEFINED
        weight = f"{measured.weights[i]:g}"
        rows.append([name, loss, decimal(alone[i], 4), weight, decimal(part, 4), percentage])
    sums = [
        "Weighted mean",
        with_interval(total, ends["weighted_log_loss"], 4),
        decimal(float(shares @ alone), 4),
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
    """Make one table per rule, with the labels that have positives and negatives."""
    headings = ("Threshold", "TP", "FN", "TN", "FP", "Sensitivity", "Specificity", "PPV", "NPV")
    columns = [("Label", TEXT), *((heading, NUMBER) for heading in headings)]
    tables = []
    for number, title in enumerate(RULES if measured.defined else ()):
        rows: list[list[Any]] = []
        for _, name in measured.defined:
            point = measured.points[name][number]
            rates = [with_interval(*point.rates[key]) for key in RATES]
            rows.append([name, format_threshold(point.threshold), *point.counts, *rates])
        tables.append(Table(f"{title}, {what}", columns, rows))
    return tables


def format_threshold(threshold: float) -> str:
    """Format a threshold with four decimal places, or as a power of ten if it is small."""
    return f"{threshold:.4f}" if threshold >= 0.001 else f"{threshold:.2e}"


def confusion_table(measured: Measured) -> Table:
    """Make a table of `confusion`: one row per true label, one column per predicted label."""
    matrix = confusion(measured.labels, measured.predicted)
    rows = [
        [name, *(UNDEFINED if np.isnan(value) else f"{value:.2f}" for value in row)]
        for name, row in zip(measured.names, matrix, strict=True)
    ]
    return Table(
        "Mean probability of the label at the top where the label at the left is present",
        [("Present", TEXT), *((name, NUMBER) for name in measured.names)],
        rows,
    )
