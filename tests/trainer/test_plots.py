import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from matplotlib.figure import Figure

from trainer.evaluation.measured import Measured
from trainer.report.plots import (
    ROC,
    VARIABLES,
    Kind,
    draw_by_epoch,
    draw_in_unit_square,
    draw_svg,
    log_epoch,
    log_pictures,
    plot_curves,
    plot_history,
    plot_means,
    save_figure,
    svg_by_epoch,
    svg_in_unit_square,
)


def make_row(epoch: int, loss: float, **changes: Any) -> dict[str, Any]:
    figures = {"val_mean_roc_auc": 0.75, "val_roc_auc": {"a": 0.5, "b": 1.0}}
    return {"epoch": epoch, "loss": loss, "val_loss": loss * 2} | figures | changes


HISTORY = [
    make_row(1, 0.5),
    make_row(2, 0.25, val_mean_roc_auc=None, val_roc_auc={"a": None, "b": None}),
    make_row(3, 0.125, val_mean_roc_auc=0.5, val_roc_auc={"a": 0.5, "b": None}),
]


def test_losses_and_aucs_by_epoch() -> None:
    loss, auc = plot_history(HISTORY, ("a", "b")).axes
    lines = {
        line.get_label(): np.asarray(line.get_ydata(), float).tolist()
        for axes in (loss, auc)
        for line in axes.lines
    }
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert lines == {
        "training": [0.5, 0.25, 0.125],
        "validation": [1, 0.5, 0.25],
        "a": [0.5, nan, 0.5],
        "b": [1, nan, nan],
        "mean": [0.75, nan, 0.5],
    }
    for axes in (loss, auc):
        assert all(list(line.get_xdata()) == [1, 2, 3] for line in axes.lines)
        assert axes.get_xlabel() == "epoch"
        assert axes.get_legend() is not None
        assert axes.get_ylim()[0] == 0
        assert all(tick == int(tick) for tick in axes.get_xticks())
    assert (loss.get_title(), loss.get_ylabel()) == ("Weighted log loss", "nats")
    assert auc.get_title() == "ROC AUC, validation"
    # A perfect curve is not hidden by the frame.
    assert 1 < auc.get_ylim()[1] < 1.1


def test_a_picture_of_the_size_that_a_page_expects(tmp_path: Path) -> None:
    save_figure(plot_history(HISTORY, ("a", "b")), tmp_path / "history.png")
    pixels = tf.io.decode_png((tmp_path / "history.png").read_bytes())
    assert pixels.shape[:2] == (450, 1200)


@pytest.mark.parametrize("name", ["$x^$", "_x"])
def test_a_name_in_the_history_is_no_formula_and_not_left_out(name: str, tmp_path: Path) -> None:
    history = [row | {"val_roc_auc": {name: 0.5}} for row in HISTORY]
    figure = plot_history(history, (name,))
    save_figure(figure, tmp_path / "history.png")
    assert name in [text.get_text() for text in figure.axes[1].get_legend().get_texts()]


def test_more_names_than_can_be_read_are_left_out() -> None:
    names = [f"label {number}" for number in range(31)]
    history = [row | {"val_roc_auc": dict.fromkeys(names, 0.5)} for row in HISTORY]
    for number, shown in ((30, 31), (31, 1)):
        _, auc = plot_history(history, tuple(names[:number])).axes
        assert len(auc.lines) == number + 1
        assert len(auc.get_legend().get_texts()) == shown


@pytest.mark.parametrize("name", ["$x^$", "_x"])
@pytest.mark.parametrize("draw", [draw_by_epoch, draw_in_unit_square])
def test_a_name_is_no_formula_and_not_left_out(name: str, draw: Callable[..., None]) -> None:
    curves = {each: pd.Series([1.0], [1.0]) for each in (name, "b")}
    kind = "loss" if draw is draw_by_epoch else Kind("x", "y")
    assert f">{name}<" in draw_svg(draw, "salt", curves, kind)


def test_points_that_look_alike_are_left_out() -> None:
    curve = pd.Series([0, 0.5, 0.5, 0.5, 1, 1], [0, 0.5, 0.5001, 0.5002, 1, 1])
    axes = Figure().subplots()
    draw_in_unit_square(axes, {"a": curve}, Kind("x", "y"))
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [0, 0.5, 1, 1]


def logged_values(folder: Path) -> list[tuple[int, str, Any]]:
    """Step, name and tensor of the logged values."""
    (path,) = folder.glob("events.*")
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    logged = (tf.compat.v1.Event.FromString(record) for record in records)
    return [
        (event.step, value.tag, tf.make_ndarray(value.tensor))
        for event in logged
        for value in event.summary.value
    ]


def test_an_epoch_in_tensorboard(tmp_path: Path) -> None:
    log_epoch(tmp_path, HISTORY[2])
    assert [(step, name, float(value)) for step, name, value in logged_values(tmp_path)] == [
        (3, "loss", 0.125),
        (3, "val_loss", 0.25),
        (3, "val_mean_roc_auc", 0.5),
        (3, "val_roc_auc/a", 0.5),
    ]


