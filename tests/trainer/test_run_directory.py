import json
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import BadInput
from trainer.options import TrainOptions
from trainer.run_directory import (
    RunDirectory,
    begin_run,
    check_run,
    read_description,
    write_json,
    write_whole,
)
from trainer.shards import read_shard_directory


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
    with pytest.raises(BadInput) as raised:
        check_run(make_options(shards, tmp_path / "run", seed=5, epochs=2), data)
    assert "--epochs 10 there, 2 now; --seed 0 there, 5 now" in str(raised.value)


def test_a_folder_with_something_else_is_left_alone(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(BadInput, match="exists and is no run directory"):
        check_run(make_options(shards, tmp_path), read_shard_directory(shards))
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_no_run_and_a_damaged_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(BadInput, match=r"no run\.json"):
        read_description(run)
    run.description.write_text("{")
    with pytest.raises(BadInput, match="not JSON"):
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
