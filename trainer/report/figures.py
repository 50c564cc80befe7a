"""The pictures of a report, from a run's history and its predictions."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from trainer.evaluation.metrics import Floats, Ints

Labels = tuple[str, ...]

# More names are illegible, and take Matplotlib minutes to lay out.
MOST_NAMES = 30

# A name may have dollar signs. Texts are told when they are made.
plain_text = matplotlib.rc_context({"text.parse_math": False})


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; not pyplot's, which keeps every figure and looks for a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_speed(history: list[dict[str, Any]]) -> Figure:
    """Learning rate, images a second and the wait for input, by epoch."""
    figure = new_figure(12, 3)
    epochs = [row["epoch"] for row in history]
    kinds = (
        ("learning_rate", "Learning rate"),
        ("images_per_second", "Images a second"),
        ("input_wait", "Share of time waiting for input"),
    )
    for axes, (key, title) in zip(figure.subplots(1, 3), kinds, strict=True):
        axes.plot(epochs, [row[key] for row in history], "o-")
        axes.set(title=title, xlabel="epoch", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


@plain_text
def plot_curves(labels: Ints, predicted: Floats, names: Labels, metrics: dict[str, Any]) -> Figure:
    """ROC, precision-recall and reliability curves; labels and probabilities are [N, L]."""
    figure = new_figure(15, 5)
    roc, recall, reliability = figure.subplots(1, 3)
    for i, name in enumerate(names):
        if 0 < labels[:, i].sum() < len(labels):
            false_positives, true_positives, _ = roc_curve(labels[:, i], predicted[:, i])
            roc.plot(false_positives, true_positives, color=f"C{i}", label=name)
            precision, sensitivity, _ = precision_recall_curve(labels[:, i], predicted[:, i])
            recall.plot(sensitivity, precision, color=f"C{i}", label=name)
        bins = metrics["labels"][name]["reliability"]
        points = [(each["predicted"], each["observed"]) for each in bins]
        reliability.plot(*zip(*points, strict=True), "o-", markersize=3, label=name)
    for axes in (roc, recall, reliability):
        if 0 < len(axes.lines) <= MOST_NAMES:
            axes.legend(handles=[*axes.lines], fontsize="small")
    for axes in (roc, reliability):
        axes.plot([0, 1], [0, 1], "k:", linewidth=1)
    roc.set(title="ROC", xlabel="1 - specificity", ylabel="sensitivity")
    recall.set(title="Precision and recall", xlabel="sensitivity", ylabel="precision")
    reliability.set(title="Reliability", xlabel="probability", ylabel="share of positives")
    for axes in (roc, recall, reliability):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.grid(alpha=0.3)
    return figure


def confusion(labels: Ints, predicted: Floats) -> npt.NDArray[np.float64]:
    """Mean probability of each label (column) where each label (row) is true, [L, L].

    Labels exclude no other, so this takes the place of a confusion matrix. Rows of labels
    without positives are NaN.
    """
    totals = labels.T.astype(np.float64) @ predicted
    counts = labels.sum(axis=0)[:, None].astype(np.float64)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


@plain_text
def plot_confusion(labels: Ints, predicted: Floats, names: Labels) -> Figure:
    """`confusion` as a picture; without names and numbers if there are too many."""
    figure = new_figure(6, 5)
    axes = figure.subplots()
    matrix = confusion(labels, predicted)
    picture = axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(picture, label="mean probability")
    axes.set(xlabel="answered", ylabel="true")
    if len(names) > MOST_NAMES:
        return figure
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, names)
    for row, column in np.argwhere(~np.isnan(matrix)):
        value = matrix[row, column]
        color = "white" if value > 0.5 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
    return figure


def plot_slice(gray: npt.NDArray[Any], heat: npt.NDArray[Any] | None) -> Figure:
    """An image [H, W] of 0 to 255, beside it the same with an activation map [h, w], if any."""
    overlays = [None] if heat is None else [None, heat]
    figure = Figure(figsize=(2.4 * len(overlays), 2.4))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.02)
    extent = (0, gray.shape[1], gray.shape[0], 0)
    grid = figure.subplots(1, len(overlays), squeeze=False)
    for axes, overlay in zip(grid[0], overlays, strict=True):
        axes.imshow(gray, cmap="gray", vmin=0, vmax=255, extent=extent)
        if overlay is not None:
            # What has no part in the answer stays gray.
            shown = 0.6 * np.sqrt(np.clip(overlay, 0, 1))
            axes.imshow(
                overlay, cmap="inferno", alpha=shown, extent=extent, interpolation="bilinear"
            )
        axes.axis("off")
    return figure
