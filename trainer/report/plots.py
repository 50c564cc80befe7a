"""Draw curves as inline SVG for pages, and as PNG for TensorBoard and history.png.

The colors of an SVG are CSS variables of the page, which has a light and a dark scheme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import Floats, Ints
from trainer.files import write_whole

History = list[dict[str, Any]]
Values = Sequence[float] | npt.NDArray[np.floating[Any]]

# Matplotlib needs colors: placeholders for the CSS variables of page.html.jinja.
INK, MUTED, RULE = "#010101", "#020202", "#030303"
SERIES = ("#040401", "#040402", "#040403", "#040404", "#040405", "#040406")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    **{color: f"var(--series-{i})" for i, color in enumerate(SERIES, 1)},
}
STYLE: dict[str, Any] = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=SERIES, linestyle=DASHES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.5,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a name may have dollar signs
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}
DOTTED: dict[str, Any] = {"color": MUTED, "linewidth": 1, "linestyle": (0, (1, 2))}
# Distinguishable steps along an axis of a unit square.
STEPS = 400
# More names are illegible, and their layout takes Matplotlib minutes.
MOST_NAMES = 30

# Titles of x and y.
ROC_AXES = ("1 - specificity", "sensitivity")
PRECISION_AXES = ("recall (sensitivity)", "precision (PPV)")
RELIABILITY_AXES = ("mean probability", "share of positives")


@dataclass(frozen=True)
class Line:
    """A curve of a plot."""

    name: str
    x: Values
    y: Values


DIAGONAL = Line("chance", (0, 1), (0, 1))

plain_text = matplotlib.rc_context({"text.parse_math": False})  # a name may have dollar signs


def draw_svg(salt: str, draw: Callable[..., None], *args: Any, **options: Any) -> Markup:
    """Draw on new axes; return a transparent SVG element with the page's font and colors.

    Args:
        salt: unique per plot of a page; Matplotlib derives the SVG's ids from the salt.
        draw: `draw_in_unit_square` or `draw_by_epoch`.
        args: arguments of `draw` after the axes.
        options: keyword arguments of `draw`.
    """
    buffer = io.StringIO()
    style: Any = STYLE | {"svg.hashsalt": salt}
    with matplotlib.rc_context(style):
        # Inches; 96 pixels per inch.
        figure = Figure(figsize=(3.0, 2.8 if draw is draw_in_unit_square else 2.6))
        axes = figure.subplots()
        # Fixed margins: Matplotlib's automatic layout is slower than the drawing.
        figure.subplots_adjust(left=0.19, right=0.985, bottom=0.17, top=0.985)
        draw(axes, *args, **options)
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Ids must be unique on a page, but Matplotlib numbers every figure from 1.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    # Round coordinates in attributes to a hundredth of a point.
    svg = re.sub(r'"[^"]*"', lambda match: re.sub(r"(\d\.\d\d)\d+", r"\1", match[0]), svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"<svg ", '<svg aria-hidden="true" focusable="false" ', svg, count=1)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, variable)
    return Markup(svg)


def draw_in_unit_square(
    axes: Axes,
    lines: Sequence[Line],
    titles: tuple[str, str],
    chance: Line | None = None,
    marks: Sequence[tuple[float, float, str]] = (),
    dots: bool = False,
) -> None:
    """Draw curves between 0 and 1, with a legend if there are several.

    Args:
        axes: axes to draw on.
        lines: the curves.
        titles: titles of the x and y axes.
        chance: the curve of guessing, drawn dotted.
        marks: points to mark: x, y and Matplotlib's marker.
        dots: whether to mark the curves' points.
    """
    if chance:
        axes.plot(chance.x, chance.y, **DOTTED)
    named: list[Line2D] = []
    for line in lines:
        x, y = thin(line.x, line.y)
        named += axes.plot(x, y, marker="o" if dots else "", label=line.name)
    for at_x, at_y, marker in marks:
        axes.plot([at_x], [at_y], marker, color=INK, markersize=6, fillstyle="none")
    ticks = np.linspace(0, 1, 5)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=titles[0], ylabel=titles[1])
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    finish(axes, named)


def draw_by_epoch(
    axes: Axes,
    lines: Sequence[Line],
    ylabel: str,
    ylim: tuple[float | None, float | None] = (0, None),
    best: int | None = None,
    faint: Sequence[Line] = (),
) -> None:
    """Draw curves by epoch, with a legend if there are several.

    Args:
        axes: axes to draw on.
        lines: the curves.
        ylabel: title of the y axis.
        ylim: limits of the y axis; None: from the curves.
        best: epoch to mark with a dotted line.
        faint: thin gray curves without a name.
    """
    for line in faint:
        axes.plot(line.x, line.y, color=MUTED, linestyle="-", linewidth=0.8, alpha=0.6)
    if best is not None:
        axes.axvline(best, **DOTTED)
    named: list[Line2D] = []
    for line in lines:
        marker = "o" if len(line.x) <= 30 else ""
        named += axes.plot(line.x, line.y, marker=marker, label=line.name)
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.set_ylim(*ylim)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes, named)


def finish(axes: Axes, named: list[Line2D]) -> None:
    """Add a grid, and a legend unless there are too few or too many names."""
    axes.grid(True)
    axes.set_axisbelow(True)
    if 1 < len(named) <= MOST_NAMES:
        # Without `handles`, legends leave out names that begin with an underscore.
        axes.legend(handles=named, fontsize=8)


def thin(x: Values, y: Values) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Remove points that are indistinguishable from the previous point; keep the last point."""
    points = np.stack([np.asarray(x, float), np.asarray(y, float)])
    steps = np.abs(np.diff(np.round(points * STEPS), axis=1)).sum(axis=0)
    kept = np.concatenate(([True], steps > 0))
    kept[-1] = True
    return points[0, kept], points[1, kept]


