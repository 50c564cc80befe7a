"""Run directories: run.json, the lock, and temperatures.json."""

import errno
import fcntl
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headct.errors import UsageError
from trainer.command_line import parse_arguments
from trainer.data.shards import read_shard_directory
from trainer.files import write_json, write_whole
from trainer.options import TrainOptions, run_identity
from trainer.runs.run import (
    Calibration,
    Run,
    RunRecord,
    choose_calibration,
    held,
    write_calibration,
)


def make_options(shards: Path, run: Path, **changes: Any) -> TrainOptions:
    return TrainOptions(shards=shards, run=run, **changes)


def begin(shards: Path, folder: Path) -> Run:
    """Begin a run; return its directory."""
    run, data = Run(folder), read_shard_directory(shards)
    with run.begun(make_options(shards, folder), data):
        return run


def check(shards: Path, folder: Path, **changes: Any) -> None:
    Run(folder).check(make_options(shards, folder, **changes), read_shard_directory(shards))


def test_a_run_is_found_again(shards: Path, tmp_path: Path) -> None:
    record: RunRecord = begin(shards, tmp_path / "run").record
    check(shards, tmp_path / "run")
    assert record.options.get("seed") == 0
    assert record.shards.labels == ["upper", "lower", "any"]
    assert record.versions["keras"]
    assert "jax" not in record.versions


def test_the_toml_file_of_a_run_has_its_options(shards: Path, tmp_path: Path) -> None:
    options = make_options(shards, tmp_path / "r", learning_rate=1e-5, windows="x:1:2", ema=0.5)
    with Run(options.run).begun(options, read_shard_directory(shards)):
        pass
    flags = ["train", "--config", str(tmp_path / "r" / "train.toml"), "--run", str(tmp_path / "s")]
    again = parse_arguments(flags)
    assert isinstance(again, TrainOptions)
    assert run_identity(again) == run_identity(options)
    assert Path(again.shards) == shards


def test_checking_writes_nothing(shards: Path, tmp_path: Path) -> None:
    check(shards, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_options_are_named(shards: Path, tmp_path: Path) -> None:
    begin(shards, tmp_path / "run")
    with pytest.raises(UsageError) as raised:
        check(shards, tmp_path / "run", seed=5, epochs=2)
    assert "--epochs 10 there, 2 now; --seed 0 there, 5 now" in str(raised.value)


def test_a_folder_with_something_else_is_left_alone(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(UsageError, match="exists and is no run directory"):
        check(shards, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, r"no run\.json"), ("{", "not JSON"), ("{}", "options: is missing")],
)
def test_no_run_and_a_damaged_run(tmp_path: Path, content: str | None, message: str) -> None:
    run = Run(tmp_path)
    if content is not None:
        run.description.write_text(content)
    with pytest.raises(UsageError, match=message):
        _ = run.record


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def interrupted(unfinished: Path) -> None:
        unfinished.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupted)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("options", "fold", "0/../..", 'options.fold: "0/../..": must be a whole number, 0 or'),
        ("options", "fold", True, "options.fold: true: must be a whole number"),
        ("options", "label_weights", 2, "options.label_weights: 2: must be text, name=weight"),
        ("options", "seed", [[]], "options.seed: a list of 1: must be text, a number, true"),
        ("shards", "path", 3, "shards.path: 3: must be the path or URL"),
        ("shards", "path", "a\x00", 'shards.path: "a\\u0000": must be the path or URL'),
        ("shards", "prevalence", [0.5], "shards.prevalence: must be a number per label"),
        ("shards", "prevalence", [0.5, 2, 0.1], "shards.prevalence[1]: 2: must be a number from 0"),
        ("shards", "labels", {}, "shards.labels: {}: must be a list of 1 to 1000 different labels"),
        ("versions", "keras", None, "versions.keras: null: must be text"),
    ],
)
def test_a_wrong_value_is_named(
    shards: Path, tmp_path: Path, part: str, name: str, value: Any, message: str
) -> None:
    run = begin(shards, tmp_path / "run")
    description = json.loads(run.description.read_text())
    description[part][name] = value
    run.description.write_text(json.dumps(description))
    with pytest.raises(UsageError) as raised:
        _ = run.record
    assert str(raised.value).startswith(f"{run.description}: {message}")
    assert "\n" not in str(raised.value)


def test_an_option_that_differs_is_shown_in_one_line(shards: Path, tmp_path: Path) -> None:
    run = begin(shards, tmp_path / "run")
    description = json.loads(run.description.read_text())
    description["options"]["model"] = "a\nb" * 100
    write_json(run.description, description)
    with pytest.raises(UsageError) as raised:
        check(shards, tmp_path / "run")
    assert '--model "a\\nba\\nb' in str(raised.value)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_a_url_is_kept_as_it_is(shards: Path, tmp_path: Path) -> None:
    far = read_shard_directory(shards, "s3://bucket/ich")
    run = Run(tmp_path / "run")
    with run.begun(make_options(shards, run.path), far):
        assert run.record.shards.path == "s3://bucket/ich"


def test_a_second_holder_is_told_of_the_first(tmp_path: Path) -> None:
    second = held(tmp_path / "run")
    with held(tmp_path / "run"), pytest.raises(UsageError, match="in use by process"):
        second.__enter__()
    with held(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with held(tmp_path / "run"), held(tmp_path / "run"):
        pass


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    run, labels = Run(tmp_path), ("any", "lower")
    kept = Calibration((0.5, 2.0), (-1.0, 0.25), "fold0", "d" * 64)
    write_calibration(run, labels, kept)
    assert choose_calibration(run, labels, wanted=True) == kept
    assert choose_calibration(run, labels, wanted=False) == Calibration.none(2)


def test_temperatures_of_earlier_versions_have_temperatures_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.temperatures.write_text('{"lower": 2, "any": 0.5, "more": 3}')
    kept = choose_calibration(run, ("any", "lower"), wanted=True)
    assert kept == Calibration((0.5, 2.0), (0.0, 0.0))


def test_a_calibration_by_hand() -> None:
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
        ('{"any": NaN, "lower": 1}', 'not JSON ("NaN": must be a finite number)'),
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
def test_temperatures_of_no_use(tmp_path: Path, content: str, message: str) -> None:
    run = Run(tmp_path)
    run.temperatures.write_text(content)
    with pytest.raises(UsageError) as raised:
        choose_calibration(run, ("any", "lower"), wanted=True)
    assert str(raised.value).startswith(f"{run.temperatures}: {message}")
