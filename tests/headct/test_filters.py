"""Filters and orders of slices, by cases worked out by hand, and predictions that fit or do not."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import headct
from headct.errors import UsageError
from headct.filters import Choice, Slices, read_predictions
from tests.headct.small_shards import IDS, LABELS, predictions, write_small_shards

ANY, OTHER = LABELS


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> headct.reader.Shards:
    return headct.open(write_small_shards(tmp_path_factory.mktemp("small") / "shards"))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        # Patients A, B and C; the series of A by position; the last without one.
        (Choice(), [2, 4, 1, 3, 0, 5]),
        (Choice(split="fold1"), [4, 3]),
        (Choice(split="test"), [5]),
        (Choice(label=ANY, finding="present"), [2, 4, 0]),
        (Choice(label=ANY, finding="absent"), [1, 3]),
        (Choice(finding="present"), [2, 4, 3, 0]),
        (Choice(finding="absent"), [1]),
        (Choice(split="fold0", label=OTHER, finding="absent"), [1, 0]),
        (Choice(id="A <i>"), [2, 4, 1, 3]),
        (Choice(id="A 1"), [2, 4, 1]),
        (Choice(id=IDS[3]), [3]),
        (Choice(id="nobody"), []),
        # any: 0.2 present, 0.9 absent, 0.7 present, 0.5 absent; 0.5 counts as predicted.
        (Choice(label=ANY, finding="false_negative"), [0]),
        (Choice(label=ANY, finding="false_negative", threshold=0.7), [0]),
        (Choice(label=ANY, finding="false_negative", threshold=0.8), [2, 0]),
        (Choice(label=ANY, finding="false_positive"), [1, 3]),
        (Choice(label=ANY, finding="false_positive", threshold=0.51), [1]),
        # The other: 0.6 absent, 0.1 absent, 0.4 present, 0.9 present.
        (Choice(finding="false_negative"), [2, 0]),
        (Choice(finding="false_positive"), [1, 3, 0]),
        # Losses of any: -ln of 0.2, 0.1, 0.7, 0.5; slices without a probability come last.
        (Choice(label=ANY, order="largest_loss"), [1, 0, 3, 2, 4, 5]),
        # Of the other: 0.4, 0.9, 0.4, 0.9; equal ones in the order of volumes.
        (Choice(label=OTHER, order="largest_loss"), [2, 0, 1, 3, 4, 5]),
        (Choice(order="largest_loss"), [1, 0, 2, 3, 4, 5]),
        (Choice(label=ANY, order="highest"), [1, 2, 3, 0, 4, 5]),
        (Choice(label=ANY, order="lowest"), [0, 3, 2, 1, 4, 5]),
        (Choice(order="highest", split="fold1"), [3, 4]),
    ],
)
def test_rows_of_a_choice(
    choice: Choice, expected: list[int], shards: headct.reader.Shards
) -> None:
    slices = Slices(shards, [predictions()])
    assert (len(slices), slices.predicted) == (6, 4)
    assert slices.rows(choice).tolist() == expected


def test_losses_are_log_losses(shards: headct.reader.Shards) -> None:
    losses = Slices(shards, [predictions()]).losses
    expected = -np.log([[0.2, 0.4], [0.1, 0.9], [0.7, 0.4], [0.5, 0.9]])
    np.testing.assert_allclose(losses[:4], expected)
    assert np.isnan(losses[4:]).all()
    sure = Slices(shards, [changed(**{f"probability_{ANY}": 0.0})]).losses
    np.testing.assert_allclose(sure[:2, 0], [15 * np.log(10), 0])


def test_a_series_is_ordered_from_bottom_to_top(shards: headct.reader.Shards) -> None:
    slices = Slices(shards)
    assert [slices.series(row).tolist() for row in (1, 3, 5)] == [[2, 4, 1], [3], [5]]
    assert slices.predicted == 0


def changed(**columns: object) -> pd.DataFrame:
    return predictions().assign(**columns)


def test_predictions_of_other_shards_are_refused(shards: headct.reader.Shards) -> None:
    others = [
        changed(image_id=list("abcd")),
        changed(patient_id="B <i>"),  # ordinal image ids are those of any shards
        changed(**{f"label_{ANY}": [1, 1, 1, 1]}),
    ]
    for other in others:
        with pytest.raises(UsageError, match="no predictions of slices of these shards"):
            Slices(shards, [other])
    assert Slices(shards, [*others, predictions()]).predicted == 4


def test_the_first_table_of_a_slice_counts(shards: headct.reader.Shards) -> None:
    first, second = predictions().iloc[:2], changed(**{f"probability_{ANY}": 0.25})
    slices = Slices(shards, [first, second])
    assert slices.probabilities[:4, 0].tolist() == [0.25, 0.25, 0.7, 0.5]


def test_labels_that_only_the_predictions_have(shards: headct.reader.Shards) -> None:
    table = predictions().rename(columns={f"probability_{ANY}": "probability_new"})
    slices = Slices(shards, [table])
    assert slices.names == [ANY, OTHER, "new"]
    assert slices.rows(Choice(label="new", order="highest")).tolist()[:2] == [1, 2]
    assert slices.rows(Choice(label="new", finding="absent")).tolist() == []


def test_predictions_of_a_run_a_cross_validation_or_a_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    changed(split="tta").to_parquet(run / "predictions-fold0-tta.parquet")
    predictions().to_parquet(run / "predictions-fold0.parquet")
    assert [table["split"].iloc[0] for table in read_predictions(run)] == ["fold1", "tta"]
    (table,) = read_predictions(run / "predictions-fold0-tta.parquet")
    assert table["split"].iloc[0] == "tta"
    changed(split="pool").to_parquet(run / "out_of_fold.parquet")
    assert [table["split"].iloc[0] for table in read_predictions(run)] == ["pool"]


def test_predictions_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.csv").write_text("a,b\n")
    pd.DataFrame({"image_id": ["x"]}).to_parquet(tmp_path / "bare.parquet")
    for name, value in {"texts": "0.5", "logits": -1.5}.items():
        table = pd.DataFrame({"image_id": ["x", "y"], "probability_any": [value, None]})
        table.to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "empty": "has no predictions-*.parquet; `headct evaluate` writes them",
        "text.csv": "cannot be read (no Parquet table)",
        "absent": "no such run or table",
        "bare.parquet": "want the columns image_id and probability_LABEL",
        "texts.parquet": "texts.parquet: probability_any: want probabilities, numbers from 0 to 1",
        "logits.parquet": "probability_any: want probabilities, numbers from 0 to 1",
    }.items():
        with pytest.raises(UsageError, match=re.escape(message)):
            read_predictions(tmp_path / name)
