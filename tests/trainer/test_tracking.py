"""What MLflow and Weights & Biases get of a run, by their own packages where installed."""

import json
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from trainer.__main__ import main
from trainer.display import Display
from trainer.options import TrainOptions
from trainer.runs.run import Run
from trainer.training import tracking
from trainer.training.tracking import Entry, TrackedRun, numbers, tracked

FIGURES = {
    "best_epoch": 2, "weighted_log_loss": 0.25, "trained_on": False, "split": "fold0",
    "label_weights": {"any": 2.0}, "intervals_95": {"patients": 3, "mean_roc_auc": [0.1, 0.9]},
    "labels": {"a/b (c)": {"roc_auc": None, "log_loss": 0.5, "reliability": [1]}},
}  # fmt: skip
HISTORY: list[dict[str, Any]] = [
    {"epoch": each, "loss": 1 / each, "val_roc_auc": {"a/b (c)": 0.5, "any": None}}
    for each in (1, 2, 3)
]


class Recorder:
    """A tracker that keeps what it gets, in `calls` of the class."""

    title = "Recorder"
    calls: list[Any] = []  # noqa: RUF012 - emptied by the fixture
    broken: set[str] = set()  # noqa: RUF012

    def begin(self, run: TrackedRun, entry: Entry) -> str:
        self.run = run.name
        entry.setdefault("run", f"id of {run.name}")
        self.note("begin", run.group, run.parents.get("mlflow", {}).get("run"))
        return "there"

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        self.note("log", epoch)

    def end(self, figures: Mapping[str, float], epoch: int, files: Sequence[Path]) -> None:
        self.note("end", epoch, [path.name for path in files])

    def stop(self) -> None:
        self.note("stop")

    def note(self, method: str, *facts: Any) -> None:
        if method in self.broken:
            raise ConnectionError(f"https://me:secret@host refused\n{'x' * 999}")
        self.calls.append((self.run, method, *facts))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """In place of MLflow."""
    monkeypatch.setattr(Recorder, "calls", [])
    monkeypatch.setattr(Recorder, "broken", set())
    monkeypatch.setitem(tracking._KINDS, "mlflow", Recorder)
    return Recorder


def options_of(run: Path, **changes: Any) -> TrainOptions:
    given = {"track": "mlflow", "weights": "/home/alice/start.h5", "track_files": True} | changes
    return TrainOptions(shards="/home/alice/shards", run=run, **given)


@pytest.fixture
def finished_run(tmp_path: Path) -> Run:
    """With a report and a model, and not yet tracked."""
    run = Run(tmp_path / "densenet")
    run.path.mkdir()
    run.report.write_text("page")
    run.model.write_bytes(b"model")
    return run


def track_twice(run: Run, **changes: Any) -> None:
    """A run that is interrupted after its first epoch, and resumed with its second one lost."""
    options = options_of(run.path, **changes)
    with suppress(KeyboardInterrupt), tracked(options, run, Display()) as first:
        first.log(HISTORY[:1])
        raise KeyboardInterrupt
    with tracked(options, run, Display()) as second:
        second.log(HISTORY[:2])
        second.end(FIGURES, HISTORY)


def test_the_numbers_of_figures() -> None:
    assert numbers(FIGURES) == {
        "best_epoch": 2, "weighted_log_loss": 0.25, "labels/a/b (c)/log_loss": 0.5,
    }  # fmt: skip
    assert numbers({"epoch": 1, "loss": float("nan"), "lr": 0}) == {"lr": 0.0}


