"""Drawings of a card: SVG that stands in the page and takes its colors from there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pygal
from pygal.style import Style
from pygal.view import Box

from beam_pipeline.card.numbers import with_minus
from beam_pipeline.card.views import BIN, BINS, LOWEST, Histogram

# Pixels: as wide as a phone, where text keeps its size.
_WIDTH, _HEIGHT, _BOTTOM = 400, 320, 10
_FONT = 12
_LEGEND_COLUMNS = 2
_LEGEND_ROW = _FONT * 3 // 2  # that of pygal
_LONGER = 10  # than pygal's box is a line in the legend
_LOOK: dict[str, Any] = {
    "style": Style(
        font_family="inherit",
        label_font_size=_FONT,
        major_label_font_size=_FONT,
        title_font_size=_FONT,
        legend_font_size=_FONT,
    ),
    "width": _WIDTH,
    "explicit_size": True,
    "margin_top": 10,
    "margin_right": 14,
    "margin_left": 2,
    "spacing": 7,
    "show_dots": False,
    "show_x_guides": True,
    "allow_interruptions": True,
    "truncate_label": -1,
    "truncate_legend": -1,
    "legend_at_bottom": True,
    "legend_at_bottom_columns": _LEGEND_COLUMNS,
    "no_data_text": "",
    "js": (),
    "disable_xml_declaration": True,
}
_RULES = {
    "": "user-select: text; -webkit-user-select: text",
    "text": "fill: var(--ink)",
    ".background": "fill: none",
    ".title": "text-anchor: middle",
    ".plot_title": "text-anchor: start",
    ".axis.x text": "text-anchor: middle",
    ".axis.y text": "text-anchor: end",
    ".axis .line": "stroke: var(--ink)",
    ".axis .guide": "stroke: var(--rule); stroke-width: .7",
    ".reactive": "fill: none; stroke-width: 1.3",
}
_DASHES = "5 2.5"
_LABELS = 6  # at most, of the axis of values
_LEAST = 2e-6  # of the pixels: less is not shown
_DECADES = -math.log10(_LEAST)
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
    rows = -(-len(lines) // _LEGEND_COLUMNS)
    reserved = len(lines) // _LEGEND_COLUMNS  # by pygal, which forgets a row that is not full
    chart = pygal.XY(
        title=f"share of pixels in bins of {BIN}",
        x_title=unit,
        css=[f"inline:{_css(name, lines)}"],
        height=_HEIGHT + rows * _LEGEND_ROW,
        margin_bottom=_BOTTOM + (rows - reserved) * _LEGEND_ROW,
        xrange=(first, last),
        range=(0, _DECADES),
        x_labels=_value_labels(first, last),
        y_labels=_share_labels(),
        **_LOOK,
    )
    chart.uuid = name
    for line in lines:
        chart.add(line.name, _points(line.histogram, first, last))
    chart.add_xml_filter(_simplify)
    svg: str = chart.render()
    return svg


def _css(name: str, lines: Sequence[Line]) -> str:
    """Rules for one drawing: those of SVG in a page are for all of the page."""
    rules = _RULES | {
        f".color-{place}": f"stroke: var(--series-{line.color})"
        + (f"; stroke-dasharray: {_DASHES}" if line.dashed else "")
        for place, line in enumerate(lines)
    }
    return "".join(f"#chart-{name} {part} {{ {rule} }}" for part, rule in rules.items())


def _points(histogram: Histogram, first: int, last: int) -> list[tuple[float, float | None]]:
    """Number of the bin, and decades above the least share; None where nothing is to be seen.

    Decades, since both axes of pygal are logarithmic or none; numbers of bins, since it draws an
    axis at 0.
    """
    # Lines go down to the axis, which pygal has that far below the least value, and end there.
    decades = np.full(last - first, -Box.margin * _DECADES)
    shares = histogram[first:last] / max(histogram.sum(), 1)
    shown = shares >= _LEAST
    decades[shown] = np.log10(shares[shown] / _LEAST)
    near = np.convolve(shown, [1, 1, 1], "same") > 0
    return [
        (place + 0.5, height if is_near else None)
        for place, height, is_near in zip(
            range(first, last), decades.tolist(), near.tolist(), strict=True
        )
    ]


def _value_labels(first: int, last: int) -> list[dict[str, Any]]:
    """Round values at their bins."""
    low, high = LOWEST + BIN * first, LOWEST + BIN * last
    least = (high - low) / _LABELS
    power = 10 ** math.floor(math.log10(least))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least)
    return [
        {"value": (value - LOWEST) / BIN, "label": with_minus(str(value))}
        for value in range(math.ceil(low / step) * step, high + 1, step)
    ]


def _share_labels() -> list[dict[str, Any]]:
    """Powers of ten as percentages, in decades above the least share."""
    return [
        {"value": _DECADES - place, "label": f"{100 / 10**place:g} %"}
        for place in range(math.floor(_DECADES) + 1)
    ]


def _simplify(svg: Any) -> Any:
    """Only what is seen: no script, nothing for one, and no ids, of which a page has one each."""
    for parent in list(svg.iter()):
        for child in list(parent):
            if _is_unseen(child):
                parent.remove(child)
    for node in svg.iterfind(".//*[@id]"):
        del node.attrib["id"]
    for box in svg.iterfind(".//g[@class='legends']/g/rect"):
        size = float(box.get("width"))
        left, middle = float(box.get("x")) - _LONGER, float(box.get("y")) + size / 2
        for attribute in ("x", "y", "width", "height"):
            del box.attrib[attribute]
        box.tag = "path"
        box.set("d", f"M{left:g} {middle:g}h{size + _LONGER:g}")
    for title in svg.iterfind(".//text[@class='title plot_title']"):
        title.set("x", "0")
    return svg


def _is_unseen(node: Any) -> bool:
    is_comment = not isinstance(node.tag, str)
    return is_comment or node.tag in ("script", "title") or "tooltip" in node.get("class", "")


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
