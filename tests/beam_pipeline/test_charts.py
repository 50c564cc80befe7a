"""Charts of pixel values, as SVG."""

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from beam_pipeline.card import charts
from beam_pipeline.card.charts import Distribution, draw_chart
from beam_pipeline.card.views import BIN, BINS, LOWEST
from headct.page import page_templates

TEMPLATES = Path(charts.__file__).parent


def histogram(shares: dict[int, int]) -> np.ndarray:
    """So many pixels of each value."""
    counted = np.zeros(BINS, np.int64)
    for value, pixels in shares.items():
        counted[(value - LOWEST) // BIN] = pixels
    return counted


def draw(*lines: Distribution, name: str = "one") -> ElementTree.Element:
    """The figure of a chart."""
    chart = draw_chart(name, "A title", "a caption", "HU", lines)
    html = page_templates(TEMPLATES).get_template("chart.html.jinja").module.chart(chart)  # type: ignore[attr-defined]
    return ElementTree.fromstring(html)


def numbers(path: ElementTree.Element | None) -> list[float]:
    assert path is not None
    return [float(number) for number in re.findall(r"-?[\d.]+", path.get("d", ""))]


def lines_of(svg: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """The points of the lines of the first histogram."""
    path = svg.findall(".//path")[-2].get("d", "")
    found = [re.findall(r"[\d.]+", part) for part in path.split("M")[1:]]
    return [list(zip(map(float, n[::2]), map(float, n[1::2]), strict=True)) for n in found]


def ticks(svg: ElementTree.Element, axis: str) -> dict[str | None, float]:
    """Positions of an axis's grid lines, by their labels."""
    nodes = list(svg.iter())
    pairs = pairwise(nodes)
    return {
        text.text: numbers(line)[axis == "y"]
        for line, text in pairs
        if line.get("class") == "grid" and text.get("class") == axis
    }


def test_lines_are_where_the_labels_of_the_axes_say() -> None:
    svg = draw(Distribution("", histogram({0: 900, 992: 100})))
    values, shares = ticks(svg, "x"), ticks(svg, "y")
    assert [*shares] == ["100 %", "10 %", "1 %", "0.1 %", "0.01 %", "0.001 %"]
    (before, most, _), (_, tenth, behind) = lines_of(svg)
    zero, unit = values["0"], (values["1000"] - values["0"]) / 1000
    assert [most[0], tenth[0]] == pytest.approx([zero + unit * 8, zero + unit * 1000], abs=0.2)
    top, decade = shares["100 %"], shares["10 %"] - shares["100 %"]
    heights = [top - decade * np.log10(0.9), top + decade]
    assert [most[1], tenth[1]] == pytest.approx(heights, abs=0.2)
    axis = numbers(svg.find(".//path[@class='axis']"))[2]
    assert [before[1], behind[1]] == pytest.approx([axis, axis], abs=0.1)


def test_a_chart_has_the_colors_of_the_page_and_words_for_who_cannot_see_it() -> None:
    figure = draw(
        Distribution("a <&>", histogram({0: 9})), Distribution("b", histogram({0: 5}), True, 4)
    )
    (svg,) = figure.iter("svg")
    assert {node.tag for node in svg.iter()} == {"svg", "title", "desc", "path", "text"}
    ids = {node.get("id"): node.text for node in svg.iter() if node.get("id")}
    assert ids[svg.get("aria-labelledby")] == "A title"
    assert ids[svg.get("aria-describedby")] == "Share of pixels in bins of 16 by HU: a <&>, b."
    assert not any({"fill", "stroke", "style"} & set(node.attrib) for node in svg.iter())
    classes = [node.get("class") for node in svg.iter("path")][-4:]
    assert classes == ["line color-1"] * 2 + ["line color-4 dashed"] * 2
    styles = (TEMPLATES / "card.html.jinja").read_text()
    for number in range(1, 6):
        assert f".chart .color-{number} {{ stroke: var(--series-{number}); }}" in styles
    assert [text.text for text in svg.iter("text")][-2:] == ["a <&>", "b"]


@pytest.mark.parametrize("number", [1, 2, 9, 10])
def test_the_legend_has_room(number: int) -> None:
    figure = draw(*(Distribution(f"line {place}", histogram({0: 1})) for place in range(number)))
    (svg,) = figure.iter("svg")
    lowest = max(float(text.get("y", "")) for text in svg.iter("text"))
    assert 3 < float(svg.get("height", "")) - lowest < 10


@pytest.mark.parametrize(
    "shares", [{}, {0: 1}, {LOWEST: 1}, {65520: 1}, {LOWEST: 1, 65520: 1}, {3: 10**6, 5000: 1}]
)
def test_any_values_can_be_drawn(shares: dict[int, int]) -> None:
    drawn = lines_of(draw(Distribution("", histogram(shares))))
    assert len(drawn) == sum(each >= 2e-6 * sum(shares.values()) for each in shares.values())
