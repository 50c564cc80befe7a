from pathlib import Path

import pytest

from trainer.command_line import parse_arguments
from trainer.errors import BadInput
from trainer.options import EvaluateOptions, PredictOptions, TrainOptions


def test_train_flags_are_the_fields() -> None:
    options = parse_arguments(
        [
            "train",
            "--shards",
            "s",
            "--run",
            "r",
            "--fold",
            "2",
            "--learning_rate",
            "1e-3",
            "--deterministic",
        ]
    )
    assert options == TrainOptions(
        shards=Path("s"), run=Path("r"), fold=2, learning_rate=1e-3, deterministic=True
    )


def test_evaluate_and_predict() -> None:
    assert parse_arguments(["evaluate", "--run", "r"]) == EvaluateOptions(run=Path("r"))
    assert parse_arguments(
        ["predict", "--run", "r", "--shards", "s", "--output", "o.csv", "--split", "holdout"]
    ) == PredictOptions(run=Path("r"), shards=Path("s"), output=Path("o.csv"), split="holdout")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "COMMAND"),
        ("sing", "invalid choice: 'sing'"),
        ("train --run r", "--shards"),
        ("train --shards s --run r --epochs many", "--epochs: invalid int value: 'many'"),
        ("train --shards s --run r --epoch 3", "unrecognized arguments: --epoch 3"),
    ],
)
def test_a_bad_line_is_one_line(line: str, message: str) -> None:
    with pytest.raises(BadInput) as raised:
        parse_arguments(line.split())
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
