from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headct.errors import UsageError
from trainer.evaluation.measured import Measured, measure_frame, read_predictions


def make_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": ["i", "j", "k"],
            "patient_id": ["p", "q", "p"],
            "study_id": ["s", "t", "s"],
            "label_a": [0, 0, 1],
            "label_b": [0, 0, 0],
            "probability_a": [0.25, 0.5, 0.125],
            "probability_b": [0.5, 0.75, 0.25],
        }
    )


def test_a_study_is_positive_where_a_slice_is_and_has_the_highest_probabilities() -> None:
    frame = make_frame()
    studies = measure_frame(frame, ("a", "b"), (1, 2)).by_study(frame["study_id"].to_numpy())
    assert studies.labels.tolist() == [[1, 0], [0, 0]]
    assert studies.predicted.tolist() == [[0.25, 0.5], [0.5, 0.75]]
    assert studies.patients.tolist() == ["p", "q"]
    assert (studies.names, studies.weights) == (("a", "b"), (1, 2))


def test_labels_with_positives_and_negatives() -> None:
    labels = np.array([[0, 0, 1], [1, 0, 1]])
    measured = Measured(("a", "b", "c"), (1, 1, 1), labels, labels / 2, np.arange(2))
    assert measured.defined == [(0, "a")]


@pytest.mark.parametrize("content", [None, b"", b"PAR1"])
def test_predictions_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "predictions-fold0.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="no predictions of these labels"):
        read_predictions(path, ("a",))


def test_a_label_without_predictions(tmp_path: Path) -> None:
    path = tmp_path / "predictions-fold0.parquet"
    make_frame().to_parquet(path)
    assert len(read_predictions(path, ("a", "b"))) == 3
    with pytest.raises(UsageError, match="no predictions of these labels"):
        read_predictions(path, ("a", "c"))
