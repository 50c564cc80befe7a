"""Curves of a run: inline SVG for pages, history.png, and logs for TensorBoard.

A curve is a series: y, indexed by x. The colors of an SVG are CSS variables of the page, which has
a light and a dark scheme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import Floats, Ints
from trainer.files import full_disk_reported, write_whole

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
PLAIN_TEXT: Any = {"text.parse_math": False}  # a name may have dollar signs
STYLE: Any = PLAIN_TEXT | {
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
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}
DOTTED: Any = {"color": MUTED, "linewidth": 1, "linestyle": (0, (1, 2))}
# Distinguishable steps along an axis of a unit square.
STEPS = 400
# More names are illegible, and their layout takes Matplotlib minutes.
MOST_NAMES = 30

CODE = Markup("<code>{}</code>")


class Picture(NamedTuple):
    """A plot, an SVG element, or an image, a data: URI; name and caption are the line below it."""

    content: str
    alt: str
    name: str
    caption: str


class Kind(NamedTuple):
    """A kind of curves in the unit square: titles of both axes, curve of guessing, and marker."""

    x: str
    y: str
    chance: pd.Series | None = None
    marker: str = ""


DIAGONAL = pd.Series((0, 1), (0, 1))
ROC = Kind("1 - specificity", "sensitivity", DIAGONAL)
PRECISION = Kind("recall (sensitivity)", "precision (PPV)")
RELIABILITY = Kind("mean probability", "share of positives", DIAGONAL, "o")


def draw_svg(draw: Callable[..., None], salt: str, *args: Any, **options: Any) -> Markup:
    """Draw on new axes; return a transparent SVG element with the page's font and colors.

    Args:
        draw: `draw_in_unit_square` or `draw_by_epoch`.
        salt: unique per plot of a page; Matplotlib derives the SVG's ids from the salt.
        args: arguments of `draw` after the axes.
        options: keyword arguments of `draw`.
    """

    def fill(figure: Figure) -> None:
        axes = figure.subplots()
        # Fixed margins: Matplotlib's automatic layout is slower than the drawing.
        figure.subplots_adjust(left=0.19, right=0.985, bottom=0.17, top=0.985)
        draw(axes, *args, **options)

    return render_svg(fill, (3.0, 2.8 if draw is draw_in_unit_square else 2.6), salt)


def render_svg(fill: Callable[[Figure], None], size: tuple[float, float], salt: str) -> Markup:
    """Return a new figure as `draw_svg` does.

    Args:
        fill: draws on the figure.
        size: width and height, inches; 96 pixels per inch.
        salt: as for `draw_svg`.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}):
        figure = Figure(figsize=size)
        fill(figure)
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
    curves: Mapping[str, pd.Series],
    kind: Kind,
    marks: Sequence[tuple[float, float, str]] = (),
) -> None:
    """Draw curves between 0 and 1, with a legend if there are several.

    Args:
        axes: axes to draw on.
        curves: by name.
        kind: kind of the curves.
        marks: points to mark: x, y and Matplotlib's marker.
    """
    if kind.chance is not None:
        axes.plot(kind.chance, **DOTTED)
    named: list[Line2D] = []
    for name, curve in curves.items():
        # Without points that are indistinguishable from the previous one, but for the last one.
        points = np.stack([curve.index, curve])
        kept = np.append(True, np.diff(np.round(points * STEPS), axis=1).any(axis=0))
        kept[-1] = True
        named += axes.plot(*points[:, kept], marker=kind.marker, label=name)
    for x, y, mark in marks:
        axes.plot([x], [y], mark, color=INK, markersize=6, fillstyle="none")
    ticks = np.linspace(0, 1, 5)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=kind.x, ylabel=kind.y)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    finish(axes, named)


def draw_by_epoch(
    axes: Axes,
    curves: Mapping[str, pd.Series],
    ylabel: str,
    ylim: tuple[float | None, float | None] = (0, None),
    best: int | None = None,
    faint: Sequence[pd.Series] = (),
) -> None:
    """Draw curves by epoch, with a legend if there are several.

    Args:
        axes: axes to draw on.
        curves: by name.
        ylabel: title of the y axis.
        ylim: limits of the y axis; None: from the curves.
        best: epoch to mark with a dotted line.
        faint: thin gray curves without a name.
    """
    for curve in faint:
        axes.plot(curve, color=MUTED, linestyle="-", linewidth=0.8, alpha=0.6)
    if best is not None:
        axes.axvline(best, **DOTTED)
    named: list[Line2D] = []
    for name, curve in curves.items():
        named += axes.plot(curve, marker="o" if len(curve) <= 30 else "", label=name)
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.set_ylim(*ylim)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes, named)


svg_in_unit_square = partial(draw_svg, draw_in_unit_square)
svg_by_epoch = partial(draw_svg, draw_by_epoch)


