"""Runs that start from another's model, and networks of one's own: see `api.train_run`, too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import trainer
from headct.errors import UsageError
from trainer.__main__ import main
from trainer.networks import answers
from trainer.networks.saved_models import load_classifier
from trainer.runs import checkpoint
from trainer.training.training_model import copy_values


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The weights with which each training begins; none goes further."""
    found: list[Any] = []

    class Stopped(Exception):
        pass

    def stop(loop: Any) -> None:
        found.append(copy_values(loop.classifier.model.weights))
        raise Stopped

    monkeypatch.setattr("trainer.training.train.Loop.run", stop)
    found.append(Stopped)
    return found


def beginning(begun: list[Any], **options: Any) -> list[Any]:
    with pytest.raises(begun[0]):
        trainer.train_run(**options)
    weights: list[Any] = begun.pop()
    return weights


def equal(one: list[Any], other: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_seed_makes_the_model_that_training_begins_with(
    shards: Path, tmp_path: Path, begun: list[Any]
) -> None:
    opened = trainer.open_shards(shards)
    options = {"model": "smallresnet", "weights": "none", "image_size": 32}
    first, second, other = (
        copy_values(trainer.build_model(opened, seed=seed, **options).weights) for seed in (0, 0, 1)
    )
    assert equal(first, second)
    assert not equal(first, other)
    for seed, weights in ((0, first), (1, other)):
        given = options | {"seed": seed, "batch_size": 8, "report": False}
        assert equal(weights, beginning(begun, shards=shards, run=tmp_path / str(seed), **given))


@pytest.fixture
def more(shards: Path, finished: Path, tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The options of a run that continues the finished one, but for its network."""
    rest = {k: v for k, v in tiny.items() if k not in ("model", "weights", "image_size")}
    run = {"shards": str(shards), "run": tmp_path / "more", "continue_from": finished}
    return rest | run | {"report": False, "epochs": 1}


def test_it_starts_from_the_whole_best_model(
    more: dict[str, Any], finished: Path, begun: list[Any]
) -> None:
    changes = {"precision": "bfloat16", "dropout": 0.5, "augment": 0.0, "seed": 7}
    weights = beginning(begun, **(more | changes))
    assert equal(weights, copy_values(load_classifier(finished / "model.keras").weights))
    built = trainer.build_model(
        trainer.open_shards(more["shards"]), continue_from=finished, **changes
    )
    assert equal(weights, copy_values(built.weights))
    described = read(more["run"] / "run.json")
    assert described["options"] | changes == described["options"]
    assert described["options"]["model"] == "smallresnet"
    assert described["options"]["image_size"] == 32
    assert described["continued_from"]["run"] == str(finished)


def flags(options: dict[str, Any]) -> list[str]:
    return [
        f"--{name}={value}" if not isinstance(value, bool) else f"--{'' if value else 'no-'}{name}"
        for name, value in options.items()
    ]


def test_more_epochs_are_a_new_run(
    more: dict[str, Any],
    finished: Path,
    tiny: dict[str, Any],
    shards: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    longer = tiny | {"shards": shards, "run": finished, "epochs": 5, "report": False}
    assert main(["train", *flags(longer)]) == 2
    error = capsys.readouterr().err
    assert "--epochs 2 there, 5 now" in error
    assert f"for more epochs, a new --run with --continue_from {finished}" in error
    assert main(["train", *flags(more | {"report": True})]) == 0
    assert f"starts from the best model of {finished}, head and all" in capsys.readouterr().out
    page = (more["run"] / "report.html").read_text()
    assert "Starts from the model of" in page
    assert f"--continue_from {finished}" in page
    # What was learned is still there: the loss is below where the first run began.
    first, before = (read(each / "history.json")[0] for each in (more["run"], finished))
    assert first["loss"] < before["loss"]
    assert main(["train", *flags(more)]) == 0
    assert "this run is complete" in capsys.readouterr().out


def test_what_does_not_fit_is_refused(
    more: dict[str, Any],
    finished: Path,
    tmp_path: Path,
    rows_maker: Callable[..., Any],
    shards_writer: Callable[..., Path],
    split_rows: dict[str, Any],
    begun: list[Any],
) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(finished / "run.json", tmp_path / "new")
    other = {f"fold{i}": rows_maker(12, 16, seed=i) for i in range(2)}
    dealt = {"fold0": split_rows["fold1"], "fold1": split_rows["fold0"]}
    folders = {
        "size": shards_writer(tmp_path / "size", other),
        "labels": shards_writer(tmp_path / "labels", split_rows, labels=["a", "b", "c"]),
        "dealt": shards_writer(tmp_path / "dealt", dealt),
    }
    cases = [
        ({"model": "resnet50"}, f"--model resnet50: --continue_from {finished} has smallresnet"),
        ({"image_size": 48}, f"--image_size 48: --continue_from {finished} has 32; leave it out"),
        ({"weights": "imagenet"}, f"--weights imagenet: --continue_from {finished} brings its own"),
        ({"windows": "brain"}, f"--windows brain: --continue_from {finished} has the default"),
        ({"continue_from": tmp_path / "gone"}, "gone: no run.json, so no run directory"),
        ({"continue_from": tmp_path / "new"}, "new: no model yet"),
        ({"fold": 1}, "was trained on fold1; want --fold 0, which it left out"),
        ({"shards": folders["size"]}, "the run was trained on image "),
        ({"shards": folders["labels"]}, "the run was trained on labels "),
        ({"shards": folders["dealt"]}, "was trained on 5 of 5 patients of fold0"),
    ]
    for changes, message in cases:
        with pytest.raises(UsageError) as raised:
            trainer.train_run(**(more | changes))
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not more["run"].exists()


def test_the_model_it_began_with_is_part_of_a_run(
    more: dict[str, Any], finished: Path, tmp_path: Path, begun: list[Any]
) -> None:
    source = Path(shutil.copytree(finished, tmp_path / "source"))
    beginning(begun, **(more | {"continue_from": source}))
    # Wherever it is.
    moved = source.rename(tmp_path / "moved")
    beginning(begun, **(more | {"continue_from": moved}))
    load_classifier(moved / "model.keras").save(moved / "model.keras")
    for changes in ({"continue_from": moved}, {"continue_from": "", "model": "smallresnet"}):
        changes |= {"weights": "none", "image_size": 32}
        with pytest.raises(UsageError, match="began with the model of another run, or with none"):
            trainer.train_run(**(more | changes))


# Networks of one's own


def features(shape: tuple[int, int, int]) -> Any:
    """A feature map, by layers without names and a network in the network."""
    inputs = layers.Input(shape)
    inner = keras.Sequential([layers.Conv2D(8, 3, 2), layers.BatchNormalization(), layers.ReLU()])
    return keras.Model(inputs, layers.Dropout(0.1)(inner(inputs)))


def test_a_run_keeps_the_batch_size_that_a_gpu_chose(
    shards: Path, tiny: dict[str, Any], tmp_path: Path, begun: list[Any], monkeypatch: Any
) -> None:
    given = {name: value for name, value in tiny.items() if name != "batch_size"}
    chosen = []
    for memory in (1 << 22, 1 << 40, None):
        monkeypatch.setattr("trainer.networks.hardware.gpu_memory", lambda memory=memory: memory)
        with pytest.raises(begun[0]):
            trainer.train_run(shards=shards, run=tmp_path / "run", **given)
        chosen.append(read(tmp_path / "run" / "run.json")["options"]["batch_size"])
    assert chosen == [chosen[0]] * 3
    assert chosen[0] < 32
    with pytest.raises(UsageError, match=f"--batch_size {chosen[0]} there, 32 now"):
        trainer.train_run(shards=shards, run=tmp_path / "run", batch_size=32, **given)
    with pytest.raises(begun[0]):
        trainer.train_run(shards=shards, run=tmp_path / "other", **given)
    assert read(tmp_path / "other" / "run.json")["options"]["batch_size"] == 32


def vector(shape: tuple[int, int, int]) -> Any:
    """Features without a place."""
    return keras.Sequential(
        [layers.Input(shape), layers.Conv2D(4, 3, 2), layers.Flatten(), layers.Dense(8)]
    )


def own(shards: Path, run: Path, model: Any, **changes: Any) -> dict[str, Any]:
    small = {"image_size": 16, "batch_size": 8, "epochs": 1, "checkpoint_seconds": 0.0}
    return {"shards": str(shards), "run": run, "model": model, **small} | changes


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of images for which a network is traced, and compiled, to answer."""
    shapes, compile_ = [], answers._compile

    def counted(model: Any, flip: bool) -> Any:
        class Traced:
            jit_compile, variables = model.jit_compile, model.variables

            def __call__(self, images: Any, training: bool) -> Any:
                shapes.append(tuple(images.shape))
                return model(images, training=training)

        return compile_(Traced(), flip)

    monkeypatch.setattr(answers, "_compile", counted)
    return shapes


@pytest.mark.parametrize("model", [pytest.param(features, marks=pytest.mark.full), vector])
def test_a_network_of_ones_own(
    model: Any,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    compiled: list[tuple[int, ...]],
) -> None:
    run = tmp_path / "run"
    metrics = trainer.train_run(**own(shards, run, model, freeze_epochs=1, epochs=2))
    assert compiled == [(8, 32, 32, 3)]  # for both phases and for the figures at the end
    assert metrics["epochs"] == 2
    name = f"{model.__module__}.{model.__name__}"
    assert read(run / "run.json")["options"]["model"] == name
    # Complete, it is the same by the same function.
    assert trainer.train_run(**own(shards, run, model, freeze_epochs=1, epochs=2)) == metrics
    assert f"trainer.train_run(shards=&#39;{shards}&#39;" in (run / "report.html").read_text()
    assert main(["evaluate", "--run", str(run)]) == 0
    output = ["--shards", str(shards), "--output", str(tmp_path / "submission.csv")]
    assert main(["predict", "--run", str(run), *output]) == 0
    table = trainer.load_run(run).predict_split(trainer.open_shards(shards), "fold0")
    assert len(table) == 21
    export = ["--output", str(tmp_path / "export"), "--formats", "keras"]
    assert main(["export", "--run", str(run), *export]) == 0
    capsys.readouterr()
    assert main(["train", *flags(own(shards, run, name))]) == 2
    assert "trainer.train_run(model=function)" in capsys.readouterr().err
    # Of a whole network of one's own another run can start.
    again = own(shards, tmp_path / "again", model, continue_from=run, report=False)
    assert trainer.train_run(**again)["epochs"] == 1


def test_resumed_by_the_same_function_it_has_the_figures_of_an_undisturbed_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"checkpoint_steps": 1, "ema": 0.9, "report": False}
    trainer.train_run(**own(shards, tmp_path / "whole", features, **changes))
    save = checkpoint.save

    def stop(folder: Path, saved: Any) -> None:
        save(folder, saved)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            trainer.train_run(**own(shards, tmp_path / "broken", features, **changes))
    # What others make meanwhile takes names, which Keras numbers.
    vector((16, 16, 3))
    found = trainer.train_run(**own(shards, tmp_path / "broken", features, **changes))
    assert found == read(tmp_path / "whole" / "metrics.json")


def test_no_network(shards: Path, tmp_path: Path) -> None:
    def nothing(shape: tuple[int, int, int]) -> Any:
        return None

    def other_shape(shape: tuple[int, int, int]) -> Any:
        return features((8, 8, 3))

    def three(shape: tuple[int, int, int]) -> Any:
        return keras.Sequential([layers.Input(shape), layers.Reshape((-1, 3))])

    def with_code(shape: tuple[int, int, int]) -> Any:
        return keras.Sequential([layers.Input(shape), layers.Lambda(lambda x: x + 1)])

    cases = {
        nothing: "made NoneType; want a keras.Model from [None, 16, 16, 3] to features",
        other_shape: "made a model from (None, 8, 8, 3) to (None, 3, 3, 8); want",
        three: "to (None, 256, 3); want",
        with_code: "could not be loaded once it is saved",
    }
    for function, message in cases.items():
        with pytest.raises(UsageError) as raised:
            trainer.train_run(**own(shards, tmp_path / "run", function))
        assert message in str(raised.value)
        assert function.__qualname__ in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="brings its own weights"):
        trainer.train_run(**own(shards, tmp_path / "run", features, weights="imagenet"))
    assert not (tmp_path / "run").exists()
