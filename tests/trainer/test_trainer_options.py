import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from headct.errors import UsageError
from trainer.option_values import DEFAULT_WINDOWS, ChosenWindow, label_weights, parse_windows
from trainer.options import (
    CompareOptions,
    EvaluateOptions,
    ExportOptions,
    TrainOptions,
    run_identity,
)

RSNA = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")


def train_options(**changes: Any) -> TrainOptions:
    return TrainOptions(shards="s", run=Path("r"), **changes)


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("epochs", 0, "want a whole number of at least 1"),
        ("epochs", "many", "want a whole number of at least 1"),
        ("epochs", 2.5, "want a whole number of at least 1"),
        ("epochs", None, "want a whole number of at least 1"),
        ("batch_size", -4, "want a whole number of at least 1"),
        ("image_size", 0, "want a whole number of at least 1"),
        ("fold", -1, "want a whole number of at least 0"),
        ("seed", 2**32, "want a whole number from 0 to 4294967291"),
        ("learning_rate", 0.0, "want a number above 0"),
        ("learning_rate", float("nan"), "want a number above 0"),
        ("ema", 1.0, "want a number from 0 to below 1"),
        ("clip_norm", float("inf"), "want a number of at least 0"),
        ("deterministic", "perhaps", "want true or false"),
        ("model", 3, "want text"),
        ("run", 3, "want a path"),
        ("optimizer", "adam", "want one of adamw, sgd"),
        ("precision", "float64", "want one of auto, float32, bfloat16, float16"),
        ("freeze_epochs", 10, "want fewer than --epochs"),
    ],
)
def test_a_bad_value_is_quoted_with_what_is_right(name: str, value: Any, right: str) -> None:
    with pytest.raises(UsageError) as raised:
        TrainOptions(**{"shards": "s", "run": "r", name: value})
    assert str(raised.value) == f"--{name} {value}: {right}"
    assert raised.value.__suppress_context__


def test_the_declaration_checks_texts_as_they_are_parsed_later() -> None:
    for name, value, message in (
        ("windows", "lung", "--windows 'lung': want name:center:width or brain, subdural, bone"),
        ("label_weights", "any", "--label_weights 'any': want name=weight"),
    ):
        with pytest.raises(UsageError) as raised:
            train_options(**{name: value})
        assert str(raised.value) == message
    with pytest.raises(UsageError, match="--formats onnx,pt: want some of keras, saved_model"):
        ExportOptions(run="r", output="o", formats="onnx,pt")


def test_a_value_that_is_no_short_line_is_quoted_as_one() -> None:
    with pytest.raises(UsageError) as raised:
        train_options(optimizer="a\n" * 100)
    assert str(raised.value).startswith('--optimizer "a\\na\\n')
    assert len(str(raised.value)) < 120
    with pytest.raises(UsageError, match="want a path without the character NUL"):
        train_options(cache_dir="a\0b")


def test_what_is_missing_or_unknown_is_named() -> None:
    with pytest.raises(UsageError) as missing:
        TrainOptions(shards="s")
    assert (
        str(missing.value) == "--run is missing: run directory: made, or resumed where it stopped"
    )
    with pytest.raises(UsageError) as unknown:
        train_options(epoch=3)
    assert str(unknown.value) == "unknown option --epoch (did you mean --epochs?)"


def test_paths_may_be_given_as_such() -> None:
    options = TrainOptions(shards=Path("s"), run="r", cache_dir=Path("c"))
    assert (options.shards, options.run, options.cache_dir) == ("s", Path("r"), "c")