def finish(axes: Axes, named: list[Line2D]) -> None:
    """Add a grid, and a legend unless there are too few or too many names."""
    axes.grid(True)
    axes.set_axisbelow(True)
    if 1 < len(named) <= MOST_NAMES:
        # Without `handles`, legends leave out names that begin with an underscore.
        axes.legend(handles=named, fontsize=8)


def roc_line(labels: Ints, predicted: Floats) -> pd.Series:
    """Return the ROC curve of one label, from labels and probabilities [N]."""
    false, true, _ = roc_curve(labels, predicted)
    return pd.Series(true, false)


def precision_line(labels: Ints, predicted: Floats) -> pd.Series:
    """Return the precision-recall curve of one label, from labels and probabilities [N]."""
    precision, recall, _ = precision_recall_curve(labels, predicted)
    return pd.Series(precision, recall)


def reliability_line(bins: list[dict[str, Any]]) -> pd.Series:
    """Return the reliability curve of one label, from its bins in metrics.json."""
    return pd.DataFrame(bins).set_index("predicted")["observed"]


def history_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return history.json by epoch: its figures, and those of a label as val_roc_auc/<label>.

    Undefined figures are NaN: gaps in a plot.
    """
    return pd.json_normalize(rows, sep="/").astype(float).set_index("epoch")


def loss_lines(history: pd.DataFrame) -> dict[str, pd.Series]:
    """Return training and validation loss by epoch."""
    return {"training": history["loss"], "validation": history["val_loss"]}


@matplotlib.rc_context(PLAIN_TEXT)
def plot_history(rows: list[dict[str, Any]], names: Sequence[str]) -> Figure:
    """Plot loss and ROC AUC by epoch, side by side, from the rows of history.json."""
    history = history_table(rows)
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    loss, auc = figure.subplots(1, 2)
    draw_by_epoch(loss, loss_lines(history), "nats")
    labels = {name: history[f"val_roc_auc/{name}"] for name in names}
    draw_by_epoch(auc, {**labels, "mean": history["val_mean_roc_auc"]}, "", (0, 1.02))
    loss.set_title("Weighted log loss")
    auc.set_title("ROC AUC, validation")
    auc.lines[-1].set(color="black", linestyle="--")
    auc.legend(handles=[*auc.lines][0 if len(names) <= MOST_NAMES else -1 :], fontsize=8)
    return figure


@matplotlib.rc_context(PLAIN_TEXT)
def plot_curves(measured: Measured) -> Figure:
    """Plot the ROC, precision-recall and reliability curves of all labels, side by side."""
    rocs, precisions = (
        {
            name: line(measured.labels[:, i], measured.predicted[:, i])
            for i, name in measured.defined
        }
        for line in (roc_line, precision_line)
    )
    bins = {
        name: reliability_line(label["reliability"])
        for name, label in measured.figures["labels"].items()
    }
    figure = Figure(figsize=(15, 5), layout="constrained")
    kinds = ((rocs, ROC), (precisions, PRECISION), (bins, RELIABILITY))
    for axes, (curves, kind) in zip(figure.subplots(1, 3), kinds, strict=True):
        draw_in_unit_square(axes, curves, kind)
    return figure


@matplotlib.rc_context(PLAIN_TEXT)
def plot_means(means: pd.DataFrame) -> Figure:
    """Plot `Measured.means` as a heat map; names only if there are few labels."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(means, vmin=0, vmax=1, cmap="Blues"), label="mean probability")
    axes.set(xlabel="probability of", ylabel="present")
    if len(means) <= MOST_NAMES:
        axes.set_xticks(range(len(means)), means.columns, rotation=45, ha="right")
        axes.set_yticks(range(len(means)), means.index)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    write_whole(path, lambda unfinished: figure.savefig(unfinished, dpi=100))


def log_epoch(folder: Path, row: dict[str, Any]) -> None:
    """Log a row of history.json for TensorBoard, in a new file of `folder`."""
    with _logging(folder, row["epoch"]) as summary:
        for name, value in history_table([row]).iloc[0].dropna().items():
            summary.scalar(name, value)


def log_pictures(folder: Path, pictures: Mapping[str, Figure], epoch: int) -> None:
    """Log pictures by name for TensorBoard, in a new file of `folder`."""
    with _logging(folder, epoch) as summary:
        for name, figure in pictures.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, dpi=80, format="rgba")
            width, height = map(int, figure.get_size_inches() * 80)
            pixels = np.frombuffer(buffer.getvalue(), np.uint8)
            summary.image(name, pixels.reshape(1, height, width, 4))


@contextmanager
def _logging(folder: Path, epoch: int) -> Iterator[Any]:
    """Give `tf.summary`, which writes a new file of `folder` in the block."""
    import tensorflow as tf  # not for pages of other commands: a second or two

    with full_disk_reported(folder):
        writer = tf.summary.create_file_writer(str(folder))
        with writer.as_default(step=epoch):
            yield tf.summary
        writer.close()
