"""Plots of a run's report: curves per label, with captions and alternative texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.evaluation.measured import Measured
from trainer.evaluation.thresholds import OperatingPoint
from trainer.report.page import Picture, caption, decimal, in_words
from trainer.report.plots import (
    DIAGONAL,
    PRECISION_AXES,
    RELIABILITY_AXES,
    ROC_AXES,
    History,
    Line,
    auc_lines,
    column,
    draw_by_epoch,
    draw_in_unit_square,
    draw_svg,
    loss_lines,
    precision_line,
    reliability_line,
    roc_line,
)

MARKERS = {"youden": "o", "sensitivity": "s"}


def roc_plots(measured: Measured) -> list[Picture]:
    """Plot ROC curves and operating points of the labels with positives and negatives."""
    plots = []
    for i, name in measured.defined:
        line = roc_line(name, measured.labels[:, i], measured.predicted[:, i])
        points = measured.points[name]
        marks = [
            (
                1 - (point.rates["specificity"].value or 0),
                point.rates["sensitivity"].value or 0,
                MARKERS[point.rule],
            )
            for point in points
        ]
        svg = draw_svg(f"roc {name}", draw_in_unit_square, [line], ROC_AXES, DIAGONAL, marks)
        area = figure_in_words(measured, name, "roc_auc")
        alt = f"ROC curve of {name}: area {area}. {describe_points(points)}"
        plots.append(Picture(svg, alt, caption(name, f"AUC {area}")))
    return plots


def figure_in_words(measured: Measured, name: str, key: str) -> str:
    """Return a label's figure with its interval."""
    return in_words(measured.figures["labels"][name][key], measured.intervals["labels"][name][key])


def describe_points(points: list[OperatingPoint]) -> str:
    """Describe the operating points of a ROC curve."""
    titles = {"youden": "At the highest Youden index", "sensitivity": "At the fixed sensitivity"}
    return " ".join(
        f"{titles[point.rule]}, sensitivity {decimal(point.rates['sensitivity'].value)} and"
        f" specificity {decimal(point.rates['specificity'].value)}."
        for point in points
    )


def precision_plots(measured: Measured) -> list[Picture]:
    """Plot precision-recall curves of the labels with positives and negatives."""
    plots = []
    for i, name in measured.defined:
        line = precision_line(name, measured.labels[:, i], measured.predicted[:, i])
        share = float(measured.labels[:, i].mean())
        chance = Line("chance", (0, 1), (share, share))
        svg = draw_svg(f"precision {name}", draw_in_unit_square, [line], PRECISION_AXES, chance)
        average = figure_in_words(measured, name, "average_precision")
        half = float(np.asarray(line.y)[np.asarray(line.x) >= 0.5].max())
        alt = (
            f"Precision-recall curve of {name}: average precision {average}, where guessing has"
            f" {share:.3f}. At a recall of 0.5 or more, precision reaches {half:.3f}."
        )
        plots.append(Picture(svg, alt, caption(name, f"AP {average}")))
    return plots


def calibration_plots(measured: Measured, curves: dict[str, Any]) -> list[Picture]:
    """Plot reliability curves from the labels' figures in metrics.json."""
    plots = []
    for i, name in enumerate(measured.names):
        bins, error = curves[name]["reliability"], curves[name]["calibration_error"]
        line = reliability_line(name, bins)
        svg = draw_svg(
            f"calibration {name}",
            draw_in_unit_square,
            [line],
            RELIABILITY_AXES,
            DIAGONAL,
            dots=True,
        )
        mean, share = measured.predicted[:, i].mean(), measured.labels[:, i].mean()
        alt = (
            f"Calibration of {name} in {len(bins)} bins: calibration error {error:.3f}, mean"
            f" probability {mean:.3f}, share of positives {share:.3f}. {describe_bins(bins)}"
        )
        text = f"error {error:.3f}; mean {mean:.3f}, observed {share:.3f}"
        plots.append(Picture(svg, alt, caption(name, text)))
    return plots


def describe_bins(bins: list[dict[str, Any]]) -> str:
    """Describe the lowest and the highest bin."""
    ends = (bins[0], bins[-1]) if len(bins) > 1 else bins
    return " ".join(
        f"Of {point['examples']} with a mean probability of {point['predicted']:.3f},"
        f" {point['observed']:.1%} are positive."
        for point in ends
    )


def training_plots(history: History, names: tuple[str, ...], best: int) -> list[Picture]:
    """Plot the course of training: loss, ROC AUC, learning rate and speed."""
    training, validation = losses = loss_lines(history)
    *labels, mean = auc_lines(history, names)
    rate, images = column(history, "learning_rate"), column(history, "images_per_second")
    rate_line, images_line = (Line("", mean.x, values) for values in (rate, images))
    first, last = (None if np.isnan(value) else value for value in (mean.y[0], mean.y[-1]))
    wait = float(np.mean(column(history, "input_wait")))
    return [
        Picture(
            draw_svg("loss", draw_by_epoch, losses, "weighted log loss (nats)", best=best),
            f"Weighted log loss by epoch. Training: {training.y[0]:.4f} after the first,"
            f" {training.y[-1]:.4f} after the last of {len(history)}. Validation:"
            f" {validation.y[0]:.4f}, {validation.y[-1]:.4f}; lowest {min(validation.y):.4f} in"
            f" epoch {best}.",
            caption("Log loss", f"by epoch; the dotted line is epoch {best}, whose model was kept"),
        ),
        Picture(
            draw_svg("auc", draw_by_epoch, [mean], "ROC AUC, validation", (None, 1), best, labels),
            f"Mean ROC AUC on the validation fold by epoch: {decimal(first)} after the first,"
            f" {decimal(last)} after the last of {len(history)}.",
            caption("ROC AUC", "mean of all labels; each label in gray"),
        ),
        Picture(
            draw_svg("rate", draw_by_epoch, [rate_line], "learning rate"),
            f"Learning rate after each epoch: {rate[0]:.2g} first, {max(rate):.2g} at most,"
            f" {rate[-1]:.2g} last.",
            caption("Learning rate", "after each epoch"),
        ),
        Picture(
            draw_svg("speed", draw_by_epoch, [images_line], "images a second"),
            f"Images a second by epoch: {np.mean(images):.1f} on average, from {min(images):.1f}"
            f" to {max(images):.1f}.",
            caption("Speed", f"images a second; {wait:.0%} of the time waiting for input"),
        ),
    ]
