"""Scans as strips: slices along z, the truth, and each model's probability as a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.figure import Figure

from headct.errors import UsageError
from headct.layout import IMAGE_ID
from headct.page import Table
from headct.scans import Scans, find_scans
from trainer.display import counted
from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import Array, example_losses
from trainer.report import plots

# Titles of the models of a run.
SLICE, SCAN, ENSEMBLE = "Slice network", "Scan model", "Ensemble"
SMOOTHED = "{}, smoothed"
OWN_TITLES = tuple(kind.format(t) for kind in ("{}", SMOOTHED) for t in (SLICE, SCAN, ENSEMBLE))
MOST_THUMBNAILS = 20
_EACH = 2  # scans that a model mends, and as many that it breaks
_WORST = 3  # scans of a single model
_PANELS = 2  # labels with curves
_MOST_LABELS = 8  # with a row of truth
_LONGEST = 18  # characters of a label's name beside an axis
# Inches; 96 pixels per inch.
_LEFT, _RIGHT, _ROW, _PANEL, _GAP, _BELOW = 1.45, 0.08, 0.16, 0.95, 0.12, 0.42
_WIDTH, _SMALLEST, _LARGEST = 10.6, 0.53, 0.85  # of all thumbnails, and of one
_LEAST_WIDTH = 3.4  # of the axes


@dataclass(frozen=True)
class ScanCurves:
    """Probabilities of several models for the slices of all scans of a split.

    Attributes:
        slices: the predictions of one of the models, N rows with image_id and patient_id.
        models: probabilities by title, [N, L]; the others are compared with the first.
        scans: of these rows.
    """

    slices: Measured
    models: Mapping[str, Array]
    scans: Scans

    @property
    def first(self) -> str:
        """Title of the model that the others are compared with."""
        return next(iter(self.models))

    @property
    def others(self) -> list[str]:
        """Titles of the other models."""
        return [*self.models][1:]

    @cached_property
    def losses(self) -> dict[str, Array]:
        """Part of each label in the weighted log loss of a slice, by model, [N, L]."""
        shares = np.array(self.slices.weights) / sum(self.slices.weights)
        labels = self.slices.labels
        return {title: example_losses(labels, p) * shares for title, p in self.models.items()}

    def of_scans(self, title: str) -> Array:
        """Return the weighted log loss per scan, the mean over its slices, [S]."""
        losses = self.losses[title].sum(axis=1)[self.scans.order]
        return np.asarray(
            np.add.reduceat(losses, self.scans.starts[:-1]) / np.diff(self.scans.starts)
        )

    def change(self, title: str) -> Array:
        """Return the loss per scan, less that of the first model, [S]."""
        return self.of_scans(title) - self.of_scans(self.first)

    def measured(self, title: str) -> Measured:
        """Return the predictions of a model."""
        return self.slices.answered(self.models[title])


class Strip(NamedTuple):
    """A scan for the template.

    Attributes:
        caption: figures of the scan.
        svg: truth and curves, `width` inches wide.
        alt: what they show.
        sheet: the thumbnails, a data: URI; empty without images.
        sheet_alt: what they are.
        width: inches.
        left: where the thumbnails begin, and
        share: how wide they are, percent of the width.
    """

    caption: str
    svg: Markup
    alt: str
    sheet: str
    sheet_alt: str
    width: float
    left: float
    share: float


class Chosen(NamedTuple):
    """Scans to show: their numbers, a title and why they were chosen; `model` is compared."""

    title: str
    why: str
    scans: list[int]
    model: str


def find_curves(slices: Measured, models: Mapping[str, Array]) -> ScanCurves | str:
    """Return the curves of all scans; or why they cannot be drawn."""
    try:
        scans = find_scans(slices.frame, "the predictions")
    except UsageError as error:
        return str(error)
    if not np.isfinite(scans.z).any():
        return "no slice has a position along z, so nothing orders the slices of a scan"
    return ScanCurves(slices, models, scans)


def choose_scans(curves: ScanCurves) -> list[Chosen]:
    """Return for each model the scans whose loss it lowers and raises most.

    Of a single model, or of models that answer alike, the scans with the highest loss.
    """
    chosen, first = [], _named(curves.first)
    for title in reversed(curves.others):
        change = curves.change(title)
        for verb, sign, word in (("Mended", 1, "falls"), ("Broken", -1, "rises")):
            count = int((sign * change < 0).sum())
            found = np.argsort(sign * change, kind="stable")[: min(count, _EACH)].tolist()
            why = (
                f"From {first} to {_named(title)}, the loss of {count} of"
                f" {counted(len(change), 'scan')}"
                f" {word}. Shown: where it {word} most."
            )
            chosen += [Chosen(f"{verb} by {_named(title)}", why, found, title)] if found else []
    if chosen:
        return chosen
    worst = np.argsort(-curves.of_scans(curves.first), kind="stable")[:_WORST].tolist()
    why = "The scans with the highest weighted log loss, the mean over their slices."
    return [Chosen("Scans with the highest loss", why, worst, curves.first)]


def _named(title: str) -> str:
    """Return a model's title within a sentence; a run's is a name."""
    if title not in OWN_TITLES:
        return title
    name, _, smoothed = title.partition(", ")
    return f"the {smoothed and f'{smoothed} '}{name[:1].lower()}{name[1:]}"


def change_table(curves: ScanCurves) -> Table:
    """Make a table with one row per model: its loss, and scans with a lower and a higher one."""
    first = curves.measured(curves.first)
    rows: list[list[Any]] = []
    for title in curves.models:
        measured, change = curves.measured(title), curves.change(title)
        row = [title, f"{measured.figures['weighted_log_loss']:.4f}"]
        if title == curves.first:
            rows.append([*row, "", "", ""])
            continue
        difference = measured.difference(first, "log_loss", spec="+.4f")
        rows.append([*row, difference, int((change < 0).sum()), int((change > 0).sum())])
    columns = [("Model", "text"), ("Log loss", "number"), ("Difference", "number")]
    columns += [("Scans with a lower loss", "number"), ("With a higher loss", "number")]
    caption = f"Weighted log loss by slice, and its difference from {_named(curves.first)}"
    return Table(caption, columns, rows)


def scan_table(curves: ScanCurves) -> Table:
    """Make a table of the ROC AUC per scan: of each model's maximum, and as a scan model pools."""
    slices = curves.slices
    by_scan = {f"{t}: maximum": curves.measured(t).by_scan() for t in curves.models}
    if slices.has("pooled"):
        by_scan["As pooled"] = slices.answered(slices.values("pooled")).by_scan()
    first = next(iter(by_scan.values()))
    positives = first.labels.sum(axis=0).tolist()
    rows = [
        [name, number, *(each.estimate("roc_auc", name) for each in by_scan.values())]
        for name, number in zip(slices.names, positives, strict=True)
    ]
    means = ["Mean", "", *(each.estimate("roc_auc") for each in by_scan.values())]
    columns = [("Label", "text"), ("Positives", "number"), *((each, "number") for each in by_scan)]
    return Table(f"ROC AUC by scan (scans: {len(first.frame)})", columns, rows, [means])


