from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from matplotlib.figure import Figure

from trainer.evaluation.measured import Measured
from trainer.report.plots import (
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
