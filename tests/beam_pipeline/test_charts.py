"""Charts of pixel values, as SVG."""

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from beam_pipeline.card import pictures, tables
from beam_pipeline.card.pictures import BIN, BINS, LOWEST, draw_chart
from headct.page import page_templates

TEMPLATES = Path(pictures.__file__).parent


def histogram(shares: dict[int, int]) -> np.ndarray:
    """So many pixels of each value."""
    counted = np.zeros(BINS, np.int64)
    for value, pixels in shares.items():
        counted[(value - LOWEST) // BIN] = pixels
    return counted


def draw(lines: dict[str, np.ndarray]) -> ElementTree.Element:
    """The figure of a chart."""
    templates = page_templates(TEMPLATES)
    templates.filters["minus"] = tables.with_minus
    module = templates.get_template("chart.html.jinja").module
    return ElementTree.fromstring(module.chart(draw_chart("stored", "A title", ".", lines)))  # type: ignore[attr-defined]


def numbers(path: ElementTree.Element | None) -> list[float]:
    assert path is not None
    return [float(number) for number in re.findall(r"-?[\d.]+", path.get("d", ""))]


def lines_of(svg: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """The points of the lines of the first histogram."""
    line = svg.findall(".//path")[-2]
    left, top, width, height = map(float, re.findall(r"[\d.]+", line.get("transform", "")))
    found = [re.findall(r"[\d.]+", part) for part in line.get("d", "").split("M")[1:]]
    return [
        [
            (left + float(x) * width, top + float(y) * height)
            for x, y in zip(n[::2], n[1::2], strict=True)
        ]
        for n in found
    ]


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
    svg = draw({"": histogram({0: 900, 992: 100})})
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
    names = ["a <&>", *"bcdef"]
    figure = draw({name: histogram({0: 9}) for name in names})
    (svg,) = figure.iter("svg")
    assert {node.tag for node in svg.iter()} == {"svg", "title", "desc", "path", "text"}
    ids = {node.get("id"): node.text for node in svg.iter() if node.get("id")}
    assert ids[svg.get("aria-labelledby")] == "A title"
    assert ids[svg.get("aria-describedby")] == (
        "Share of pixels in bins of 16 by stored value: a <&>, b, c, d, e, f."
    )
    assert not any({"fill", "stroke", "style"} & set(node.attrib) for node in svg.iter())
    classes = [node.get("class") for node in svg.iter("path")][-12::2]
    colors = [f"line color-{number}" for number in range(1, 6)]
    assert classes == [*colors, "line color-1 dashed"]
    styles = (TEMPLATES / "card.html.jinja").read_text()
    for number in range(1, 6):
        assert f".chart .color-{number} {{ stroke: var(--series-{number}); }}" in styles
    assert [text.text for text in svg.iter("text")][-6:] == names


@pytest.mark.parametrize("number", [1, 2, 9, 10])
def test_the_legend_has_room(number: int) -> None:
    figure = draw({f"line {place}": histogram({0: 1}) for place in range(number)})
    (svg,) = figure.iter("svg")
    lowest = max(float(text.get("y", "")) for text in svg.iter("text"))
    assert 3 < float(svg.get("height", "")) - lowest < 10


@pytest.mark.parametrize(
    "shares", [{}, {0: 1}, {LOWEST: 1}, {65520: 1}, {LOWEST: 1, 65520: 1}, {3: 10**6, 5000: 1}]
)
def test_any_values_can_be_drawn(shares: dict[int, int]) -> None:
    drawn = lines_of(draw({"": histogram(shares)}))
    assert len(drawn) == sum(each >= 2e-6 * sum(shares.values()) for each in shares.values())
