import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer.evaluation.measured import Measured
from trainer.report.plots import (
    Line,
    confusion,
    draw_by_epoch,
    draw_in_unit_square,
    draw_svg,
    plot_confusion,
    plot_curves,
    plot_history,
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


def make_measured(names: tuple[str, ...], labels: np.ndarray, predicted: np.ndarray) -> Measured:
    return Measured(names, (1.0,) * len(names), labels, predicted, np.arange(len(labels)))


def test_confusion_by_hand() -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0]])
    predicted = np.array([[0.8, 0.2, 0.1], [0.6, 0.4, 0.3]])
    expected = [[0.7, 0.3, 0.2], [0.6, 0.4, 0.3], [np.nan] * 3]
    np.testing.assert_allclose(confusion(labels, predicted), expected)


def test_curves_leave_out_what_is_not_defined() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    predicted = np.array([[0.8, 0.2], [0.6, 0.4], [0.7, 0.1]])
    measured = make_measured(("a", "b"), labels, predicted)
    curve = {"reliability": [{"examples": 3, "predicted": 0.7, "observed": 2 / 3}]}
    roc, recall, reliability = plot_curves(measured, {"a": curve, "b": curve}).axes
    assert [line.get_label() for line in recall.lines] == ["a"]
    assert len(roc.lines) == 2
    assert len(reliability.lines) == 3


@pytest.mark.parametrize("name", ["$x^$", "_x"])
def test_a_name_is_no_formula_and_not_left_out(name: str) -> None:
    labels, names = np.array([[1, 0], [0, 1]]), (name, "b")
    predicted = np.array([[0.8, 0.2], [0.6, 0.4]])
    measured = make_measured(names, labels, predicted)
    curve = {"reliability": [{"examples": 2, "predicted": 0.7, "observed": 0.5}]}
    curves = plot_curves(measured, dict.fromkeys(names, curve))
    for figure in (curves, plot_confusion(measured)):
        figure.savefig(io.BytesIO())
    for axes in curves.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == [*names]
    lines = [Line(each, [1], [1]) for each in names]
    assert f">{name}<" in draw_svg("salt", draw_by_epoch, lines, "loss")
    assert f">{name}<" in draw_svg("salt", draw_in_unit_square, lines, ("x", "y"))


def test_a_confusion_of_many_labels_has_no_numbers() -> None:
    labels, predicted = np.ones((2, 31), np.int64), np.ones((2, 31))
    for number, texts in ((30, 900), (31, 0)):
        names = tuple(f"label {each}" for each in range(number))
        measured = make_measured(names, labels[:, :number], predicted[:, :number])
        axes = plot_confusion(measured).axes[0]
        assert len(axes.texts) == texts
