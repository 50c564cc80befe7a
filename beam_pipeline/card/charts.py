"""Line charts of pixel value distributions; `chart.html.jinja` draws the charts as SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.card.count_tables import count, percent, with_minus
from beam_pipeline.card.totals import Choice
from beam_pipeline.card.views import BIN, BINS, LOWEST, Histogram, Views

Limits = tuple[int, int]  # values
Histograms = Sequence[tuple[str, Mapping[str, Histogram]]]  # image ids, and Views.histograms

ALL: Limits = (LOWEST, LOWEST + BIN * BINS)
_HOUNSFIELD: Limits = (-1104, 3200)  # HU shown
_MENTIONED = 1e-3  # smallest share of pixels outside the limits that a caption mentions
_LINES = 10  # lines of single slices
_COLORS = 5  # easily distinguished series colors of the page
_NAME_LENGTH = 16
_LABELS = 6  # most labels on the axis of values
_LEAST = 2e-6  # smallest share of pixels shown
_DECADES = -math.log10(_LEAST)
_TAIL = 2e-4  # share of pixels omitted at either end
_MARGIN = 3  # further bins shown at either end


@dataclass(frozen=True)
class Distribution:
    """A histogram to draw."""

    name: str  # in the legend
    histogram: Histogram
    dashed: bool = False
    color: int = 1  # number of the page's series color


@dataclass(frozen=True)
class Curve:
    """A line of a chart and its entry in the legend."""

    line: Distribution
    path: str  # SVG path
    x: int  # position of the legend entry
    y: int


@dataclass(frozen=True)
class Chart:
    """A chart; lengths and positions are pixels."""

    name: str  # unique on a page
    title: str  # text that a screen reader announces first
    caption: str
    unit: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve]

    heading: ClassVar[str] = f"share of pixels in bins of {BIN}"
    # Width of a phone's screen, so that text keeps its size on phones.
    width: ClassVar[int] = 400
    left: ClassVar[int] = 58
    right: ClassVar[int] = 386
    top: ClassVar[int] = 32
    bottom: ClassVar[int] = 270
    legend: ClassVar[int] = 328  # baseline of the first row
    row: ClassVar[int] = 18

    @property
    def height(self) -> int:
        """Height of the chart with its legend."""
        return max(curve.y for curve in self.curves) + 8


def draw_chart(
    name: str,
    title: str,
    caption: str,
    unit: str,
    lines: Sequence[Distribution],
    limits: Limits = ALL,
) -> Chart:
    """Draw histograms: share of pixels per bin, on a logarithmic scale, over values.

    Args:
        name: unique name on a page.
        title: title of the chart.
        caption: text below the chart.
        unit: unit of the values.
        lines: histograms to draw.
        limits: limits of the values shown; rare values at either end are omitted.
    """
    shares = [line.histogram / max(line.histogram.sum(), 1) for line in lines]
    first, last = _ends(np.max(shares, axis=0), limits)
    step = (Chart.right - Chart.left) / (last - first)
    curves = [
        Curve(
            line=line,
            path=_path(own[first:last], step),
            x=Chart.left if number % 2 == 0 else (Chart.left + Chart.right) // 2,
            y=Chart.legend + number // 2 * Chart.row,
        )
        for number, (line, own) in enumerate(zip(lines, shares, strict=True))
    ]
    low, high = LOWEST + BIN * first, LOWEST + BIN * last
    x_ticks = [
        (round(Chart.left + (value - low) / BIN * step, 1), with_minus(str(value)))
        for value in _round_values(low, high)
    ]
    y_ticks = [
        (round(float(_height(np.array(10.0**-decade))), 1), f"{100 / 10**decade:g} %")
        for decade in range(math.floor(_DECADES) + 1)
    ]
    return Chart(name, title, caption, unit, x_ticks, y_ticks, curves)


def _bins(limits: Limits) -> tuple[int, int]:
    return (limits[0] - LOWEST) // BIN, (limits[1] - LOWEST) // BIN


def _ends(shares: NDArray[np.float64], limits: Limits) -> tuple[int, int]:
    """Return the first bin to show, and the end (exclusive); few pixels are outside."""
    first, last = _bins(limits)
    inside = shares[first:last]
    before = int(np.searchsorted(np.cumsum(inside), _TAIL))
    after = int(np.searchsorted(np.cumsum(inside[::-1]), _TAIL))
    if before + after >= len(inside):
        return first, last
    return max(first, first + before - _MARGIN), min(last, last - after + _MARGIN)


def _height(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the y of shares; for shares that are too small, the y of the axis."""
    decades = np.log10(np.maximum(shares, _LEAST) / _LEAST)
    return Chart.bottom - (Chart.bottom - Chart.top) * decades / _DECADES


