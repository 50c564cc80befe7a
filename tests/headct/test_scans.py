"""What a scan is: the slices of a series along z, whatever the order of the rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import headct
from headct.errors import UsageError
from headct.scans import find_scans
from tests.headct.small_shards import write_small_shards

NAN = float("nan")
# name: positions of the images a, b, c, ... as they come; then the ids in order, and the gaps.
ONE_SERIES: dict[str, tuple[list[float], str, list[float]]] = {
    "in order": ([0, 5, 10], "abc", [NAN, 5, 5]),
    "reversed": ([10, 5, 0], "cba", [NAN, 5, 5]),
    "shuffled, below and above 0": ([2.5, -5, 0], "bca", [NAN, 5, 2.5]),
    "one slice": ([7], "a", [NAN]),
    "one slice without position": ([NAN], "a", [NAN]),
    "a rejected slice in the middle": ([0, 5, 15, 20], "abcd", [NAN, 5, 10, 5]),
    "two reconstructions": ([5, 0, 0, 5], "bcad", [NAN, 0, 5, 0]),
    "a slice without position": ([NAN, 5, 0], "cba", [NAN, 5, NAN]),
    "an infinite position": ([np.inf, 5, 0], "cba", [NAN, 5, NAN]),
    "no positions": ([NAN, NAN, NAN], "abc", [NAN, NAN, NAN]),
    "two slices at one z": ([3, 3], "ab", [NAN, NAN]),
    "coronal: one z": ([3, 3, 3], "abc", [NAN, NAN, NAN]),
}


def table(positions: list[float], **columns: Any) -> pd.DataFrame:
    ids = [chr(ord("a") + i) for i in range(len(positions))]
    return pd.DataFrame({"image_id": ids, "position_z": positions, "series_id": "s", **columns})


@pytest.mark.parametrize("name", ONE_SERIES)
def test_a_series_is_ordered_by_position_with_gaps_in_mm(name: str) -> None:
    positions, order, gaps = ONE_SERIES[name]
    rows = table(positions)
    for shown in (rows, rows[::-1], rows.sample(frac=1, random_state=1)):
        scans = find_scans(shown, "here")
        assert len(scans) == 1
        assert "".join(shown["image_id"].iloc[scans.order]) == order
        np.testing.assert_array_equal(scans.gaps, gaps)


def test_series_are_apart() -> None:
    # The same series id in two patients, and slices of unknown series: each a scan.
    rows = table(
        [0, 0, 5, 5, 1, 2],
        patient_id=["p", "q", "p", "q", "p", "p"],
        series_id=["s", "s", "s", "s", "", None],
    )
    scans = find_scans(rows, "here")
    assert [rows["image_id"].iloc[scan].tolist() for scan in scans] == [
        ["e"],
        ["f"],
        ["a", "c"],
        ["b", "d"],
    ]
    np.testing.assert_array_equal(scans.starts, [0, 1, 2, 4, 6])
    np.testing.assert_array_equal(scans.scan, [0, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(scans.gaps, [NAN, NAN, NAN, 5, NAN, 5])
    np.testing.assert_array_equal(scans.z, [1, 2, 0, 5, 0, 5])  # also of single slices
    assert [*find_scans(rows[:0], "here")] == []


def test_1500_slices_of_one_series() -> None:
    z = np.arange(1500) * 0.3
    scans = find_scans(pd.DataFrame({"image_id": "x", "series_id": "s", "position_z": z[::-1]}), "")
    np.testing.assert_array_equal(scans.order, np.arange(1500)[::-1])
    assert scans.gaps[1:] == pytest.approx(0.3)


@pytest.mark.parametrize("name", ["image_id", "series_id", "position_z"])
def test_tables_of_before_lack_a_column(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^old/index\.parquet: has no {name}, so which slices "):
        find_scans(table([0, 1]).drop(columns=name), "old/index.parquet")


def test_a_series_in_two_splits_is_refused_without_its_id(tmp_path: Path) -> None:
    shards = headct.open(str(write_small_shards(tmp_path / "shards")))
    with pytest.raises(UsageError, match="1 series have slices in several") as told:
        shards.scans()  # series "A 1" is in fold0 and fold1
    assert "A 1" not in str(told.value)
    fold = shards.split("fold0")
    ids = fold.rows["image_id"].to_numpy()
    # From bottom to top: the second slice of the series, then the first.
    assert [ids[scan].tolist() for scan in fold.scans()] == [[*ids[[2, 1]]], [ids[0]]]
