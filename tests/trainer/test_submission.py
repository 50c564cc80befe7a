"""Submissions: rows of what was predicted, and rows that a sample asks for."""

from pathlib import Path

import numpy as np
import pytest

from headct.errors import UsageError
from trainer.evaluation.submission import build_submission, fit_to_sample, read_sample, readings

LABELS = ("subdural", "any")
IMAGES, PREDICTED = ["ID_a", "ID_b_1"], np.array([[0.25, 0.5], [0.75, 1.0]])
PREVALENCE = {"subdural": 0.0625, "any": 0.125}
ODD = ("midline_shift", "shift", "mass effect", "cost $5 $", 'a, "b"')


def sample(folder: Path, text: str) -> Path:
    path = folder / "sample.csv"
    path.write_text(text)
    return path


def test_labels_of_an_image_stand_together() -> None:
    found = build_submission(IMAGES, PREDICTED, LABELS)
    assert found.rows.to_csv(index=False, float_format="%.9g").splitlines() == [
        "ID,Label",
        "ID_a_subdural,0.25",
        "ID_a_any,0.5",
        "ID_b_1_subdural,0.75",
        "ID_b_1_any,1",
    ]
    assert not found.unclear


def test_a_sample_gives_the_rows_and_their_order(tmp_path: Path) -> None:
    wanted = ["ID_c_any", "ID_a_any", "ID_c_subdural", "ID_a_subdural", "ID_a_any"]
    path = sample(tmp_path, "ID,Label\n" + "".join(f"{each},0.5\n" for each in wanted))
    found = fit_to_sample(IMAGES, PREDICTED, read_sample(path, LABELS), PREVALENCE)
    assert found.rows["ID"].tolist() == wanted
    assert found.rows["Label"].tolist() == [0.125, 0.5, 0.0625, 0.25, 0.5]
    assert (found.filled, found.left_out, found.unclear) == (1, 1, 0)  # ID_c; ID_b_1


def test_any_labels_survive_a_sample(tmp_path: Path) -> None:
    values = np.arange(10).reshape(2, 5) / 16
    own = build_submission(["1e5", "NA"], values, ODD)
    path = tmp_path / "sample.csv"
    own.rows.to_csv(path, index=False)
    ids = read_sample(path, ODD)
    prevalence = dict.fromkeys(ODD, 1.0)
    found = fit_to_sample(["1e5", "NA"], values, ids, prevalence)
    assert found.rows.equals(own.rows)
    assert (found.filled, found.left_out, found.unclear) == (0, 0, 0)
    one = build_submission(["007"], values[:1, :1], ("x_y",))
    assert one.rows["ID"].tolist() == ["007_x_y"]
    assert fit_to_sample(["007"], values[:1, :1], ["007_x_y"], {"x_y": 1.0}).rows.equals(one.rows)


@pytest.mark.parametrize(
    ("images", "values", "unclear"),
    [
        (["a"], [0.1, 0.2], 0),
        (["a_midline"], [0.2, 0.02], 1),  # one slice is asked for whole, the other is predicted
        ([], [0.01, 0.02], 0),  # nothing is predicted: `a` is asked for with both labels
    ],
)
def test_a_label_may_end_as_another_does(
    images: list[str], values: list[float], unclear: int
) -> None:
    prevalence = {"midline_shift": 0.01, "shift": 0.02}
    predicted = np.array([[0.1, 0.2]])[: len(images)]
    asked = ["a_midline_shift", "a_shift"]
    assert readings(asked[0], prevalence) == [("a", "midline_shift"), ("a_midline", "shift")]
    found = fit_to_sample(images, predicted, asked, prevalence)
    assert found.rows["Label"].tolist() == values
    assert found.unclear == unclear


def test_what_no_name_tells_apart_is_counted() -> None:
    labels = ("midline_shift", "shift")
    images, values = ["a", "a_midline"], np.array([[0.1, 0.2], [0.3, 0.4]])
    assert build_submission(images, values, labels).unclear == 2
    prevalence = dict.fromkeys(labels, 0.5)
    found = fit_to_sample(
        images, values, ["a_midline_shift", "a_midline_midline_shift"], prevalence
    )
    assert found.rows["Label"].tolist() == [0.1, 0.3]
    assert found.unclear == 1
    # Neither is predicted, and neither is asked for with all labels.
    found = fit_to_sample([], values[:0], ["a_midline_shift"], prevalence)
    assert found.unclear == 1


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
