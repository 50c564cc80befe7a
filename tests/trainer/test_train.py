"""The real loop on small shards; one run is shared by the tests that only look at it."""

import html
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from headct.errors import UsageError
from tests.trainer import conftest
from trainer.__main__ import main
from trainer.errors import Diverged
from trainer.evaluation.metrics import split_figures
from trainer.files import this_machine
from trainer.networks.saved_models import load_classifier
from trainer.options import TrainOptions
from trainer.report import plots
from trainer.runs.training_setup import TrainingSetup, prepare_training
from trainer.training.train import train
from trainer.training.training_model import TrainingModel, copy_values

ROOT = Path(__file__).parents[2]

JobMaker = Callable[..., TrainingSetup]


@pytest.fixture
def make_job(shards: Path, tiny: dict[str, Any], tmp_path: Path) -> JobMaker:
    """Makes a setup of the tiny options with some changed, in a run directory of that name."""

    def make(name: str = "run", **changes: Any) -> TrainingSetup:
        given = tiny | {"report": False} | changes
        return prepare_training(TrainOptions(shards=shards, run=tmp_path / name, **given))

    return make


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_loss_falls_and_everything_is_left_behind(finished: Path) -> None:
    history = read(finished / "history.json")
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[1]["loss"] < history[0]["loss"]
    assert (finished / "history.png").read_bytes().startswith(b"\x89PNG")
    assert (finished / "report.html").is_file()
    assert not list((finished / "checkpoints").iterdir())
    assert list((finished / "tensorboard").glob("events.*"))
    assert read(finished / "run.json")["options"]["model"] == "smallresnet"


def test_metrics_are_of_the_whole_validation_fold(finished: Path) -> None:
    metrics = read(finished / "metrics.json")
    frame = pd.read_parquet(finished / "predictions-fold0.parquet")
    assert metrics["examples"] == len(frame) == 21
    assert metrics["epochs"] == 2
    losses = []
    for name in ("upper", "lower", "any"):
        labels, predicted = frame[f"label_{name}"], frame[f"probability_{name}"]
        losses.append(log_loss(labels, predicted))
        assert metrics["labels"][name]["log_loss"] == pytest.approx(losses[-1])
        assert metrics["labels"][name]["roc_auc"] == pytest.approx(roc_auc_score(labels, predicted))
    assert metrics["weighted_log_loss"] == pytest.approx(np.average(losses, weights=[1, 1, 2]))
    best = min(row["val_loss"] for row in read(finished / "history.json"))
    assert metrics["weighted_log_loss"] == pytest.approx(best, rel=1e-5)


