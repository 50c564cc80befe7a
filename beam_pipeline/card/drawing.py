"""Drawings of a card: SVG that stands in the page and takes its colors from there."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from beam_pipeline.card.views import BIN, LOWEST, Histogram

# The page's colors, light or dark, take the place of these.
_INK, _RULE = "#010203", "#010204"
_SERIES = [f"#01030{number}" for number in range(1, 7)]
_VARIABLES = {_INK: "var(--ink)", _RULE: "var(--rule)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(_SERIES, start=1)
}
_STYLE = {
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
_SIZE = (5.0, 3.3)  # inches: as wide as a telephone, where text keeps its size
_LEAST = 1e-6  # of the pixels: less is not drawn
_TAIL = 2e-4  # of the pixels at either end, which are left out of the picture


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


def draw_distributions(
    name: str, lines: Sequence[Line], unit: str, edges: tuple[float, float] | None = None
) -> str:
    """Histograms as lines: the share of the pixels in a bin over values, on a logarithmic scale.

    Args:
        name: another for each drawing of a page.
        lines: to draw.
        unit: of the values.
        edges: of the values to show; by default those that are not rare.
    """
    low, high = edges or _edges(lines)
    first, last = (round((edge - LOWEST) / BIN) for edge in (low, high))
    values = LOWEST + BIN * (np.arange(first, last) + 0.5)
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for line in lines:
            shares = line.histogram[first:last] / max(line.histogram.sum(), 1)
            axes.plot(
                values,
                np.where(shares >= _LEAST, shares, np.nan),
                color=_SERIES[line.color - 1],
                linestyle="--" if line.dashed else "-",
                linewidth=1.2,
                label=line.name or None,
            )
        axes.set(yscale="log", xlim=(low, high), xlabel=unit, ylabel=f"share of pixels, bins of {BIN}")
        axes.grid(linewidth=0.6)
        if any(line.name for line in lines):
            axes.legend(loc="upper right", ncols=2 if len(lines) > 4 else 1)
        return _svg(figure, name)


def _edges(lines: Sequence[Line]) -> tuple[float, float]:
    """Where all lines have their values, but for a few pixels."""
    shares = [line.histogram / max(line.histogram.sum(), 1) for line in lines]
    total: NDArray[np.float64] = np.max([np.cumsum(share) for share in shares], axis=0)
    first = int(np.searchsorted(total, _TAIL))
    total = np.max([np.cumsum(share[::-1]) for share in shares], axis=0)
    last = len(total) - int(np.searchsorted(total, _TAIL))
    return LOWEST + BIN * max(first - 2, 0), LOWEST + BIN * min(last + 2, len(total))


def _svg(figure: Figure, name: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None,
                                                 "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Ids are the same in all drawings, which stand in one page.
    for reference in ('id="', 'href="#', "url(#"):
        text = text.replace(reference, f"{reference}{name}-")
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return text
