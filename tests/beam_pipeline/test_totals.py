"""Sums over an index, and the slices that a card shows."""

import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from beam_pipeline.card.totals import MOST_EXAMPLES, SAMPLED, Totals, add_up, choose
from beam_pipeline.shards.formats import index_table, write_index


def totals_of(rows: int, positives: list[int], repaired: int = 0) -> Totals:
    """So many rows, of which the first ones have each label."""
    ends = [np.arange(number) for number in positives]
    none = np.arange(max(positives, default=0), rows)
    nothing = np.zeros(0, np.int64)
    return Totals(
        rows=rows,
        labeled=rows if positives else 0,
        splits=pd.DataFrame(),
        slices_per_study=nothing,
        slice_distances=nothing.astype(float),
        matrices=[],
        transfer_syntaxes=[],
        co_occurrence=nothing.reshape(0, 0),
        patients_with=(),
        studies_with=(),
        positives=tuple(ends),
        negatives=none,
        repaired={"shift": np.arange(repaired)} if repaired else {},
    )


def test_the_same_slices_are_chosen_again() -> None:
    totals = totals_of(10_000, [50, 400, 3000], repaired=9)
    first = choose(totals, ["a", "b", "c"], seed=3)
    assert first == choose(totals, ["a", "b", "c"], seed=3)
    assert first != choose(totals, ["a", "b", "c"], seed=4)
    groups = first.examples
    assert list(groups) == ["a", "b", "c", "no label", "repair: shift"]
    assert [len(rows) for rows in groups.values()] == [2, 2, 2, 2, 1]
    assert all(row < 50 for row in groups["a"])
    assert all(row >= 3000 for row in groups["no label"])
    assert len(first.sample) == SAMPLED
    assert len(first.repaired) == 4


def test_no_slice_stands_for_two_labels_unless_it_must() -> None:
    groups = choose(totals_of(6, [2, 4, 6]), ["a", "b", "c"], seed=0).examples
    assert groups == {"a": [0, 1], "b": [2, 3], "c": [4, 5]}
    groups = choose(totals_of(2, [1, 1]), ["a", "b"], seed=0).examples
    assert groups == {"a": [0], "b": [0], "no label": [1]}


@pytest.mark.parametrize("labels", [1, 6, 14, 200])
def test_few_files_are_read_however_many_labels_there_are(labels: int) -> None:
    names = [f"label{number}" for number in range(labels)]
    choice = choose(totals_of(100_000, [5000] * labels, 1000), names, seed=0)
    assert len(choice.examples) == min(labels + 1, MOST_EXAMPLES) + 1
    assert sum(map(len, choice.examples.values())) <= MOST_EXAMPLES + 1
    assert len(choice.rows) <= 48


def test_unlabeled_slices_are_shown_too() -> None:
    choice = choose(totals_of(3, []), ["a"], seed=0)
    assert choice.examples == {"slices": [0, 1, 2]}
    assert choice.sample == [0, 1, 2]


def test_totals_of_rows_by_hand() -> None:
    row = {"image_id": "i", "shard": "s", "record": 0, "offset": 0, "bytes": 1, "rows": 8}
    row |= {"image_offset": 0, "image_bytes": 1, "row_spacing": 0.5, "column_spacing": 0.5}
    row |= {"columns": 9, "transfer_syntax": "1.2", "resized": False, "source": "a"}
    places = [("p0", "t0", "fold1", 0.0), ("p0", "t1", "fold1", 5.0), ("p1", "t2", "fold0", None)]
    places += [("p0", "t0", "fold1", 2.5), ("p0", "t0", "fold1", 10.0), ("p0", "t0", "fold1", 2.5)]
    marks = [(1, 0), (1, 1), (0, 0), (0, 1), (-1, -1), (0, 0)]
    rows: list[dict[str, Any]] = [
        row
        | {"patient_id": patient, "study_id": study, "series_id": study, "split": split}
        | {"position_z": position, "label_a": a, "label_b": b, "repair": "none"}
        for (patient, study, split, position), (a, b) in zip(places, marks, strict=True)
    ]
    rows[3]["repair"] = "shift"
    file = io.BytesIO()
    write_index(file, [index_table(rows, ["a", "b"])], ["a", "b"])
    totals = add_up(pq.ParquetFile(file), ["a", "b"])
    assert totals.splits.to_dict("index") == {
        "fold0": {"patients": 1, "studies": 1, "series": 1, "slices": 1},
        "fold1": {"patients": 1, "studies": 2, "series": 2, "slices": 5},
    }
    assert totals.co_occurrence.tolist() == [[2, 1], [1, 2]]
    assert [places.tolist() for places in totals.positives] == [[0, 1], [1, 3]]
    assert totals.negatives.tolist() == [2, 5]
    assert (totals.patients_with, totals.studies_with) == ((1, 1), (2, 2))
    assert (totals.rows, totals.labeled) == (6, 5)
    assert sorted(totals.slices_per_study) == [1, 1, 4]
    assert totals.slice_distances.tolist() == [5.0]  # of 2.5 and 7.5 mm
    assert totals.matrices == [("8 x 9", 6)]
    assert totals.transfer_syntaxes == [("1.2", 6)]
    assert {name: places.tolist() for name, places in totals.repaired.items()} == {"shift": [3]}
