from pathlib import Path
from typing import Any

import pytest

from trainer.errors import BadInput
from trainer.options import (
    DEFAULT_WINDOWS,
    ChosenWindow,
    EvaluateOptions,
    TrainOptions,
    label_weights,
    parse_windows,
    run_identity,
)

RSNA = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")


def train_options(**changes: Any) -> TrainOptions:
    return TrainOptions(shards="s", run=Path("r"), **changes)


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("epochs", 0, "at least 1"),
        ("batch_size", -4, "at least 1"),
        ("image_size", 0, "at least 1"),
        ("fold", -1, "0 or more"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", float("nan"), "above 0"),
        ("ema", 1.0, "from 0 to below 1"),
        ("clip_norm", float("inf"), "0 or more"),
        ("optimizer", "adam", "adamw, sgd"),
        ("precision", "float64", "auto, float32, bfloat16, float16"),
        ("freeze_epochs", 10, "below --epochs"),
    ],
)
def test_a_bad_value_is_quoted_with_what_is_right(name: str, value: Any, right: str) -> None:
    with pytest.raises(BadInput) as raised:
        train_options(**{name: value})
    assert str(raised.value) == f"--{name} {value}: must be {right}"


def test_evaluate_checks_its_batch_size() -> None:
    with pytest.raises(BadInput, match="--batch_size 0: must be at least 1"):
        EvaluateOptions(run=Path("r"), batch_size=0)


def test_paths_and_checkpoint_intervals_are_no_part_of_a_run() -> None:
    one = run_identity(train_options(checkpoint_seconds=1.0, cache_dir="a"))
    other = run_identity(train_options(checkpoint_seconds=2.0, cache_dir="b"))
    assert one == other
    assert not {"shards", "run", "checkpoint_seconds"} & set(one)
    assert run_identity(train_options(seed=1)) != one


def test_any_counts_twice_of_seven_by_default() -> None:
    weights = label_weights("any=2", RSNA)
    assert weights == (1, 1, 1, 1, 1, 2)
    assert sum(weights) == 7


def test_the_default_fits_labels_without_any() -> None:
    assert label_weights("any=2", ("tumour", "cyst")) == (1, 1)


@pytest.mark.parametrize(
    "text", ["epidural", "epidural=x", "epidural=0", "epidural=nan", "bleed=2"]
)
def test_a_bad_label_weight_is_quoted(text: str) -> None:
    with pytest.raises(BadInput, match=f"--label_weights '{text.split('=')[0]}"):
        label_weights(text, RSNA)


def test_windows_are_names_or_numbers() -> None:
    assert parse_windows("") == DEFAULT_WINDOWS
    assert parse_windows("brain, stroke:32:8") == (
        ChosenWindow("brain", 40, 80),
        ChosenWindow("stroke", 32, 8),
    )


@pytest.mark.parametrize("text", ["lung", "a:1", "a:1:0", "a:1:nan", "a:b:2"])
def test_a_bad_window_is_quoted(text: str) -> None:
    with pytest.raises(BadInput, match=f"--windows '{text}'"):
        parse_windows(text)