def test_a_resumed_run_continues_with_the_epochs_that_are_missing(
    finished_run: Run, recorder: type[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    track_twice(finished_run)
    methods = [call[1:] for call in recorder.calls]
    begun = ("begin", "", None)
    files = ["report.html", "model.keras"]
    assert methods == [
        begun, ("log", 1), ("stop",), begun, ("log", 2), ("log", 3), ("end", 3, files),
    ]  # fmt: skip
    assert capsys.readouterr().out == "Recorder: there\n" * 2
    state = json.loads((finished_run.path / "tracking.json").read_text())
    assert state == {"mlflow": {"run": "id of densenet", "epochs": 3}}


def test_a_tracker_that_fails_is_one_warning_and_gets_everything_later(
    finished_run: Run, recorder: type[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of(finished_run.path, track_files=False)
    recorder.broken = {"begin", "log", "end", "stop"}
    with tracked(options, finished_run, Display()) as sent:
        sent.log(HISTORY[:1])
        recorder.broken = {"log"}
        sent.end(FIGURES, HISTORY)
    (line,) = capsys.readouterr().out.splitlines()[:1]
    assert line.startswith("warning: Recorder failed, training continues (ConnectionError: https:")
    assert "secret" not in line
    assert len(line) < 300
    assert recorder.calls == [("densenet", "begin", "", None)]
    recorder.broken = set()
    with tracked(options, finished_run, Display()) as sent:
        sent.end(FIGURES, HISTORY)
    assert recorder.calls[1:] == [
        ("densenet", "begin", "", None),
        *(("densenet", "log", epoch) for epoch in (1, 2, 3)),
        ("densenet", "end", 3, []),
    ]
    assert "warning" not in capsys.readouterr().out
    (finished_run.path / "tracking.json").write_text("{")  # tracked anew
    with tracked(options, finished_run, Display()) as sent:
        sent.end(FIGURES, HISTORY)
    assert [call[1] for call in recorder.calls[-5:]] == ["begin", "log", "log", "log", "end"]


def test_a_run_says_neither_paths_nor_the_fold_of_a_whole_crossvalidation(tmp_path: Path) -> None:
    options, folder = options_of(tmp_path), Run(tmp_path / "cv")
    of_fold = TrackedRun.of(options, Run(folder.path / "fold0"), folder)
    assert (of_fold.name, of_fold.group, of_fold.options["fold"]) == ("fold0", "cv", 0)
    assert "/home" not in str(of_fold)
    assert of_fold.options["weights"] == "start.h5"
    whole = TrackedRun.of(options, folder, folder)
    assert (whole.name, whole.group) == ("cv", "cv")
    assert of_fold.options.keys() - whole.options.keys() == {"fold"}


def test_mlflow_in_a_local_store(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    store = tmp_path / "store"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # in a database the first run takes 2 s
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "bleeding")
    drawn = random.getstate()
    track_twice(finished_run)
    cv = Run(tmp_path / "cv")
    with tracked(options_of(cv.path), cv, Display(), cv):
        fold = Run(cv.path / "fold0")
        with tracked(options_of(fold.path), fold, Display(), cv) as sent:
            sent.end({}, [])
    assert random.getstate() == drawn, "a seeded training stays the same"
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("bleeding").experiment_id
    runs = {each.info.run_name: each for each in client.search_runs([experiment])}
    assert {*runs} == {"densenet", "cv", "fold0"}
    run = runs["densenet"]
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.0003"
    assert run.data.metrics["final/labels/a/b _c_/log_loss"] == 0.5
    steps = client.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value) for each in steps] == [(1, 1), (2, 1 / 2), (3, 1 / 3)]
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == {
        "model.keras", "report.html",
    }  # fmt: skip
    parent = runs["fold0"].data.tags["mlflow.parentRunId"]
    assert parent == runs["cv"].info.run_id
    written = [path.read_text() for path in store.rglob("*") if path.is_file()]
    assert not any("alice" in text for text in written)


@pytest.mark.system
def test_weights_and_biases_offline(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_PROJECT", "bleeding")
    drawn = random.getstate()
    track_twice(finished_run, track="wandb", track_files=False)
    assert random.getstate() == drawn, "a seeded training stays the same"
    wandb.teardown()  # waits until all is on disk
    files = [*(tmp_path / "wandb").glob("offline-run-*/*.wandb")]
    run = json.loads((finished_run.path / "tracking.json").read_text())["wandb"]["run"]
    assert {path.stem for path in files} == {f"run-{run}"}, "to upload as one run"
    sent = b"".join(path.read_bytes() for path in files)
    figures = (b"val_roc_auc/a/b (c)", b"final/weighted_log_loss")
    for text in (b"bleeding", b"densenet", b"start.h5", *figures):
        assert text in sent
    assert b"alice" not in sent


def test_a_crossvalidation_is_a_run_with_a_run_per_fold(
    recorder: type[Recorder], tmp_path: Path
) -> None:
    cv = Run(tmp_path / "cv")
    options = options_of(cv.path)
    with tracked(options, cv, Display(), cv), tracked(options, Run(cv.path / "a"), Display(), cv):
        pass
    assert recorder.calls == [("cv", "begin", "cv", None), ("a", "begin", "cv", "id of cv")]


def test_a_package_that_is_missing(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("trainer.runs.training_setup.find_spec", lambda name: None)
    argv = ["train", f"--shards={shards}", f"--run={tmp_path / 'r'}", "--weights=none"]
    assert main([*argv, "--track", "mlflow"]) == 2
    assert capsys.readouterr().err == (
        "trainer: --track mlflow: mlflow is not installed; pip install 'headct-shards[mlflow]'\n"
    )
    assert not (tmp_path / "r").exists()
