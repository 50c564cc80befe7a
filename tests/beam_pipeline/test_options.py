import dataclasses
from typing import Any

import pytest

from beam_pipeline.errors import UsageError
from beam_pipeline.hounsfield import RepairPolicy
from beam_pipeline.options import Options, parse_options
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
        ({"windows": ()}, "--windows : want 1 to 4 windows"),
        ({"windows": (Window("a", 0, 1),) * 2}, "--windows a,a: want different names"),
        ({"image_size": 8}, "--image_size 8: want 16 to 4096"),
        ({"folds": 1}, "--folds 1: want 2 to 100"),
        ({"examples_per_shard": 0}, "--examples_per_shard 0: want >= 1"),
        ({"seed": -1}, "--seed -1"),
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
