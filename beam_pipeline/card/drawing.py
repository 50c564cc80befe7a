"""Drawings of a card: SVG that stands in the page and takes its colors from there."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from beam_pipeline.card.views import BIN, BINS, LOWEST, Histogram

# The page's colors, light or dark, take the place of these.
_INK, _RULE = "#010203", "#010204"
_SERIES = [f"#01030{number}" for number in range(1, 7)]
_VARIABLES = {_INK: "var(--ink)", _RULE: "var(--rule)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(_SERIES, start=1)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": _RULE,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "font.size": 10,
    "font.family": "sans-serif",
}
# Inches: as wide as a telephone, where text keeps its size.
_WIDTH, _HEIGHT = 5.0, 3.1
_LEFT, _BELOW, _ABOVE, _EDGE = 0.75, 0.5, 0.28, 0.08
_LEGEND_ROW, _LEGEND_COLUMNS = 0.2, 3
_LEAST = 2e-6  # of the pixels: less is not shown
_TAIL = 2e-4  # of the pixels at either end, which are left out of the picture
_MARGIN = 3  # bins

Limits = tuple[int, int]
ALL: Limits = (LOWEST, LOWEST + BIN * BINS)


@dataclass(frozen=True)
class Line:
    """A line of a drawing.

    Attributes:
        name: of it, in the legend; empty for none.
        histogram: what it shows.
        dashed: whether it is.
        color: number of the page's series, from 1.
    """

    name: str
    histogram: Histogram
    dashed: bool = False
    color: int = 1


def draw_distributions(name: str, lines: Sequence[Line], unit: str, limits: Limits = ALL) -> str:
    """Histograms as lines: the share of the pixels in a bin over values, on a logarithmic scale.

    Args:
        name: another for each drawing of a page.
        lines: to draw.
        unit: of the values.
        limits: of what is shown, as far as values there are not rare.
    """
    first, last = _ends(lines, limits)
    edges = LOWEST + BIN * np.arange(first, last + 1)
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        rows = -(-len(lines) // _LEGEND_COLUMNS)
        height = _HEIGHT + rows * _LEGEND_ROW
        figure = Figure(figsize=(_WIDTH, height))
        FigureCanvasSVG(figure)
        # Placed by hand: finding out where all fits takes longer than drawing it.
        bottom = _BELOW + rows * _LEGEND_ROW
        axes = figure.add_axes(
            (
                _LEFT / _WIDTH,
                bottom / height,
                1 - (_LEFT + _EDGE) / _WIDTH,
                1 - (bottom + _ABOVE) / height,
            )
        )
        for line in lines:
            shares = line.histogram[first:last] / max(line.histogram.sum(), 1)
            axes.plot(
                edges[:-1] + BIN / 2,
                np.maximum(shares, _LEAST / 2),
                color=_SERIES[line.color - 1],
                linestyle="--" if line.dashed else "-",
                linewidth=1.2,
                label=line.name,
            )
        axes.set(yscale="log", xlabel=unit)
        axes.set_title(f"share of pixels in bins of {BIN}", loc="left", fontsize="medium")
        axes.yaxis.set_major_formatter(FuncFormatter(_as_percent))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(_LEAST, 1)
        axes.grid(linewidth=0.6)
        figure.legend(loc="lower center", ncols=_LEGEND_COLUMNS, borderpad=0)
        return _svg(figure, name)


def _as_percent(share: float, _: int) -> str:
    return f"{100 * share:g} %"


def share_outside(histogram: Histogram, limits: Limits) -> float:
    """Which share of the pixels is not within limits."""
    first, last = _places(limits)
    return float(1 - histogram[first:last].sum() / max(histogram.sum(), 1))


def _places(limits: Limits) -> tuple[int, int]:
    return (limits[0] - LOWEST) // BIN, (limits[1] - LOWEST) // BIN


def _ends(lines: Sequence[Line], limits: Limits) -> tuple[int, int]:
    """The first bin to show and the one behind the last: outside are few pixels of any line."""
    first, last = _places(limits)
    shares = np.max([line.histogram / max(line.histogram.sum(), 1) for line in lines], axis=0)
    shares = shares[first:last]
    before = int(np.searchsorted(np.cumsum(shares), _TAIL))
    behind = int(np.searchsorted(np.cumsum(shares[::-1]), _TAIL))
    if before + behind >= len(shares):
        return first, last
    return max(first, first + before - _MARGIN), min(last, last - behind + _MARGIN)


def _svg(figure: Figure, name: str) -> str:
    file = io.StringIO()
    figure.savefig(
        file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Ids are the same in all drawings, which stand in one page.
    for reference in ('id="', 'href="#', "url(#"):
        text = text.replace(reference, f"{reference}{name}-")
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return text
