import dataclasses
from pathlib import Path
from typing import Any

import pytest

from beam_pipeline.errors import UsageError
from beam_pipeline.hounsfield import RepairPolicy
from beam_pipeline.options import KEY_VARIABLE, Identifiers, Options, parse_options
from beam_pipeline.windows import Window

PATHS = ["--input", "in", "--output", "out"]


def test_defaults_are_those_of_the_field() -> None:
    options, runner, rest = parse_options(PATHS)
    assert [(w.name, w.center, w.width) for w in options.windows] == [
        ("brain", 40, 80),
        ("subdural", 80, 200),
        ("bone", 600, 2800),
    ]
    assert (options.image_size, options.folds, options.labels) == (512, 5, None)
    assert options.hu_repair is RepairPolicy.AUTO
    assert options.max_reject_fraction == 0.05
    assert (runner, rest) == ("local", [])


def test_what_is_not_ours_is_left_for_beam() -> None:
    argv = [*PATHS, "--windows", "brain,x:1:2", "--runner", "DataflowRunner", "--project", "p"]
    options, runner, rest = parse_options(argv)
    assert options.windows == (Window("brain", 40, 80), Window("x", 1, 2))
    assert (runner, rest) == ("DataflowRunner", ["--project", "p"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"windows": tuple(Window(name, 0, 1) for name in "abcde")},
            "--windows a,b,c,d,e: want 1 to 4 windows",
        ),
        ({"windows": (Window("a", 0, 1),) * 2}, "--windows a,a: want different names"),
        ({"image_size": 8}, "--image_size 8: want 16 to 4096"),
        ({"folds": 1}, "--folds 1: want 2 to 100"),
        ({"examples_per_shard": 0}, "--examples_per_shard 0: want at least 1"),
        ({"seed": -1}, "--seed -1"),
        ({"holdout": 1.0}, "--holdout 1.0: want 0 to 0.9"),
        ({"identifiers": Identifiers.HASH}, "--identifiers hash needs a key of 16 bytes"),
        ({"max_reject_fraction": 1.5}, "--max_reject_fraction 1.5: want 0 to 1"),
        ({"workers": 0}, "--workers 0: want at least 1"),
    ],
)
def test_a_bad_value_is_quoted_with_what_would_be_right(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(Options("in", None, "out"), **change)


def test_options_that_do_not_change_the_bytes_are_not_recorded() -> None:
    options = Options("in", None, "out")
    same = dataclasses.replace(options, output="other", workers=7, max_reject_fraction=1)
    assert options.recorded() == same.recorded()
    assert options.recorded() != dataclasses.replace(options, seed=1).recorded()


def test_hounsfield_units_take_the_place_of_windows() -> None:
    options, _, _ = parse_options([*PATHS, "--hu"])
    assert options.windows == ()
    assert (options.image.channels, options.image.dtype) == (1, "uint16")
    assert options.recorded()["hu"]


def test_the_key_comes_from_a_file_or_the_environment_and_is_told_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "0123456789abcdef-in-a-file"
    (tmp_path / "key").write_text(secret + "\n")
    argv = [*PATHS, "--identifiers", "hash"]
    options, _, _ = parse_options([*argv, "--identifier_key_file", str(tmp_path / "key")])
    assert options.identifier_key == secret.encode()
    monkeypatch.setenv(KEY_VARIABLE, secret)
    same, _, _ = parse_options(argv)
    assert same.recorded() == options.recorded()
    monkeypatch.setenv(KEY_VARIABLE, secret + "!")
    assert parse_options(argv)[0].recorded() != options.recorded()
    assert secret not in repr(options) + str(options.recorded())


def test_a_key_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="--identifier_key_file /absent: No such file"):
        parse_options([*PATHS, "--identifiers", "hash", "--identifier_key_file", "/absent"])


def test_empty_values_are_those_of_unset_variables() -> None:
    options, _, _ = parse_options([*PATHS, "--labels", "", "--label_columns", ""])
    assert options.labels is None
    assert options.label_columns == ()
