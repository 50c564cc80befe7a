"""The plots of a run's report, a small one a label: many labels stay readable."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup
from sklearn.metrics import precision_recall_curve, roc_curve

from trainer.evaluation.measured import Measured
from trainer.evaluation.thresholds import OperatingPoint
from trainer.report.drawings import Drawing, Line, draw_by_epoch, draw_in_unit_square
from trainer.report.page import decimal, in_words

History = list[dict[str, Any]]
MARKERS = {"youden": "o", "sensitivity": "s"}
DIAGONAL = Line("chance", (0, 1), (0, 1))


def label_line(name: str, text: str) -> Markup:
    """What stands below a plot of one label."""
    return Markup("<strong>{}</strong> {}").format(name, text)


def roc_drawings(measured: Measured) -> list[Drawing]:
    """ROC curves with the two thresholds on them; labels of one kind are left out."""
    drawings = []
    for i, name in enumerate(measured.names):
        if not measured.has_both(i):
            continue
        false, true, _ = roc_curve(measured.labels[:, i], measured.predicted[:, i])
        points = measured.points[name]
        marks = [
            (
                1 - (each.rates["specificity"].value or 0),
                each.rates["sensitivity"].value or 0,
                MARKERS[each.rule],
            )
            for each in points
        ]
        svg = draw_in_unit_square(
            [Line(name, false, true)],
            "1 - specificity",
            "sensitivity",
            f"roc {name}",
            marks,
            [DIAGONAL],
        )
        area = figure_in_words(measured, name, "roc_auc")
        alt = f"ROC curve of {name}: area {area}. {describe_points(points)}"
        drawings.append(Drawing(svg, alt, label_line(name, f"AUC {area}")))
    return drawings


def figure_in_words(measured: Measured, name: str, key: str) -> str:
    """A label's figure with its interval."""
    return in_words(measured.figures["labels"][name][key], measured.intervals["labels"][name][key])


def describe_points(points: list[OperatingPoint]) -> str:
    """The two thresholds of a ROC curve in words."""
    titles = {"youden": "At the highest Youden index", "sensitivity": "At the fixed sensitivity"}
    return " ".join(
        f"{titles[each.rule]}, sensitivity {decimal(each.rates['sensitivity'].value)} and"
        f" specificity {decimal(each.rates['specificity'].value)}."
        for each in points
    )


def precision_drawings(measured: Measured) -> list[Drawing]:
    """Precision-recall curves; labels of one kind are left out."""
    drawings = []
    for i, name in enumerate(measured.names):
        if not measured.has_both(i):
            continue
        precision, recall, _ = precision_recall_curve(
            measured.labels[:, i], measured.predicted[:, i]
        )
        share = float(measured.labels[:, i].mean())
        svg = draw_in_unit_square(
            [Line(name, recall, precision)],
            "recall (sensitivity)",
            "precision (PPV)",
            f"precision {name}",
            chance=[Line("chance", (0, 1), (share, share))],
        )
        average = figure_in_words(measured, name, "average_precision")
        half = float(precision[recall >= 0.5].max())
        alt = (
            f"Precision-recall curve of {name}: average precision {average}, where guessing has"
            f" {share:.3f}. At a recall of 0.5 or more, precision reaches {half:.3f}."
        )
        drawings.append(Drawing(svg, alt, label_line(name, f"AP {average}")))
    return drawings


def calibration_drawings(measured: Measured, curves: dict[str, Any]) -> list[Drawing]:
    """Reliability curves, as metrics.json has them for each label."""
    drawings = []
    for i, name in enumerate(measured.names):
        bins, error = curves[name]["reliability"], curves[name]["calibration_error"]
        svg = draw_in_unit_square(
            [Line(name, [b["predicted"] for b in bins], [b["observed"] for b in bins])],
            "mean probability",
            "share of positives",
            f"calibration {name}",
            chance=[DIAGONAL],
            dots=True,
        )
        mean, share = measured.predicted[:, i].mean(), measured.labels[:, i].mean()
        alt = (
            f"Calibration of {name} in {len(bins)} bins: calibration error {error:.3f}, mean"
            f" probability {mean:.3f}, share of positives {share:.3f}. {describe_bins(bins)}"
        )
        text = f"error {error:.3f}; mean {mean:.3f}, observed {share:.3f}"
        drawings.append(Drawing(svg, alt, label_line(name, text)))
    return drawings