def test_a_picture_in_tensorboard(tmp_path: Path) -> None:
    figure = Figure(figsize=(1, 0.5))
    figure.patch.set_facecolor((1, 0, 0, 0.5))
    log_pictures(tmp_path, {"curves": figure}, 7)
    ((step, name, (width, height, png)),) = logged_values(tmp_path)
    assert (step, name, width, height) == (7, "curves", b"80", b"40")
    assert tf.io.decode_png(png)[0, 0].numpy().tolist() == [255, 0, 0, 128]


def test_curves_and_confusion_of_labels() -> None:
    frame = pd.DataFrame(
        {
            "label_a": [0, 1, 1],
            "label_$b": [0, 0, 0],
            "probability_a": [0.25, 0.5, 1.0],
            "probability_$b": [0.0, 0.5, 0.25],
        }
    )
    measured = Measured(frame, ("a", "$b"), (2.0, 1.0))
    roc, precision, reliability = plot_curves(measured).axes
    names = [[line.get_label() for line in axes.lines] for axes in (roc, precision, reliability)]
    assert [name for name in names[0] if not name.startswith("_")] == ["a"]
    assert names[1] == ["a"]
    assert names[2][1:] == ["a", "$b"]
    assert measured.means.loc["a"].tolist() == [0.75, 0.375]
    assert measured.means.loc["$b"].isna().all()
    axes = plot_means(measured.means).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "$b"]


def test_a_unit_square_shows_its_whole_frame() -> None:
    axes = Figure().subplots()
    curves = {name: pd.Series([0.0, 1.0], [0.0, 1.0]) for name in "ab"}
    draw_in_unit_square(axes, curves, ROC, [(0.25, 0.75, "o")])
    chance, a, b, mark = axes.lines
    assert [line.get_xydata().tolist() for line in (chance, a, b)] == [[[0, 0], [1, 1]]] * 3
    assert mark.get_xydata().tolist() == [[0.25, 0.75]]
    for axis in (axes.xaxis, axes.yaxis):
        assert axis.get_ticklocs().tolist() == [0, 0.25, 0.5, 0.75, 1]
        assert [tick.get_text() for tick in axis.get_ticklabels()] == [
            "0",
            "0.25",
            "0.5",
            "0.75",
            "1",
        ]
        assert all(line.get_visible() for line in axis.get_gridlines())
    # Curves along the frame are not hidden by it.
    assert axes.get_xlim() == axes.get_ylim() == (-0.02, 1.02)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert axes.get_axisbelow() is True


@pytest.mark.parametrize(("epochs", "marker"), [(30, "o"), (31, "")])
def test_few_epochs_are_marked(epochs: int, marker: str) -> None:
    axes = Figure().subplots()
    curve = pd.Series(np.linspace(1, 2, epochs), range(1, epochs + 1))
    draw_by_epoch(axes, {"a": curve}, "nats", best=7, faint=[curve, curve])
    *faint, best, named = axes.lines
    assert [line.get_label() for line in axes.lines if line.get_label()[0] != "_"] == ["a"]
    assert len(faint) == 2
    assert list(best.get_xdata()) == [7, 7]
    assert named.get_marker() == marker
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_ylim()[0]) == ("epoch", "nats", 0)
    assert axes.get_legend() is None


def test_an_svg_has_the_pages_colors_and_one_size() -> None:
    curve = pd.Series([0.0, 1 / 3, 1.0], [0.0, 1 / 7, 1.0])
    curves = {str(number): curve for number in range(6)}
    for svg, height in (
        (svg_in_unit_square("a", curves, ROC), "201.6"),
        (svg_by_epoch("b", curves, "nats", best=1), "187.2"),
    ):
        root = ElementTree.fromstring(svg)
        # 3 inches of 72 points; the page sets the size.
        assert root.attrib["viewBox"] == f"0 0 216 {height}"
        assert not {"width", "height"} & root.attrib.keys()
        assert root.attrib["aria-hidden"] == "true"
        assert not re.search(r'"[^"]*\d\.\d{3}|<g id|<!--|font-family|#0[1-4]0', svg)
        for variable in VARIABLES.values():
            assert variable in svg
        dashes = set(re.findall(r"stroke-dasharray: [\d., ]+", svg))
        assert len(dashes) == 6  # five of the curves, and the dotted line


def test_figures_have_the_sizes_of_their_plots() -> None:
    means = pd.DataFrame([[0.25, 0.5], [1.0, 0.0]], ["a", "b"], ["a", "b"])
    figure = plot_means(means)
    assert figure.get_size_inches().tolist() == [6, 5]
    (image,) = figure.axes[0].images
    assert image.get_clim() == (0, 1)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
    for number, ticks in ((30, 30), (31, 9)):  # Matplotlib's own ticks are few
        axes = plot_means(pd.DataFrame(np.zeros((number, number)))).axes[0]
        assert len(axes.get_xticks()) == len(axes.get_yticks()) == ticks
