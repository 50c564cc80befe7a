import copy
import io
from typing import Any

import pytest
from rich.console import Console

from trainer import display
from trainer.display import Display, explain_figures, explain_weights, show_figures


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only the test moves."""
    now = [1000.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_a_line_now_and_then_where_there_is_no_terminal(clock: list[float]) -> None:
    shown = io.StringIO()
    display = Display(Console(file=shown))
    display.begin("epoch 1 of 2", 100, done=40)
    asked = []
    for seconds, done in ((29, 41), (1, 45), (29, 46), (31, 70)):
        clock[0] += seconds
        display.update(done, lambda done=done: asked.append(done) or "loss 0.5")
    assert shown.getvalue().splitlines() == [
        "epoch 1 of 2: 45 of 100, 0:05:30 left, loss 0.5",
        "epoch 1 of 2: 70 of 100, 0:01:30 left, loss 0.5",
    ]
    assert asked == [45, 70]


def test_nothing_is_said_of_a_time_that_nothing_tells(clock: list[float]) -> None:
    shown = io.StringIO()
    display = Display(Console(file=shown))
    display.begin("predicting test", 10)
    clock[0] += 60
    display.update(0)
    assert shown.getvalue() == "predicting test: 0 of 10\n"


def test_a_live_line_on_a_terminal_goes_away() -> None:
    shown = io.StringIO()
    display = Display(Console(file=shown, force_terminal=True, width=120))
    display.begin("epoch 1 of 2", 10)
    display.update(5, lambda: "loss 0.25")
    display.live.refresh()
    assert "5/10" in shown.getvalue()
    assert "loss 0.25" in shown.getvalue()
    display.end()
    assert display.live is None


FIGURES: dict[str, Any] = {
    "split": "fold0",
    "patients": 12,
    "examples": 240,
    "weighted_log_loss": 0.144,
    "label_weights": {"intraparenchymal": 1.0, "any": 2.0},
    "prevalence_log_loss": 0.354,
    "mean_roc_auc": 0.919,
    "mean_average_precision": 0.61,
    "labels": {
        name: {"positives": 17, "log_loss": 0.15, "roc_auc": 0.92, "average_precision": 0.6}
        for name in ("intraparenchymal", "any")
    },
    "intervals_95": {
        "weighted_log_loss": [0.101, 0.187],
        "mean_roc_auc": [0.87, 0.96],
        "labels": {
            "intraparenchymal": {"roc_auc": [0.8125, 1.0]},
            "any": {"roc_auc": [0.9, 0.99]},
        },
    },
}


def without(label: str, positives: int) -> dict[str, Any]:
    """FIGURES where nothing can rank the slices of a label."""
    figures = copy.deepcopy(FIGURES)
    figures["labels"][label] |= {
        "positives": positives,
        "roc_auc": None,
        "average_precision": None,
    }
    figures["intervals_95"]["labels"][label] = {"roc_auc": None}
    return figures


def test_every_label_has_a_row_with_its_interval_within_80_columns() -> None:
    shown = io.StringIO()
    show_figures(Display(Console(file=shown, width=80)), FIGURES, "out/run: fold0")
    table, _, lines = shown.getvalue().partition("Log loss 0.144")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines()]
    assert ["intraparenchymal", "17", "0.1500", "0.9200", "0.812-1.000", "0.6000"] in rows
    assert ["weighted / mean", "of 240", "0.1440", "0.9190", "0.870-0.960", "0.6100"] in rows
    assert max(map(len, table.splitlines())) <= 80
    assert "gives 0.354: clearly better than guessing." in lines


def test_a_long_name_of_a_label_is_whole_within_80_columns() -> None:
    name = "[b]pleural_thickening_of_the_left_lung"
    shown = io.StringIO()
    figures = copy.deepcopy(FIGURES)
    figures["labels"] = {name: figures["labels"]["intraparenchymal"]}
    figures["intervals_95"]["labels"] = {name: {"roc_auc": [0.8, 0.9]}}
    show_figures(Display(Console(file=shown, width=80)), figures, "out/run: fold0")
    table = shown.getvalue().partition("Log loss 0.144")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert name in "".join(line.split("│")[1].strip() for line in table if "│" in line)


def test_the_figures_are_set_beside_guessing() -> None:
    assert explain_figures(FIGURES) == [
        "Log loss 0.144 (95 % interval 0.101-0.187), where answering every slice with the training"
        " prevalence gives 0.354: clearly better than guessing.",
        "Mean ROC AUC 0.919, where guessing gives 0.5 and perfect ranking 1.",
        "Weights in the log loss: any 2, others 1.",
    ]


@pytest.mark.parametrize("level", [None, "image", "series", "study", "patient"])
def test_labels_per_scan_are_said_once_beside_the_figures(level: str | None) -> None:
    lines = explain_figures(FIGURES | {"label_level": level})
    expected = [f"Labels are per {level}: a slice is judged by the labels of its {level}, and is"]
    assert [line[: len(expected[0])] for line in lines if "judged" in line] == (
        expected if level in ("series", "study", "patient") else []
    )


@pytest.mark.parametrize(
    ("loss", "ends", "words"),
    [
        (0.144, [0.101, 0.353], "clearly better than guessing."),
        (0.3, [0.2, 0.4], "better than guessing, but too few patients (12) to be sure."),
        (0.3, None, "better than guessing, but too few patients (12) to be sure."),
        (0.354, [0.2, 0.4], "no better than guessing."),
    ],
)
def test_a_verdict_is_no_bolder_than_its_interval(
    loss: float, ends: list[float] | None, words: str
) -> None:
    figures = copy.deepcopy(FIGURES) | {"weighted_log_loss": loss}
    figures["intervals_95"]["weighted_log_loss"] = ends
    assert explain_figures(figures)[0].endswith(f"gives 0.354: {words}")


@pytest.mark.parametrize(("positives", "missing"), [(0, "positives"), (240, "negatives")])
def test_a_label_without_a_figure_says_why(positives: int, missing: str) -> None:
    assert explain_figures(without("any", positives))[3:] == [
        f"any: no ROC AUC, since there are no {missing} in fold0."
    ]


def test_one_patient_has_no_intervals_and_that_is_said() -> None:
    figures = copy.deepcopy(FIGURES) | {"patients": 1}
    figures["intervals_95"]["weighted_log_loss"] = None
    assert explain_figures(figures)[0].startswith("Log loss 0.144, where")
    assert explain_figures(figures)[-1] == "There are no intervals, since fold0 holds one patient."


def test_weights_in_words() -> None:
    assert explain_weights({"a": 1, "b": 1}) == "all labels alike"
    assert explain_weights({"a": 1, "b": 2.5, "c": 1, "d": 3}) == "b 2.5, d 3, others 1"
