"""What a card shows: slices side by side, and how their values are spread."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from markupsafe import Markup

from beam_pipeline.card.content import Content, Seen
from beam_pipeline.card.drawing import ALL, Limits, Line, draw_distributions, share_outside
from beam_pipeline.card.numbers import count, percent, with_minus
from beam_pipeline.card.views import Histogram, Histograms, Picture
from beam_pipeline.dicom.hounsfield import Repair
from headct.layout import LABEL_PREFIX

_LINES = 10  # slices that have one each
_COLORS = 5  # of the page's series that differ enough
_NAME_LENGTH = 16
_HOUNSFIELD: Limits = (-1104, 3200)  # HU that are shown
_MENTIONED = 1e-3  # of the pixels


@dataclass(frozen=True)
class Shown:
    """A slice side by side in all ways of showing it.

    Attributes:
        image_id: of the slice.
        split: it is in.
        labels: that it has.
        source: its file, relative to the input.
        repair: what was done to its values; empty for nothing.
        problem: why there are no pictures of its file; empty if there are.
        pictures: of the file, then of the shard: the way, a note, and the picture as a data: URI.
    """

    image_id: str
    split: str
    labels: tuple[str, ...]
    source: str
    repair: str
    problem: str
    pictures: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Drawing:
    """A drawing and what is said of it.

    Attributes:
        svg: it.
        alt: what it shows, for who cannot see it.
        caption: below it.
    """

    svg: Markup
    alt: str
    caption: str


def example_groups(content: Content) -> list[tuple[str, list[Shown]]]:
    """The examples of each label."""
    labels = content.manifest["labels"]
    return [
        (group, [_show(content.seen[example.row], labels) for example in examples])
        for group, examples in groupby(content.choice.examples, key=lambda example: example.group)
    ]


def _show(seen: Seen, labels: Sequence[str]) -> Shown:
    row, views = seen.row, seen.views
    pictures = [("file: " + each.way, each) for each in views.of_source]
    pictures += [("shard: " + each.way, each) for each in views.of_shard]
    return Shown(
        image_id=row["image_id"],
        split=row["split"],
        labels=tuple(label for label in labels if row[LABEL_PREFIX + label] == 1),
        source=row["source"],
        repair="" if row["repair"] == Repair.NONE else row["repair"],
        problem=views.problem,
        pictures=tuple((way, with_minus(each.note), _data_uri(each)) for way, each in pictures),
    )


def _data_uri(picture: Picture) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}"


def distributions(content: Content) -> list[Drawing]:
    """Stored values and Hounsfield units of ten slices, of the sample, and of repaired files."""
    sample = _measured(content, content.choice.sample)
    if not sample:
        return []
    drawings = [
        _draw_slices(sample[:_LINES], "stored", "stored value"),
        _draw_slices(sample[:_LINES], "hounsfield", "HU"),
        _draw_sum(sample),
    ]
    repaired = _measured(content, content.choice.repaired)
    if repaired:
        drawings.append(_draw_repaired(content, repaired))
    return drawings


Measured = list[tuple[str, Histograms]]  # image ids, and how their pixels are spread


def _measured(content: Content, rows: Sequence[int]) -> Measured:
    found = [content.seen[row] for row in rows]
    return [
        (seen.row["image_id"], seen.views.histograms)
        for seen in found
        if seen.views.histograms is not None
    ]


def _draw_slices(slices: Measured, kind: str, unit: str) -> Drawing:
    lines = [
        Line(_short(image_id), getattr(found, kind), place >= _COLORS, place % _COLORS + 1)
        for place, (image_id, found) in enumerate(slices)
    ]
    is_stored = kind == "stored"
    what = f"{'Stored values' if is_stored else 'Hounsfield units'} of {len(lines)} slices"
    outside = "" if is_stored else _outside(_total(slices, kind))
    return Drawing(
        Markup(
            draw_distributions(f"slices-{kind}", lines, unit, ALL if is_stored else _HOUNSFIELD)
        ),
        f"{what}: the share of each slice's pixels by {unit}.",
        f"{what}, one line per slice.{outside}",
    )


def _outside(total: Histogram) -> str:
    """What a drawing of Hounsfield units leaves out, as a sentence."""
    share = share_outside(total, _HOUNSFIELD)
    if share < _MENTIONED:
        return ""
    low, high = (with_minus(count(edge)) for edge in _HOUNSFIELD)
    return f" {percent(share)} of the pixels are not between {low} and {high} HU: padding, metal."


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"…{name[-_NAME_LENGTH + 1 :]}"


def _total(slices: Measured, kind: str) -> Histogram:
    total: Histogram = sum(getattr(found, kind) for _, found in slices)
    return total


def _before_and_after(name: str, slices: Measured) -> Markup:
    lines = [
        Line("before repair", _total(slices, "unrepaired"), dashed=True, color=2),
        Line("after repair", _total(slices, "hounsfield")),
    ]
    return Markup(draw_distributions(name, lines, "HU", _HOUNSFIELD))


def _draw_sum(sample: Measured) -> Drawing:
    what = f"Hounsfield units of {len(sample)} slices drawn from the whole set, added up"
    return Drawing(
        _before_and_after("sample", sample),
        f"{what}: the share of pixels by HU, before and after the repair of badly encoded files.",
        f"{what}. {_coincide(sample)}{_outside(_total(sample, 'hounsfield'))}",
    )


def _coincide(sample: Measured) -> str:
    same = all(np.array_equal(found.unrepaired, found.hounsfield) for _, found in sample)
    return "None of them was repaired: the lines coincide." if same else ""


def _draw_repaired(content: Content, repaired: Measured) -> Drawing:
    total = sum(content.manifest["counts"]["repaired"].values())
    what = f"Hounsfield units of {len(repaired)} of the {count(total)} repaired files"
    return Drawing(
        _before_and_after("repaired", repaired),
        f"{what}: the share of pixels by HU, before and after the repair.",
        f"{what}. Before the repair, air is at the top of the 12-bit range.",
    )
