"""Submissions: rows of what was predicted, and rows that a sample asks for."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headct.errors import UsageError
from trainer.evaluation.predict import build_submission, read_sample

LABELS = ("subdural", "any")
IMAGES, PREDICTED = ["ID_a", "ID_b_1"], np.array([[0.25, 0.5], [0.75, 1.0]])
PREVALENCE = {"subdural": 0.0625, "any": 0.125}
ODD = ("midline_shift", "shift", "mass effect", "cost $5 $", 'a, "b"')


def sample(folder: Path, text: str) -> Path:
    path = folder / "sample.csv"
    path.write_text(text)
    return path


def fit(
    folder: Path, asked: list[str], images: list[str], predicted: Any, prevalence: dict[str, float]
) -> tuple[list[float], list[str]]:
    """Values of the rows that are asked for, and notes."""
    path = sample(folder, "ID,Label\n" + "".join(f"{each},0.5\n" for each in asked))
    rows, notes = build_submission(images, predicted, prevalence, read_sample(path, [*prevalence]))
    assert rows["ID"].tolist() == asked
    return rows["Label"].tolist(), notes


def test_labels_of_an_image_stand_together() -> None:
    rows, notes = build_submission(IMAGES, PREDICTED, PREVALENCE)
    assert rows.to_csv(index=False, float_format="%.9g").splitlines() == [
        "ID,Label",
        "ID_a_subdural,0.25",
        "ID_a_any,0.5",
        "ID_b_1_subdural,0.75",
        "ID_b_1_any,1",
    ]
    assert notes == []


def test_a_sample_gives_the_rows_and_their_order(tmp_path: Path) -> None:
    asked = ["ID_c_any", "ID_a_any", "ID_c_subdural", "ID_a_subdural", "ID_a_any"]
    values, (filled, left_out) = fit(tmp_path, asked, IMAGES, PREDICTED, PREVALENCE)
    assert values == [0.125, 0.5, 0.0625, 0.25, 0.5]
    assert filled.startswith("1 slices of the sample are not in the shards")  # ID_c
    assert left_out.startswith("1 slices of the shards are not in the sample")  # ID_b_1


def test_any_labels_survive_a_sample(tmp_path: Path) -> None:
    for images, labels in ((["1e5", "NA"], ODD), (["007"], ("x_y",))):
        predicted = np.arange(len(images) * len(labels)).reshape(len(images), -1) / 16
        prevalence = dict.fromkeys(labels, 1.0)
        own, _ = build_submission(images, predicted, prevalence)
        path = tmp_path / "sample.csv"
        own.to_csv(path, index=False)
        again, notes = build_submission(images, predicted, prevalence, read_sample(path, labels))
        pd.testing.assert_frame_equal(again, own)
        assert notes == []


@pytest.mark.parametrize(
    ("images", "values"),
    [
        (["a"], [0.1, 0.2]),
        (["a_midline"], [0.2, 0.02]),
        ([], [0.01, 0.02]),
    ],
)
def test_a_label_may_end_as_another_does(
    images: list[str], values: list[float], tmp_path: Path
) -> None:
    prevalence = {"midline_shift": 0.01, "shift": 0.02}
    predicted = np.array([[0.1, 0.2]])[: len(images)]
    found, notes = fit(tmp_path, ["a_midline_shift", "a_shift"], images, predicted, prevalence)
    assert found == values
    assert "fit two slices" not in " ".join(notes)


def test_what_no_name_tells_apart_is_counted(tmp_path: Path) -> None:
    prevalence = {"shift": 0.5, "midline_shift": 0.5}
    images, predicted = ["a_midline", "a"], np.array([[0.4, 0.3], [0.2, 0.1]])
    _, (note,) = build_submission(images, predicted, prevalence)
    assert note.startswith("2 rows have an ID that fits two slices")
    asked = ["a_midline_shift", "a_midline_midline_shift"]
    values, (note,) = fit(tmp_path, asked, images, predicted, prevalence)
    assert values == [0.1, 0.3]
    assert note.startswith("1 rows have an ID that fits two slices")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "cannot be read"),
        ("", "cannot be read"),
        ("ID,Label\nID_a_any,0\nID_a_epidural,0\n", "'ID_a_epidural' is not <image id>_<label>"),
        ("ID,Label\n,0\n", "'' is not <image id>_<label>; the labels are subdural, any"),
    ],
)
def test_another_file_is_no_sample(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_sample(sample(tmp_path, text), LABELS)
    with pytest.raises(UsageError, match="No such file"):
        read_sample(tmp_path / "absent.csv", LABELS)