def test_a_complete_run_says_so(
    shards: Path, tiny: dict[str, Any], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{name}={value}" for name, value in tiny.items()]
    assert main(["train", "--shards", str(shards), "--run", str(finished), *flags]) == 0
    assert "this run is complete" in capsys.readouterr().out


def test_no_patient_is_named(make_job: JobMaker, capfd: pytest.CaptureFixture[str]) -> None:
    # Options that no other test turns on come along.
    train(make_job(epochs=1, sampling="balanced", label_smoothing=0.1))
    shown = capfd.readouterr()
    assert "P1_00" not in shown.out + shown.err
    assert "ID_1_" not in shown.out + shown.err
    assert "Traceback" not in shown.err


def test_balanced_sampling_leaves_natural_probabilities(
    shards_writer: Callable[..., Path], tiny: dict[str, Any], tmp_path: Path, full: bool
) -> None:
    """A slice in twenty has each of two labels, a drawn one in three."""
    rows = {f"fold{i}": make_rows(60, 32, seed=i) for i in range(3)}
    shards = shards_writer(tmp_path / "shards", rows)
    mean = {}
    for cache in ("none", "ram") if full else ("none",):
        run = tmp_path / cache
        given = tiny | {"sampling": "balanced", "cache": cache, "epochs": 3, "report": False}
        train(prepare_training(TrainOptions(shards=shards, run=run, **given)))
        frame = pd.read_parquet(run / "predictions-fold0.parquet")
        head = load_classifier(run / "model.keras").get_layer("core").get_layer("head")
        mean[cache] = frame["probability_upper"].mean()
        assert copy_values([head.bias])[0][0] < -1.5
        assert mean[cache] < 0.2
    assert list(mean.values()) == pytest.approx([mean["none"]] * len(mean), rel=0.05)


def make_rows(count: int, size: int, seed: int) -> list[dict[str, Any]]:
    """One slice in twenty is positive."""
    rows = []
    for i in range(count):
        random = np.random.default_rng([seed, i])
        image = random.integers(0, 60, (size, size, 3), dtype=np.uint8)
        upper, lower = int(i % 20 == 0), int(i % 20 == 10)
        if upper:
            image[: size // 4] += 180
        if lower:
            image[-size // 4 :] += 180
        ids = {
            f"{kind}_id": f"{kind}{seed}_{i}" for kind in ("image", "patient", "study", "series")
        }
        label = [upper, lower, upper | lower]
        rows.append({"image": image, "label": label, "position_z": 0.0, **ids})
    return rows


def losses_to_come(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Replaces the validation loss of each epoch."""
    remaining = iter(losses)

    def figures(*arguments: Any) -> dict[str, Any]:
        return split_figures(*arguments) | {"weighted_log_loss": next(remaining)}

    monkeypatch.setattr("trainer.training.train.split_figures", figures)


def test_it_stops_when_nothing_gets_better(
    make_job: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses_to_come(monkeypatch, [3, 2, 2, 2.5, 1])
    train(make_job(epochs=5, patience=2))
    metrics = read(tmp_path / "run" / "metrics.json")
    assert (metrics["epochs"], metrics["best_epoch"], metrics["stopped_early"]) == (4, 2, True)
    assert len(read(tmp_path / "run" / "history.json")) == 4


def test_an_infinite_loss_stops_with_a_report(
    shards: Path, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = tiny | {"learning_rate": 1e30, "clip_norm": 0.0, "optimizer": "sgd", "warmup_epochs": 0}
    argv = ["train", "--shards", str(shards), "--run", str(tmp_path / "run")]
    assert main([*argv, *(f"--{name}={value}" for name, value in flags.items())]) == 3
    error = capsys.readouterr().err
    assert "the loss is" in error
    assert "epoch 1, step" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_validation_without_numbers_ends_in_one_line(
    make_job: JobMaker, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaged_weights = TrainingModel.averaged_weights

    def break_weights(model: Any) -> Any:
        model.get_layer("core").get_layer("head").bias.assign(np.full(3, np.nan))
        return averaged_weights(model)

    monkeypatch.setattr(TrainingModel, "averaged_weights", break_weights)
    with pytest.raises(Diverged, match="21 of 21 slices of fold0 a logit that is not finite"):
        train(make_job(cache=cache))


def test_two_processes_do_not_train_one_run(
    make_job: JobMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = make_job(epochs=1)
    script = (
        "import sys, time; from pathlib import Path; from trainer.runs.run import held\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    argv = [sys.executable, "-c", script, str(setup.run.path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"in use by process {other.pid} on "):
            train(setup)
        assert not setup.run.description.exists()
        other.kill()
    train(setup)
    assert setup.run.is_complete


def test_leftovers_of_killed_processes_are_removed(make_job: JobMaker) -> None:
    setup = make_job(epochs=1, cache="disk")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with setup.run.begun(setup.options, setup.shards):
        pass
    setup.run.cache.mkdir()
    names = [
        setup.run.path / f".model-{this_machine()}-{ended.pid}.keras",
        setup.run.checkpoints / f".epoch-0001-step-00000000-{this_machine()}-{ended.pid}.npz",
    ]
    alive = setup.run.path / f".history-{this_machine()}-{os.getppid()}.json"
    for path in (*names, alive):
        path.write_bytes(b"half")
    train(setup)
    assert [path for path in (*names, alive) if path.exists()] == [alive]
    assert not setup.run.cache.exists(), "a complete run needs none"


def test_both_kinds_of_cache_train_alike(make_job: JobMaker, tmp_path: Path) -> None:
    # Memory and disk differ in where the arrays lie alone; test_image_cache.py compares them.
    for cache in ("disk", "device"):
        train(make_job(cache, cache=cache, sampling="balanced", epochs=1))
    disk, device = (read(tmp_path / cache / "history.json")[0] for cache in ("disk", "device"))
    assert device["loss"] == pytest.approx(disk["loss"], rel=1e-4)
    assert device["val_loss"] == pytest.approx(disk["val_loss"], rel=1e-3)


def test_a_compiled_step_trains_alike(make_job: JobMaker, tmp_path: Path) -> None:
    # XLA draws other random numbers, so there are none.
    still = {"cache": "device", "augment": 0.0, "dropout": 0.0, "epochs": 1}
    for xla in ("on", "off"):
        train(make_job(xla, xla=xla, **still))
    on, off = (read(tmp_path / xla / "history.json")[0] for xla in ("on", "off"))
    assert on["loss"] == pytest.approx(off["loss"], rel=1e-4)
    assert on["val_loss"] == pytest.approx(off["val_loss"], rel=1e-3)


# Formulas that cannot be set, and what markup, formats and HTML take for theirs.
ODD_NAMES = ("$x^$", "[/x] {y} %s", '<b>"\u00e4"\'s & \\frac')


@pytest.mark.usefixtures("drawn_history")
def test_labels_may_have_any_name_of_the_contract(
    tmp_path: Path,
    tiny: dict[str, Any],
    rows_maker: Callable[..., Any],
    shards_writer: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(conftest, "LABELS", ODD_NAMES)
    splits = {f"fold{i}": rows_maker(12, 32, seed=i) for i in range(2)}
    shards = shards_writer(tmp_path / "ich", splits)
    options = tiny | {"epochs": 1, "label_weights": "$x^$=2"}
    train(prepare_training(TrainOptions(shards=shards, run=tmp_path / "run", **options)))
    assert [*read(tmp_path / "run" / "metrics.json")["labels"]] == [*ODD_NAMES]
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    assert all(name in page for name in ODD_NAMES)
    shown = capsys.readouterr()
    assert all(name in shown.out for name in ODD_NAMES[:2])
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 0


@pytest.mark.usefixtures("drawn_history")
def test_a_picture_that_cannot_be_drawn_costs_no_epoch(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    options = {"checkpoint_seconds": 1e6, "epochs": 1}
    with monkeypatch.context() as patch:
        patch.setattr(plots, "save_figure", fail)
        with pytest.raises(OSError, match="no space"):
            train(make_job(**options))
    train(make_job(**options))
    assert "resumes after epoch 1, step 0" in capsys.readouterr().out
    run = make_job(**options).run
    assert run.is_complete
    assert (run.path / "history.png").is_file()
