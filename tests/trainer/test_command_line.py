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
        shards="s", run=Path("r"), fold=2, learning_rate=1e-3, deterministic=True
    )


def test_evaluate_and_predict() -> None:
    assert parse_arguments(["evaluate", "--run", "r"]) == EvaluateOptions(run=Path("r"))
    assert parse_arguments(
        ["predict", "--run", "r", "--shards", "s", "--output", "o.csv", "--split", "holdout"]
    ) == PredictOptions(run=Path("r"), shards="s", output=Path("o.csv"), split="holdout")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "COMMAND"),
        ("sing", "invalid choice: 'sing'"),
        ("train --run r", "--shards is missing: shard directory"),
        ("crossval --shards s --run r --fold 1", "unrecognized arguments: --fold 1"),
        ("train --shards s --run r --epochs many", "--epochs: invalid int value: 'many'"),
        ("train --shards s --run r --epoch 3", "unrecognized arguments: --epoch 3"),
    ],
)
def test_a_bad_line_is_one_line(line: str, message: str) -> None:
    with pytest.raises(BadInput) as raised:
        parse_arguments(line.split())
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def write_config(folder: Path, text: str) -> str:
    path = folder / "options.toml"
    path.write_text(text)
    return str(path)


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, 'shards = "s"\nepochs = 7\nlearning_rate = 1\ndeterministic = true\nseed = 3\n'
    )
    options = parse_arguments(["train", "--config", config, "--run", "r", "--seed", "4"])
    assert options == TrainOptions(
        shards="s", run=Path("r"), epochs=7, learning_rate=1.0, deterministic=True, seed=4
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown key 'epoch'"),
        ("epochs = 3.5", "epochs = 3.5: must be of type int"),
        ("epochs = true", "epochs = True: must be of type int"),
        ('deterministic = "yes"', "must be of type bool"),
        ("epochs = ", "not TOML"),
        ("epochs = 0", "--epochs 0: must be at least 1"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    config = write_config(tmp_path, text)
    with pytest.raises(BadInput) as raised:
        parse_arguments(["train", "--shards", "s", "--run", "r", "--config", config])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_such_file() -> None:
    with pytest.raises(BadInput, match=r"--config lost\.toml: no such file"):
        parse_arguments(["evaluate", "--run", "r", "--config", "lost.toml"])


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "crossval", "evaluate", "predict", "export", "report"):
        with pytest.raises(SystemExit) as raised:
            parse_arguments([command, "--help"])
        assert raised.value.code == 0
        assert "default:" in capsys.readouterr().out
