"""Plots as inline SVG whose colors are the page's, so that they read on light and dark alike."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Matplotlib wants colors; these stand for variables of page.html.jinja.
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
# Legends are told their lines: of themselves they leave out names that begin with an underscore.
# Steps along each axis of a unit square that can be told from each other.
STEPS = 400

Values = Sequence[float] | npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Drawing:
    """A plot, what it shows in words, and the line below it."""

    svg: Markup
    alt: str
    caption: Markup | str = ""


@dataclass(frozen=True)
class Line:
    """A curve of a plot."""

    name: str
    x: Values
    y: Values


@contextmanager
def drawn(
    salt: str, width: float = 3.0, height: float = 2.6
) -> Iterator[tuple[Axes, list[Markup]]]:
    """Axes to draw on; the SVG is in the list afterwards.

    Args:
        salt: unique among the drawings of a page, for the ids in the SVG.
        width: inches, 96 pixels each.
        height: inches.
    """
    result: list[Markup] = []
    style: Any = STYLE | {"svg.hashsalt": salt}
    with matplotlib.rc_context(style):
        # Fixed margins: to find the best takes Matplotlib longer than to draw, plot by plot.
        figure = Figure(figsize=(width, height))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.19, right=0.985, bottom=0.17, top=0.985)
        axes.grid()
        axes.set_axisbelow(True)
        yield axes, result
        result.append(to_svg(figure))


def to_svg(figure: Figure) -> Markup:
    """The SVG element of a figure, transparent, with the page's font and colors."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Matplotlib restarts its numbering with each figure, and ids must be unique on a page.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    # Coordinates, which are in attributes, to a hundredth of a point.
    svg = re.sub(r'"[^"]*"', lambda found: re.sub(r"(\d\.\d\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"<svg ", '<svg aria-hidden="true" focusable="false" ', svg, count=1)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, variable)
    return Markup(svg)


def draw_in_unit_square(
    lines: Sequence[Line],
    xlabel: str,
    ylabel: str,
    salt: str,
    marks: Sequence[tuple[float, float, str]] = (),
    chance: Sequence[Line] = (),
    dots: bool = False,
) -> Markup:
    """Curves between 0 and 1.

    Args:
        lines: at most as many as there are `SERIES`; named in a legend if there are several.
        xlabel: below.
        ylabel: at the left.
        salt: unique among the drawings of a page.
        marks: points to point out: x, y and Matplotlib's marker.
        chance: lines that show what is to be had for nothing.
        dots: whether the curves' points are few and shown.
    """
    with drawn(salt, height=2.8) as (axes, result):
        for each in chance:
            axes.plot(each.x, each.y, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        named = []
        for line, color, dashes in zip(lines, SERIES, DASHES, strict=False):
            x, y = thin(line.x, line.y)
            style: Any = {"color": color, "linestyle": dashes, "label": line.name}
            named += axes.plot(x, y, marker="o" if dots else "", **style)
        for at_x, at_y, shape in marks:
            axes.plot([at_x], [at_y], shape, color=INK, markersize=6, fillstyle="none")
        ticks = np.linspace(0, 1, 5)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel)
        axes.set_xticks(ticks, [f"{each:g}" for each in ticks])
        axes.set_yticks(ticks, [f"{each:g}" for each in ticks])
        if len(lines) > 1:
            axes.legend(handles=named, fontsize=8)
    return result[0]


def draw_by_epoch(
    lines: Sequence[Line],
    ylabel: str,
    salt: str,
    best: int | None = None,
    faint: Sequence[Line] = (),
    top: float | None = None,
) -> Markup:
    """Curves by epoch; `best` is an epoch to point out, `faint` are lines without a name."""
    with drawn(salt) as (axes, result):
        for each in faint:
            axes.plot(each.x, each.y, color=MUTED, linewidth=0.8, alpha=0.6)
        if best is not None:
            axes.axvline(best, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        named = []
        for line, color, dashes in zip(lines, SERIES, DASHES, strict=False):
            style: Any = {"color": color, "linestyle": dashes, "label": line.name}
            named += axes.plot(line.x, line.y, marker="o" if len(line.x) <= 30 else "", **style)
        axes.set(xlabel="epoch", ylabel=ylabel)
        axes.set_ylim(bottom=0 if top is None else None, top=top)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(lines) > 1:
            axes.legend(handles=named, fontsize=8)
    return result[0]


def thin(x: Values, y: Values) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """A curve without points that cannot be told from the one before; the last one stays."""
    points = np.stack([np.asarray(x, float), np.asarray(y, float)])
    steps = np.abs(np.diff(np.round(points * STEPS), axis=1)).sum(axis=0)
    kept = np.concatenate(([True], steps > 0))
    kept[-1] = True
    return points[0, kept], points[1, kept]
