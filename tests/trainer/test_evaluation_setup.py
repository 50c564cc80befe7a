"""temperatures.json of a run."""

from pathlib import Path

import numpy as np
import pytest

from headct.errors import UsageError
from trainer.runs.evaluation_setup import (
    Calibration,
    choose_calibration,
    read_calibration,
    write_calibration,
)
from trainer.runs.run_directory import RunDirectory


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    run, labels = RunDirectory(tmp_path), ("any", "lower")
    kept = Calibration((0.5, 2.0), (-1.0, 0.25), "fold0", "d" * 64)
    write_calibration(run, labels, kept)
    assert read_calibration(run, labels) == kept
    assert choose_calibration(run, labels, wanted=True) == kept
    assert choose_calibration(run, labels, wanted=False) == Calibration.none(2)


def test_files_of_earlier_versions_have_temperatures_alone(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.temperatures.write_text('{"lower": 2, "any": 0.5, "more": 3}')
    assert read_calibration(run, ("any", "lower")) == Calibration((0.5, 2.0), (0.0, 0.0))


def test_by_hand() -> None:
    calibration = Calibration((2.0, 1.0), (0.5, 0.0))
    assert calibration.apply(np.array([[2.0, 3.0]])).tolist() == [[1.5, 3.0]]
    assert calibration.changes
    assert Calibration((1.0,), (0.5,)).changes
    assert not Calibration.none(2).changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"any": 2}', "lower: is missing"),
        ('{"any": 0, "lower": 1}', "any: 0: must be a number from 0.001 to 1000"),
        ('{"any": "2", "lower": 1}', 'any: "2": must be a number from'),
        ('{"any": NaN, "lower": 1}', "NaN: must be a finite number"),
        ('{"any": {"temperature": 2}, "lower": 1}', "any.bias: is missing"),
        (
            '{"any": {"temperature": 0, "bias": 0}, "lower": 1}',
            "any.temperature: 0: must be a number from 0.001 to 1000",
        ),
        (
            '{"any": {"temperature": 1, "bias": 1001}, "lower": 1}',
            "any.bias: 1001: must be a number from -1000 to 1000",
        ),
        ("[1, 2]", "all of it: a list of 2: must be an object with a temperature per label"),
    ],
)
def test_files_of_no_use(tmp_path: Path, content: str, message: str) -> None:
    run = RunDirectory(tmp_path)
    run.temperatures.write_text(content)
    with pytest.raises(UsageError) as raised:
        read_calibration(run, ("any", "lower"))
    assert str(raised.value).startswith(f"{run.temperatures}: {message}")
