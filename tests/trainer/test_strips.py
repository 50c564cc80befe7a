"""Strips of scans, with figures worked out by hand."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure
from scipy.special import logit

from tests.trainer.made_runs import make_run
from trainer.evaluation.measured import Measured, read_predictions
from trainer.report import plots
from trainer.report.report import models_of
from trainer.report.strips import (
    SCAN,
    SLICE,
    SMOOTHED,
    ScanCurves,
    change_table,
    choose_scans,
    draw_strips,
    find_curves,
    scan_table,
)
from trainer.runs.smoothing import Smoothing, write_smoothing

NAMES = ("one", "any")


def make_slices(slices: int, scans: int = 1, **columns: Any) -> Measured:
    """Slices of scans from the top to the bottom, one patient per scan, all without findings."""
    count, number = slices * scans, np.arange(slices * scans)
    frame = pd.DataFrame(
        {
            "image_id": [f"I{i:03d}" for i in number],
            "patient_id": [f"P{i // slices}" for i in number],
            "study_id": [f"S{i // slices}" for i in number],
            "series_id": [f"R{i // slices}" for i in number],
            "position_z": 5.0 * (slices - 1 - number % slices),
            **{f"label_{name}": np.zeros(count, int) for name in NAMES},
            **{f"probability_{name}": np.full(count, 0.5) for name in NAMES},
            **columns,
        }
    )
    return Measured(frame, NAMES, (1.0, 2.0))


def find(slices: Measured, models: dict[str, Any]) -> ScanCurves:
    curves = find_curves(slices, models)
    assert isinstance(curves, ScanCurves)
    return curves


def test_what_is_mended_and_broken_by_hand() -> None:
    slices = make_slices(2, scans=5)
    # Probability of `any` on all slices of each scan; that of `one` stays.
    later = np.repeat([0.2, 0.9, 0.5, 0.4, 0.1], 2)
    changed = np.stack([slices.predicted[:, 0], later], axis=1)
    curves = find(slices, {SLICE: slices.predicted, SCAN: changed})
    assert curves.of_scans(SLICE) == pytest.approx([np.log(2)] * 5)
    expected = [2 / 3 * np.log(0.5 / (1 - p)) for p in (0.2, 0.9, 0.5, 0.4, 0.1)]
    assert curves.change(SCAN) == pytest.approx(expected)
    mended, broken = choose_scans(curves)
    assert (mended.title, mended.scans) == ("Mended by the scan model", [4, 0])
    assert (broken.title, broken.scans) == ("Broken by the scan model", [1])
    assert "the loss of 3 of 5 scans falls" in mended.why
    assert "1 of 5 scans rises" in broken.why
    alike = find(slices, {SLICE: changed, SCAN: changed})
    assert [each.scans for each in choose_scans(alike)] == [[1, 2, 3]]
    rows = change_table(curves).rows
    assert rows[1][2].value == pytest.approx(np.mean(expected))
    assert rows[1][2].ends[0] < np.mean(expected) < rows[1][2].ends[1]
    assert rows[1][3:] == [3, 1]


def test_a_strip_shows_slices_from_bottom_to_top() -> None:
    present = np.zeros(50, int)
    present[[10, 11, 13]] = 1  # from the top: slices 37, 39 and 40 from the bottom
    slices = make_slices(50, label_one=present, probability_one=np.linspace(0.9, 0.1, 50))
    curves = find(slices, {SLICE: slices.predicted})
    asked: list[list[str]] = []
    (strip,) = draw_strips(
        curves, choose_scans(curves)[0], lambda ids: asked.append(ids) or "data:,"
    )
    (ids,) = asked
    assert ids == sorted(ids, reverse=True)  # z falls with the number
    assert (len(ids), ids[0], ids[-1]) == (20, "I048", "I001")
    assert "20 of 50 slices" in strip.sheet_alt
    assert "z 0.0 to 245.0 mm" in strip.caption
    assert "the first is row 49" in strip.caption
    assert "one is present on 37, 39 to 40." in strip.alt
    assert "one, the slice network: highest 0.90 on slice 50, mean 0.71 where present" in strip.alt
    # In inches: all thumbnails together lie above the axes.
    (width, _) = (float(each) for each in re.findall(r'viewBox="0 0 (\S+) (\S+)"', strip.svg)[0])
    assert width / 72 == pytest.approx(strip.width, abs=0.01)
    ElementTree.fromstring(strip.svg)


@pytest.mark.parametrize(
    ("slices", "cells", "cell", "axes"),
    [
        (1, 1, 0.85, 3.4),  # the axes are wider than the thumbnails
        (5, 5, 0.85, 4.25),
        (16, 16, 10.6 / 16, 10.6),
        (50, 20, 0.53, 10.6),
    ],
)
def test_thumbnails_are_above_the_slices_of_the_axes(
    slices: int, cells: int, cell: float, axes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []

    def draw(fill: Any, size: tuple[float, float], _: str) -> Markup:
        figures.append(Figure(figsize=size))
        fill(figures[0])
        return Markup()

    monkeypatch.setattr(plots, "render_svg", draw)
    found = make_slices(slices)
    curves = find(found, {SLICE: found.predicted})
    (strip,) = draw_strips(curves, choose_scans(curves)[0])
    width = 1.45 + axes + 0.08
    assert strip.width == pytest.approx(width)
    assert strip.left == pytest.approx(100 * 1.45 / width)
    assert strip.share == pytest.approx(100 * cells * cell / width)
    drawn = figures[0].axes[-1]
    box = drawn.get_position()
    assert (box.x0, box.x1) == pytest.approx((1.45 / width, (1.45 + axes) / width))
    # The thumbnails' width has room for just the slices.
    assert drawn.get_xlim() == pytest.approx((-0.5, slices * axes / (cells * cell) - 0.5))
    ticks = [int(text.get_text()) for text in drawn.get_xticklabels()]
    assert ticks == [place + 1 for place in drawn.get_xticks()]
    assert len(ticks) <= 11


def test_short_scans_and_strange_names_are_drawn() -> None:
    names = ("a $x$ name that is much longer than an axis has room for", "any")
    frame = make_slices(2, scans=3).frame.rename(
        columns={f"{kind}_one": f"{kind}_{names[0]}" for kind in ("label", "probability")}
    )
    frame.loc[0, "series_id"] = ""  # a scan of its own
    slices = Measured(frame, names, (1.0, 1.0))
    curves = find(slices, {SLICE: slices.predicted})
    strips = draw_strips(curves, choose_scans(curves)[0])
    assert sorted(re.findall(r"^Scan of (\d) ", " ".join(each.alt), re.M) for each in strips)
    assert all("a $x$ name that i…" in each.svg for each in strips)
    assert not any(each.sheet for each in strips)


def test_figures_by_scan_are_of_the_maximum_and_as_pooled() -> None:
    label = np.array([1, 0, 0, 0, 0, 1, 0, 0])
    slices = make_slices(
        2,
        scans=4,
        label_one=label,
        probability_one=[0.1, 0.2, 0.9, 0.3, 0.8, 0.4, 0.5, 0.5],
        pooled_one=np.repeat([0.9, 0.1, 0.8, 0.2], 2),
        pooled_any=0.5,
    )
    table = scan_table(find(slices, {SLICE: slices.predicted}))
    one = dict(zip([heading for heading, _ in table.columns], table.rows[0], strict=True))
    assert one["Positives"] == 2
    # Maxima 0.2, 0.9, 0.8, 0.5: one of four pairs of a positive and a negative is right.
    assert one["Slice network: maximum"].value == 0.25
    assert one["As pooled"].value == 1


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("series_id", None, "the predictions: has no series_id"),
        ("position_z", None, "the predictions: has no position_z"),
        ("position_z", 3.0, "no slice has a position along z"),
    ],
)
def test_why_there_are_no_strips(column: str, value: float | None, reason: str) -> None:
    frame = make_slices(2).frame
    frame = frame.drop(columns=column) if value is None else frame.assign(**{column: value})
    found = find_curves(Measured(frame, NAMES, (1.0, 1.0)), {})
    assert isinstance(found, str)
    assert found.startswith(reason)


def test_smoothing_never_sees_the_patients_that_it_smooths(tmp_path: Path) -> None:
    setup = make_run(tmp_path / "run", patients=12, slices=8)
    names = setup.shards.labels
    frame = read_predictions(setup.run.predictions("fold0"), names)
    z = np.tile(5.0 * np.arange(8), 12)
    # A label of half of a scan: smoothing helps.
    labels = np.tile(np.arange(8) < 4, 12).astype(int)
    frame = frame.assign(position_z=z, **{f"label_{name}": labels for name in names})
    slices = Measured(frame, names, setup.weights)
    assert [*models_of(setup, slices)] == [SLICE]
    here = Smoothing(4.0, 0.5, "fold0", setup.shards.digest())
    write_smoothing(setup.run.smoothing, here)
    models = models_of(setup, slices)
    assert [*models] == [SLICE, SMOOTHED.format(SLICE)]
    first = (frame["patient_id"] == "SECRET_0").to_numpy()
    poisoned = frame.copy()
    poisoned.loc[first, [f"label_{name}" for name in names]] = np.random.default_rng(0).integers(
        0, 2, (8, 2)
    )
    again = models_of(setup, Measured(poisoned, names, setup.weights))
    title = SMOOTHED.format(SLICE)
    np.testing.assert_array_equal(again[title][first], models[title][first])
    assert not np.allclose(models[title], models[SLICE])
    # A smoothing that was fitted on other slices is applied as it is.
    write_smoothing(setup.run.smoothing, replace(here, digest="another"))
    found = models_of(setup, slices)[title]
    weights = np.exp(-((np.subtract.outer(z[:8], z[:8]) / 4) ** 2) / 2)
    weights[np.abs(np.subtract.outer(z[:8], z[:8])) > 12] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    logits = logit(models[SLICE][:8])
    np.testing.assert_allclose(logit(found[:8]), logits / 2 + weights @ logits / 2, rtol=1e-6)
