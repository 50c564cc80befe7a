"""Submissions: rows of what was predicted, and rows that a sample asks for."""

from pathlib import Path

import numpy as np
import pytest

from trainer.errors import BadInput
from trainer.evaluation.submission import build_submission, fit_to_sample, read_sample

LABELS = ("subdural", "any")
PREDICTED = build_submission(["ID_a", "ID_b_1"], np.array([[0.25, 0.5], [0.75, 1.0]]), LABELS)
PREVALENCE = {"subdural": 0.0625, "any": 0.125}


def sample(folder: Path, text: str) -> Path:
    path = folder / "sample.csv"
    path.write_text(text)
    return path


def test_labels_of_an_image_stand_together() -> None:
    assert PREDICTED.rows.to_csv(index=False, float_format="%.9g").splitlines() == [
        "ID,Label",
        "ID_a_subdural,0.25",
        "ID_a_any,0.5",
        "ID_b_1_subdural,0.75",
        "ID_b_1_any,1",
    ]


def test_a_sample_gives_the_rows_and_their_order(tmp_path: Path) -> None:
    wanted = ["ID_c_any", "ID_a_any", "ID_c_subdural", "ID_a_subdural", "ID_a_any"]
    path = sample(tmp_path, "ID,Label\n" + "".join(f"{each},0.5\n" for each in wanted))
    found = fit_to_sample(PREDICTED, read_sample(path, LABELS), PREVALENCE)
    assert found.rows["ID"].tolist() == wanted
    assert found.rows["Label"].tolist() == [0.125, 0.5, 0.0625, 0.25, 0.5]
    assert (found.filled, found.left_out) == (1, 1)  # ID_c; ID_b_1


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
    with pytest.raises(BadInput, match=message):
        read_sample(sample(tmp_path, text), LABELS)
    with pytest.raises(BadInput, match="No such file"):
        read_sample(tmp_path / "absent.csv", LABELS)