def test_of_evaluation_too() -> None:
    with pytest.raises(UsageError, match="--batch_size 0: want a whole number of at least 1"):
        EvaluateOptions(run=Path("r"), batch_size=0)
    with pytest.raises(UsageError, match="--fit_temperature and --temperature: choose one"):
        EvaluateOptions(run=Path("r"), fit_temperature=True, temperature=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swa_epochs": 9, "freeze_epochs": 2}, "--swa_epochs 9: want at most 8, the epochs that"),
        ({"swa_epochs": 2, "ema": 0.9}, "--swa_epochs and --ema: choose one"),
        ({"swa_epochs": 2, "patience": 3}, "--swa_epochs and --patience: choose one"),
        (
            {"mixup": 0.2, "batch_size": 1},
            "--mixup: mixes the images of a batch; want --batch_size",
        ),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_options(**options)
    train_options(swa_epochs=8, freeze_epochs=2, mixup=10.0, batch_size=2)


def test_options_do_not_change() -> None:
    options = train_options()
    with pytest.raises(ValidationError, match="frozen"):
        options.epochs = 3


def test_paths_and_checkpoint_intervals_are_no_part_of_a_run() -> None:
    one = run_identity(train_options(checkpoint_seconds=1.0, cache_dir="a"))
    other = run_identity(train_options(checkpoint_seconds=2.0, cache_dir="b"))
    assert one == other
    assert not {"shards", "run", "checkpoint_seconds"} & set(one)
    assert run_identity(train_options(seed=1)) != one
    assert json.loads(json.dumps(one)) == one


def test_what_a_run_is() -> None:
    others = {"shards", "run", "cache_dir", "report", "checkpoint_steps", "checkpoint_seconds"}
    others |= {"continue_from", "shard_cache", "shard_cache_gb", "storage_patience"}
    others |= {"track", "track_files"}
    assert run_identity(train_options()).keys() == TrainOptions.model_fields.keys() - others


def test_any_counts_twice_of_seven_by_default() -> None:
    weights = label_weights("any=2", RSNA)
    assert weights == (1, 1, 1, 1, 1, 2)
    assert sum(weights) == 7


def test_the_default_fits_labels_without_any() -> None:
    assert label_weights("any=2", ("tumour", "cyst")) == (1, 1)
    # What is not the default was meant for a label; earlier versions let it pass.
    with pytest.raises(UsageError, match="'any': no such label; there are tumour, cyst"):
        label_weights("any=5", ("tumour", "cyst"))
    assert label_weights("any=5,cyst=3", ("tumour", "cyst"), saved=True) == (1, 3)


def test_weights_of_labels_of_any_names() -> None:
    names = ("a=b", "mass, effect", 'say "x"', "cost $5 $", "_")
    text = 'a=b=2, "mass, effect=3",say "x"=4,cost $5 $=5,_=6'
    assert label_weights(text, names) == (2, 3, 4, 5, 6)
    with pytest.raises(UsageError, match="want name=weight"):
        label_weights("a=1\nb=2", names)


@pytest.mark.parametrize(
    "text", ["epidural", "epidural=x", "epidural=0", "epidural=nan", "bleed=2"]
)
def test_a_bad_label_weight_is_quoted(text: str) -> None:
    with pytest.raises(UsageError, match=f"--label_weights '{text.split('=')[0]}"):
        label_weights(text, RSNA)


def test_windows_are_names_or_numbers() -> None:
    assert parse_windows("") == DEFAULT_WINDOWS
    assert parse_windows("brain, stroke:32:8") == (
        ChosenWindow("brain", 40, 80),
        ChosenWindow("stroke", 32, 8),
    )


@pytest.mark.parametrize("text", ["lung", "a:1", "a:1:0", "a:1:nan", "a:b:2"])
def test_a_bad_window_is_quoted(text: str) -> None:
    with pytest.raises(UsageError, match=f"--windows '{text}'"):
        parse_windows(text)


def test_a_path_may_begin_with_a_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/joe")
    options = EvaluateOptions(run=Path("~/run"), shards="~/shards")
    assert (options.run, options.shards) == ((Path("/home/joe/run"),), "/home/joe/shards")
    compared = CompareOptions(runs=(Path("~/a"), Path("b~")), output=Path("~/c.html"))
    assert compared.runs == (Path("/home/joe/a"), Path("b~"))
    assert compared.output == Path("/home/joe/c.html")