def describe_bins(bins: list[dict[str, Any]]) -> str:
    """The lowest and the highest bin in words."""
    ends = (bins[0], bins[-1]) if len(bins) > 1 else bins
    return " ".join(
        f"Of {each['examples']} with a mean probability of {each['predicted']:.3f},"
        f" {each['observed']:.1%} are positive."
        for each in ends
    )


def training_drawings(history: History, names: tuple[str, ...], best: int) -> list[Drawing]:
    """The course of training: loss, ROC AUC, learning rate and speed."""
    return [loss_drawing(history, best), auc_drawing(history, names, best), *speed(history)]


def column(history: History, key: str) -> list[float]:
    """A figure by epoch; a plot leaves a gap at NaN."""
    return [float("nan") if row[key] is None else row[key] for row in history]


def loss_drawing(history: History, best: int) -> Drawing:
    """Training and validation loss."""
    epochs = [row["epoch"] for row in history]
    training, validation = column(history, "loss"), column(history, "val_loss")
    lines = [Line("training", epochs, training), Line("validation", epochs, validation)]
    svg = draw_by_epoch(lines, "weighted log loss (nats)", "loss", best)
    alt = (
        f"Weighted log loss by epoch. Training: {training[0]:.4f} after the first,"
        f" {training[-1]:.4f} after the last of {len(epochs)}. Validation: {validation[0]:.4f},"
        f" {validation[-1]:.4f}; lowest {min(validation):.4f} in epoch {best}."
    )
    text = f"by epoch; the dotted line is epoch {best}, whose model was kept"
    return Drawing(svg, alt, label_line("Log loss", text))


def auc_drawing(history: History, names: tuple[str, ...], best: int) -> Drawing:
    """The mean ROC AUC, each label's faint behind it."""
    epochs = [row["epoch"] for row in history]
    mean = column(history, "val_mean_roc_auc")
    faint = [
        Line(name, epochs, column([row["val_roc_auc"] for row in history], name)) for name in names
    ]
    svg = draw_by_epoch([Line("mean", epochs, mean)], "ROC AUC, validation", "auc", best, faint, 1)
    first, last = (None if np.isnan(each) else each for each in (mean[0], mean[-1]))
    alt = (
        f"Mean ROC AUC on the validation fold by epoch: {decimal(first)} after the first,"
        f" {decimal(last)} after the last of {len(epochs)}."
    )
    return Drawing(svg, alt, label_line("ROC AUC", "mean of all labels; each label in gray"))


def speed(history: History) -> list[Drawing]:
    """Learning rate, and images a second with the wait for input in words."""
    epochs = [row["epoch"] for row in history]
    rate, images = column(history, "learning_rate"), column(history, "images_per_second")
    wait = float(np.mean(column(history, "input_wait")))
    return [
        Drawing(
            draw_by_epoch([Line("rate", epochs, rate)], "learning rate", "rate"),
            f"Learning rate after each epoch: {rate[0]:.2g} first, {max(rate):.2g} at most,"
            f" {rate[-1]:.2g} last.",
            label_line("Learning rate", "after each epoch"),
        ),
        Drawing(
            draw_by_epoch([Line("images", epochs, images)], "images a second", "speed"),
            f"Images a second by epoch: {np.mean(images):.1f} on average, from {min(images):.1f}"
            f" to {max(images):.1f}.",
            label_line("Speed", f"images a second; {wait:.0%} of the time waiting for input"),
        ),
    ]
