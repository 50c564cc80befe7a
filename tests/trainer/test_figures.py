import io

import numpy as np
import pytest

from trainer.evaluation.metrics import split_figures
from trainer.report.drawings import Line, draw_by_epoch, draw_in_unit_square
from trainer.report.figures import confusion, plot_confusion, plot_curves


def test_confusion_by_hand() -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0]])
    predicted = np.array([[0.8, 0.2, 0.1], [0.6, 0.4, 0.3]])
    expected = [[0.7, 0.3, 0.2], [0.6, 0.4, 0.3], [np.nan] * 3]
    np.testing.assert_allclose(confusion(labels, predicted), expected)


def test_curves_leave_out_what_is_not_defined() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    predicted = np.array([[0.8, 0.2], [0.6, 0.4], [0.7, 0.1]])
    names = ("a", "b")
    metrics = split_figures(labels, predicted, names, (1, 1))
    for each in metrics["labels"].values():
        each["reliability"] = [{"examples": 3, "predicted": 0.7, "observed": 2 / 3}]
    roc, recall, reliability = plot_curves(labels, predicted, names, metrics).axes
    assert [line.get_label() for line in recall.lines] == ["a"]
    assert len(roc.lines) == 2
    assert len(reliability.lines) == 3


@pytest.mark.parametrize("name", ["$x^$", "_x"])
def test_a_name_is_no_formula_and_not_left_out(name: str) -> None:
    labels, names = np.array([[1, 0], [0, 1]]), (name, "b")
    predicted = np.array([[0.8, 0.2], [0.6, 0.4]])
    metrics = split_figures(labels, predicted, names, (1, 1))
    for each in metrics["labels"].values():
        each["reliability"] = [{"examples": 2, "predicted": 0.7, "observed": 0.5}]
    curves = plot_curves(labels, predicted, names, metrics)
    for figure in (curves, plot_confusion(labels, predicted, names)):
        figure.savefig(io.BytesIO())
    for axes in curves.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == [*names]
    lines = [Line(each, [1], [1]) for each in names]
    assert f">{name}<" in draw_by_epoch(lines, "loss", "salt")
    assert f">{name}<" in draw_in_unit_square(lines, "x", "y", "salt")


def test_a_confusion_of_many_labels_has_no_numbers() -> None:
    labels, predicted = np.ones((2, 31), np.int64), np.ones((2, 31))
    for number, texts in ((30, 900), (31, 0)):
        names = tuple(f"label {each}" for each in range(number))
        axes = plot_confusion(labels[:, :number], predicted[:, :number], names).axes[0]
        assert len(axes.texts) == texts