def _path(shares: NDArray[np.float64], step: float) -> str:
    """Return the SVG path of a line; at bins without pixels the line drops to the axis and breaks.

    Args:
        shares: shares of pixels in the bins shown.
        step: width of a bin, pixels.
    """
    near = np.convolve(shares >= _LEAST, [1, 1, 1], "same") > 0
    xs = Chart.left + (np.arange(len(shares)) + 0.5) * step
    starts = near & ~np.concatenate(([False], near[:-1]))
    return "".join(
        f"{'M' if start else 'L'}{x:.1f} {y:.1f}"
        for x, y, start in zip(xs[near], _height(shares)[near], starts[near], strict=True)
    )


def _round_values(low: int, high: int) -> range:
    """Return round values from low to high, for about _LABELS labels at most."""
    least = (high - low) / _LABELS
    power = 10 ** math.floor(math.log10(least))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least)
    return range(math.ceil(low / step) * step, high + 1, step)


def value_charts(choice: Choice, slices: Mapping[int, Views], repaired: int) -> list[Chart]:
    """Draw charts of the values of ten slices, of the sample, and of repaired files.

    Args:
        choice: rows of the sample, and of repaired files.
        slices: slices by row.
        repaired: number of repaired files in the whole data set.
    """
    sample = _measured(slices, choice.sample)
    if not sample:
        return []
    named = sample[:_LINES]
    what = f"{len(named)} slices"
    charts = [
        draw_chart(
            "stored",
            f"Stored values of {what}",
            f"Stored values of {what}, one line per slice.",
            "stored value",
            _slice_lines(named, "stored"),
        ),
        draw_chart(
            "hounsfield",
            f"Hounsfield units of {what}",
            f"Hounsfield units of {what}, one line per slice.{_outside(named)}",
            "HU",
            _slice_lines(named, "hounsfield"),
            _HOUNSFIELD,
        ),
    ]
    title = f"Hounsfield units of {len(sample)} slices drawn from the whole set, added up"
    same = all(np.array_equal(own["unrepaired"], own["hounsfield"]) for _, own in sample)
    note = "None of them was repaired: the lines coincide." if same else ""
    charts.append(_before_and_after("sample", title, f"{title}. {note}{_outside(sample)}", sample))
    if mended := _measured(slices, choice.repaired):
        title = f"Hounsfield units of {len(mended)} of the {count(repaired)} repaired files"
        note = "Before the repair, air is at the top of the 12-bit range."
        charts.append(_before_and_after("repaired", title, f"{title}. {note}", mended))
    return charts


def _measured(slices: Mapping[int, Views], rows: Sequence[int]) -> Histograms:
    return [
        (slices[row].row["image_id"], histograms)
        for row in rows
        if (histograms := slices[row].histograms) is not None
    ]


def _slice_lines(slices: Histograms, kind: str) -> list[Distribution]:
    return [
        Distribution(_short(image_id), own[kind], number >= _COLORS, number % _COLORS + 1)
        for number, (image_id, own) in enumerate(slices)
    ]


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"…{name[-_NAME_LENGTH + 1 :]}"


def _before_and_after(name: str, title: str, caption: str, slices: Histograms) -> Chart:
    lines = [
        Distribution("before repair", _total(slices, "unrepaired"), dashed=True, color=2),
        Distribution("after repair", _total(slices, "hounsfield")),
    ]
    return draw_chart(name, title, caption, "HU", lines, _HOUNSFIELD)


def _total(slices: Histograms, kind: str) -> Histogram:
    total: Histogram = np.sum([own[kind] for _, own in slices], axis=0)
    return total


def _outside(slices: Histograms) -> str:
    """Return a sentence about the pixels omitted from a chart of Hounsfield units."""
    total = _total(slices, "hounsfield")
    first, last = _bins(_HOUNSFIELD)
    share = float(1 - total[first:last].sum() / max(total.sum(), 1))
    if share < _MENTIONED:
        return ""
    low, high = (with_minus(count(edge)) for edge in _HOUNSFIELD)
    return f" {percent(share)} of the pixels are not between {low} and {high} HU: padding, metal."