def roc_line(name: str, labels: Ints, predicted: Floats) -> Line:
    """Return the ROC curve of one label, from labels and probabilities [N]."""
    false, true, _ = roc_curve(labels, predicted)
    return Line(name, false, true)


def precision_line(name: str, labels: Ints, predicted: Floats) -> Line:
    """Return the precision-recall curve of one label, from labels and probabilities [N]."""
    precision, recall, _ = precision_recall_curve(labels, predicted)
    return Line(name, recall, precision)


def reliability_line(name: str, bins: list[dict[str, Any]]) -> Line:
    """Return the reliability curve of one label, from the bins of metrics.json."""
    return Line(name, [point["predicted"] for point in bins], [point["observed"] for point in bins])


def column(history: History, key: str) -> list[float]:
    """Return a figure by epoch; undefined values are NaN: gaps in a plot."""
    return [float("nan") if row[key] is None else row[key] for row in history]


def loss_lines(history: History) -> list[Line]:
    """Return training and validation loss by epoch."""
    epochs = column(history, "epoch")
    pairs = (("training", "loss"), ("validation", "val_loss"))
    return [Line(name, epochs, column(history, key)) for name, key in pairs]


def auc_lines(history: History, names: tuple[str, ...]) -> list[Line]:
    """Return the ROC AUC per label by epoch, then the mean."""
    epochs, by_label = column(history, "epoch"), [row["val_roc_auc"] for row in history]
    lines = [Line(name, epochs, column(by_label, name)) for name in names]
    return [*lines, Line("mean", epochs, column(history, "val_mean_roc_auc"))]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    write_whole(path, lambda unfinished: figure.savefig(unfinished, dpi=100))


@plain_text
def plot_history(history: History, names: tuple[str, ...]) -> Figure:
    """Plot loss and ROC AUC by epoch, side by side."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    loss, auc = figure.subplots(1, 2)
    draw_by_epoch(loss, loss_lines(history), "nats")
    draw_by_epoch(auc, auc_lines(history, names), "", (0, 1.02))
    loss.set_title("Weighted log loss")
    auc.set_title("ROC AUC, validation")
    auc.lines[-1].set(color="black", linestyle="--")
    auc.legend(handles=[*auc.lines][0 if len(names) <= MOST_NAMES else -1 :], fontsize=8)
    return figure


def plot_speed(history: History) -> Figure:
    """Plot learning rate, images per second and input wait by epoch."""
    figure = Figure(figsize=(12, 3), layout="constrained")
    titles = {
        "learning_rate": "Learning rate",
        "images_per_second": "Images a second",
        "input_wait": "Share of time waiting for input",
    }
    for axes, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        draw_by_epoch(axes, [Line(title, column(history, "epoch"), column(history, key))], title)
    return figure


@plain_text
def plot_curves(measured: Measured, curves: dict[str, Any]) -> Figure:
    """Plot ROC, precision-recall and reliability curves; reliability comes from metrics.json."""
    labels, predicted = measured.labels, measured.predicted
    rocs, precisions = (
        [line(name, labels[:, i], predicted[:, i]) for i, name in measured.defined]
        for line in (roc_line, precision_line)
    )
    bins = [reliability_line(name, curves[name]["reliability"]) for name in measured.names]
    figure = Figure(figsize=(15, 5), layout="constrained")
    roc, recall, reliability = figure.subplots(1, 3)
    draw_in_unit_square(roc, rocs, ROC_AXES, DIAGONAL)
    draw_in_unit_square(recall, precisions, PRECISION_AXES)
    draw_in_unit_square(reliability, bins, RELIABILITY_AXES, DIAGONAL, dots=True)
    return figure


def confusion(labels: Ints, predicted: Floats) -> npt.NDArray[np.float64]:
    """Return the mean probability of label j among positives of label i at [i, j], [L, L].

    Replaces a confusion matrix, because labels are not mutually exclusive. Rows of labels without
    positives are NaN.
    """
    totals = labels.T.astype(np.float64) @ predicted
    counts = labels.sum(axis=0)[:, None].astype(np.float64)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


@plain_text
def plot_confusion(measured: Measured) -> Figure:
    """Plot `confusion`; without names and numbers if there are more than MOST_NAMES labels."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes, names = figure.subplots(), measured.names
    matrix = confusion(measured.labels, measured.predicted)
    picture = axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(picture, label="mean probability")
    axes.set(xlabel="answered", ylabel="true")
    if len(names) > MOST_NAMES:
        return figure
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for row, label in np.argwhere(~np.isnan(matrix)):
        value = matrix[row, label]
        color = "white" if value > 0.5 else "black"
        axes.text(label, row, f"{value:.2f}", ha="center", va="center", color=color)
    return figure
