import json
from pathlib import Path
from typing import Any

import pytest

from headct.errors import UsageError
from trainer.data.shards import read_shard_directory
from trainer.files import write_json, write_whole
from trainer.options import TrainOptions
from trainer.runs.run_directory import (
    RunDirectory,
    begin_run,
    check_run,
    read_description,
)


def make_options(shards: Path, run: Path, **changes: Any) -> TrainOptions:
    return TrainOptions(shards=shards, run=run, **changes)


def test_a_run_is_found_again(shards: Path, tmp_path: Path) -> None:
    data = read_shard_directory(shards)
    options = make_options(shards, tmp_path / "run")
    begin_run(check_run(options, data), options, data)
    description = read_description(check_run(options, data))
    assert description["options"]["seed"] == 0
    assert description["shards"]["labels"] == ["upper", "lower", "any"]
    assert description["versions"]["keras"]
    assert "jax" not in description["versions"]


def test_checking_writes_nothing(shards: Path, tmp_path: Path) -> None:
    check_run(make_options(shards, tmp_path / "run"), read_shard_directory(shards))
    assert not (tmp_path / "run").exists()


def test_other_options_are_named(shards: Path, tmp_path: Path) -> None:
    data = read_shard_directory(shards)
    options = make_options(shards, tmp_path / "run")
    begin_run(check_run(options, data), options, data)
    with pytest.raises(UsageError) as raised:
        check_run(make_options(shards, tmp_path / "run", seed=5, epochs=2), data)
    assert "--epochs 10 there, 2 now; --seed 0 there, 5 now" in str(raised.value)


def test_a_folder_with_something_else_is_left_alone(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(UsageError, match="exists and is no run directory"):
        check_run(make_options(shards, tmp_path), read_shard_directory(shards))
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_no_run_and_a_damaged_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(UsageError, match=r"no run\.json"):
        read_description(run)
    run.description.write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        read_description(run)


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


def described(shards: Path, run: Path) -> dict[str, Any]:
    """Begins a run; the content of its run.json."""
    data, options = read_shard_directory(shards), make_options(shards, run)
    begin_run(check_run(options, data), options, data)
    return read_description(RunDirectory(run))


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
    description = described(shards, tmp_path / "run")
    description[part][name] = value
    run = RunDirectory(tmp_path / "run")
    run.description.write_text(json.dumps(description))
    with pytest.raises(UsageError) as raised:
        read_description(run)
    assert str(raised.value).startswith(f"{run.description}: {message}")
    assert "\n" not in str(raised.value)


def test_an_option_that_differs_is_shown_in_one_line(shards: Path, tmp_path: Path) -> None:
    description = described(shards, tmp_path / "run")
    description["options"]["model"] = "a\nb" * 100
    write_json(tmp_path / "run" / "run.json", description)
    with pytest.raises(UsageError) as raised:
        check_run(make_options(shards, tmp_path / "run"), read_shard_directory(shards))
    assert '--model "a\\nba\\nb' in str(raised.value)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_a_url_is_kept_as_it_is(shards: Path, tmp_path: Path) -> None:
    far = read_shard_directory(shards, "s3://bucket/ich")
    options = make_options(shards, tmp_path / "run")
    begin_run(check_run(options, far), options, far)
    description = read_description(RunDirectory(tmp_path / "run"))
    assert description["shards"]["path"] == "s3://bucket/ich"