def draw_strips(curves: ScanCurves, chosen: Chosen, make_sheet: Any = None) -> list[Strip]:
    """Draw the chosen scans.

    Args:
        curves: of all scans.
        chosen: which scans, and the model whose change decides which labels have curves.
        make_sheet: from image ids to their thumbnails side by side, a data: URI; None: without.
    """
    return [_draw(curves, scan, chosen.model, make_sheet) for scan in chosen.scans]


def _draw(curves: ScanCurves, scan: int, model: str, make_sheet: Any) -> Strip:
    begin, end = curves.scans.starts[scan : scan + 2].tolist()
    rows, z = curves.scans.order[begin:end], curves.scans.z[begin:end]
    count, names, labels = end - begin, curves.slices.names, curves.slices.labels[rows]
    change = curves.losses[model][rows].sum(axis=0)
    if model != curves.first:
        change = change - curves.losses[curves.first][rows].sum(axis=0)
    shown = np.argsort(-np.abs(change), kind="stable")[:_PANELS]
    present = np.flatnonzero(labels.any(axis=0))
    listed = np.arange(len(names)) if len(names) <= _MOST_LABELS else present[:_MOST_LABELS]
    truth = {names[i]: labels[:, i] == 1 for i in listed}
    panels = {
        names[i]: (labels[:, i] == 1, {t: p[rows, i] for t, p in curves.models.items()})
        for i in shown
    }
    heights = [*([len(truth) * _ROW] if truth else []), *[_PANEL] * len(panels)]
    cells = min(count, MOST_THUMBNAILS)
    cell = float(np.clip(_WIDTH / cells, _SMALLEST, _LARGEST))
    across = max(cells * cell, _LEAST_WIDTH)
    size = (_LEFT + across + _RIGHT, sum(heights) + _GAP * len(heights) + _BELOW)
    known = z[np.isfinite(z)]
    place = f", z {known[0]:.1f} to {known[-1]:.1f} mm" if len(known) else ""
    fill = partial(
        _fill,
        size=size,
        heights=heights,
        truth=truth,
        panels=panels,
        slices=count * across / (cells * cell),
        place=place,
    )
    losses = {t: float(curves.of_scans(t)[scan]) for t in curves.models}
    before = losses[curves.first]
    said = "; ".join(
        f"{title} {loss:.3f}" + ("" if title == curves.first else f" ({loss - before:+.3f})")
        for title, loss in losses.items()
    )
    middles = ((np.arange(cells) + 0.5) * count / cells).astype(int)
    ids = curves.slices.frame[IMAGE_ID].iloc[rows[middles]].tolist()
    some = f"{cells} of {count}" if cells < count else f"the {count}"
    return Strip(
        caption=f"{counted(count, 'slice')}{place}, the first is row {rows[0]}."
        f" Weighted log loss: {said}.",
        svg=plots.render_svg(fill, size, f"strip {scan} {model}"),
        alt=_describe(count, place, {names[i]: labels[:, i] == 1 for i in present}, panels),
        sheet=make_sheet(ids) if make_sheet else "",
        sheet_alt=f"CT, {some} slices of a scan, from bottom to top",
        width=size[0],
        left=100 * _LEFT / size[0],
        share=100 * cells * cell / size[0],
    )


