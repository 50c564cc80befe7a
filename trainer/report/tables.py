"""Tables of a report: figures by label with intervals, operating points, members of an ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headct.page import Table
from trainer.display import explain_weights
from trainer.evaluation.measured import SENSITIVITY, Estimate, Measured
from trainer.evaluation.metrics import example_losses

# Titles of the tables of operating points.
RULES = (
    "Threshold with the highest Youden index (sensitivity + specificity - 1)",
    f"Highest threshold with a sensitivity of at least {SENSITIVITY}",
)


def member_table(ensemble: Mapping[str, Any]) -> Table:
    """Make a table with one row per member of an ensemble."""
    columns = [
        ("Member", "text"),
        *((name, "number") for name in ("Weight", "Log loss", "Mean ROC AUC")),
        ("Ensemble less member", "number"),
        ("Ensemble less ensemble without it", "number"),
    ]
    rows = [
        [
            member["name"],
            f"{member['weight']:.2f}",
            f"{member['weighted_log_loss']:.4f}",
            Estimate(member["mean_roc_auc"]),
            *(
                Estimate(difference["value"], difference["ends"], "+.4f")
                for difference in (member[f"ensemble_minus_{n}"] for n in ("alone", "without"))
            ),
        ]
        for member in ensemble["members"]
    ]
    return Table("Members, and differences of the weighted log loss (nats)", columns, rows)


def headline(
    slices: Measured, studies: Measured, metrics: dict[str, Any]
) -> list[tuple[str, str, str]]:
    """Return title, value and details of the figures at the top."""
    alone = f"; {metrics['prevalence_log_loss']:.3f} by prevalence alone"
    weights = f"; weights: {explain_weights(slices.figures['label_weights'])}"
    tiles = (
        ("Weighted log loss", slices.estimate("log_loss"), alone + weights),
        ("Mean ROC AUC", slices.estimate("roc_auc"), ", by slice"),
        ("Mean average precision", slices.estimate("average_precision"), ", by slice"),
        ("Mean ROC AUC by study", studies.estimate("roc_auc"), ""),
    )
    return [
        (title, estimate.number, (estimate.spread or "no interval") + note)
        for title, estimate, note in tiles
    ]


def number_table(
    caption: str,
    rows: dict[str, dict[str, Any]],
    totals: Sequence[list[Any]] = (),
    note: str = "",
    first: str = "Label",
) -> Table:
    """Make a table of numbers from a dict per row; `first` is the heading of the rows' names."""
    columns = [(first, "text"), *((heading, "number") for heading in next(iter(rows.values())))]
    cells = [[name, *row.values()] for name, row in rows.items()]
    return Table(caption, columns, cells, totals, note)


def ranking_table(measured: Measured, what: str, calibration: bool = False) -> Table:
    """Make a table of ROC AUC, average precision and, if wanted, calibration errors."""
    rows = {
        name: {
            "ROC AUC": measured.estimate("roc_auc", name),
            "Average precision": measured.estimate("average_precision", name),
            **({"Calibration error": f"{label['calibration_error']:.3f}"} if calibration else {}),
            "Positives": label["positives"],
            "Share": f"{100 * label['positives'] / len(measured.frame):.1f} %",
        }
        for name, label in measured.figures["labels"].items()
    }
    means = [measured.estimate("roc_auc"), measured.estimate("average_precision")]
    return number_table(
        f"ROC AUC and average precision by label ({what}: {len(measured.frame)})",
        rows,
        [["Mean", *means, *[""] * (2 + calibration)]],
        "95 % intervals beside the figures. Guessing has a ROC AUC of 0.5, and an average precision"
        " of the share of positives.",
    )


def loss_table(measured: Measured, prevalence: tuple[float, ...]) -> Table:
    """Make a table of the log loss per label, and its share of the weighted mean."""
    weights = np.array(measured.weights)
    alone = example_losses(measured.labels, np.array(prevalence)).mean(axis=0)
    losses = [label["log_loss"] for label in measured.figures["labels"].values()]
    parts = weights / weights.sum() * losses
    rows = {
        name: {
            "Log loss": measured.estimate("log_loss", name, ".4f"),
            "Prevalence alone": f"{alone[i]:.4f}",
            "Weight": f"{weights[i]:g}",
            "Part of the mean": f"{parts[i]:.4f}",
            "Share of it": f"{100 * parts[i] / parts.sum():.1f} %" if parts.any() else "n/a",
        }
        for i, name in enumerate(measured.names)
    }
    total = measured.estimate("log_loss", spec=".4f")
    mean_alone = f"{np.average(alone, weights=weights):.4f}"
    return number_table(
        "Log loss by label (nats), and its part of the weighted mean",
        rows,
        [["Weighted mean", total, mean_alone, f"{weights.sum():g}", total.number, "100.0 %"]],
        "Prevalence alone: the loss of answering each slice with the share of positives in the"
        " training data.",
    )


def threshold_tables(measured: Measured, what: str) -> list[Table]:
    """Make one table per rule, with the labels that have positives and negatives."""
    headings = ("TP", "FN", "TN", "FP", "Sensitivity", "Specificity", "PPV", "NPV")
    tables = []
    for number, title in enumerate(RULES if measured.defined else ()):
        rows: dict[str, dict[str, Any]] = {}
        for name, points in measured.points.items():
            point = points[number]
            threshold = f"{point.threshold:{'.4f' if point.threshold >= 0.001 else '.2e'}}"
            values = zip(headings, (*point.counts, *point.rates), strict=True)
            rows[name] = {"Threshold": threshold, **dict(values)}
        tables.append(number_table(f"{title}, {what}", rows))
    return tables


def confusion_table(measured: Measured) -> Table:
    """Make a table of the mean probability of each label among the positives of each label.

    It replaces a confusion matrix, because labels are not mutually exclusive.
    """
    texts = measured.means.map(lambda mean: "n/a" if np.isnan(mean) else f"{mean:.2f}")
    return number_table(
        "Mean probability of the label at the top where the label at the left is present",
        {name: dict(texts.loc[name]) for name in measured.names},
        first="Present",
    )