_Panels = Mapping[str, tuple[npt.NDArray[np.bool_], Mapping[str, Array]]]


def _fill(
    figure: Figure,
    size: tuple[float, float],
    heights: Sequence[float],
    truth: Mapping[str, npt.NDArray[np.bool_]],
    panels: _Panels,
    slices: float,
    place: str,
) -> None:
    """Draw rows of truth, and a panel with curves per label, one below the other.

    Args:
        figure: empty.
        size: of the figure, inches.
        heights: of the axes, from top to bottom, inches.
        truth: by label, which slices have the label.
        panels: the same, and each model's probability, by label.
        slices: that fit in the width; more than there are if the scan is short, so that each slice
            is below its thumbnail.
        place: positions along z, in words.
    """
    width, height = size
    inside = (width - _LEFT - _RIGHT) / width
    top = height - _GAP / 2
    axes_of = []
    for each in heights:
        box = (_LEFT / width, (top - each) / height, inside, each / height)
        axes_of.append(figure.add_axes(box))
        top -= each + _GAP
    count = len(next(iter(panels.values()))[0])
    for axes in axes_of:
        axes.set_xlim(-0.5, slices - 0.5)
        axes.set_xticks([])
    if truth:
        axes = axes_of[0]
        for row, present in enumerate(truth.values()):
            axes.axhline(row, color=plots.RULE, linewidth=0.6, zorder=0)
            axes.broken_barh(
                [(a - 0.5, b - a) for a, b in _spans(present)], (row - 0.36, 0.72), color=plots.INK
            )
        axes.set_ylim(len(truth) - 0.4, -0.6)
        axes.set_yticks(range(len(truth)), [_short(name) for name in truth], fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    for axes, (name, (present, curves)) in zip(
        axes_of[-len(panels) :], panels.items(), strict=True
    ):
        for a, b in _spans(present):
            axes.axvspan(a - 0.5, b - 0.5, color=plots.RULE, alpha=0.45, linewidth=0)
        for values in curves.values():
            axes.plot(np.arange(count), values, marker="o" if count == 1 else "")
        axes.set_ylim(-0.04, 1.04)
        axes.set_yticks((0, 0.5, 1), ("0", "0.5", "1"), fontsize=8)
        axes.set_ylabel(_short(name), fontsize=8, rotation=0, ha="right", va="center")
        axes.grid(True, axis="y")
        axes.set_axisbelow(True)
    step = max(1, round(count / 10))
    ticks = np.arange(0, count, step)
    axes_of[-1].set_xticks(ticks, [str(tick + 1) for tick in ticks], fontsize=8)
    axes_of[-1].set_xlabel(f"slice, from bottom to top{place}", fontsize=8, loc="left")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _spans(present: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return where runs of True begin and end."""
    edges = np.flatnonzero(np.diff(present.astype(np.int8), prepend=0, append=0))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _describe(
    count: int, place: str, present: Mapping[str, npt.NDArray[np.bool_]], panels: _Panels
) -> str:
    """Say in words what a strip shows."""
    said = [f"Scan of {counted(count, 'slice')}{place}."]
    for name, there in present.items():
        spans = [f"{a + 1} to {b}" if b > a + 1 else f"{b}" for a, b in _spans(there)]
        said.append(f"{name} is present on {', '.join(spans)}.")
    said += [] if present else ["No label is present."]
    for label, (there, curves) in panels.items():
        for title, values in curves.items():
            means = [
                f"mean {values[mask].mean():.2f} where {word}"
                for mask, word in ((there, "present"), (~there, "absent"))
                if mask.any()
            ]
            said.append(
                f"{label}, {_named(title)}: highest {values.max():.2f} on slice"
                f" {values.argmax() + 1}, {', '.join(means)}."
            )
    return " ".join(said)
