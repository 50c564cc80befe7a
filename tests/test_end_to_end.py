"""The whole line as a user runs it: sample, pipeline, trainer, and a stranger's reader."""

import contextlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest

import headct
from tests.trainer import small_network

pytestmark = pytest.mark.system

ROOT = Path(__file__).parent.parent
IDENTIFIERS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
Command = tuple[object, ...]
# Between what two commands of one process print.
NEXT = "\n-- next --\n"


def python(*arguments: object) -> str:
    """Run Python as the Makefile does; see that only the program's own words reach the terminal."""
    # Without what this process has set.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "KERAS_"))}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def succeed(full: bool, module: str, *commands: Command) -> list[str]:
    """What several commands of a module print, one after the other.

    They share a process, which imports what they need once; with --full each has its own.
    """
    if full:
        return [python("-m", module, *each) for each in commands]
    calls = [f"assert main({[*map(str, each)]}) == 0" for each in commands]
    script = f"\nprint({NEXT!r})\n".join([f"from {module}.__main__ import main", *calls])
    strangers = {"beam_pipeline", "apache_beam", "trainer", "tensorflow"} - {module}
    strangers -= {"tensorflow"} if module == "trainer" else {"apache_beam"}
    script += f"\nimport sys; assert not {strangers} & set(sys.modules)"
    return python("-c", script).split(NEXT)[1:]


@pytest.fixture(scope="session")
def folder(made_once: Callable[..., Path], full: bool) -> Path:
    """Holds `sample`, `shards` (labeled), `unlabeled` (the sample's slices to predict)."""

    def make(folder: Path) -> None:
        sample = folder / "sample"
        patients = ("--patients", 6, "--test_patients", 2, "--slices", 12)
        python("-m", "examples.sample", "--output", sample, *patients)
        common = ("--image_size", 64, "--max_reject_fraction", 0.1)
        labeled = ("--labels", sample / "labels.csv", "--folds", 3, "--examples_per_shard", 16)
        inputs = (
            ("--input", sample / "slices", *labeled, "--output", folder / "shards"),
            ("--input", sample / "test_slices", "--output", folder / "unlabeled"),
        )
        succeed(full, "beam_pipeline", *((*common, *each) for each in inputs))

    return made_once("line", make)


def train_options(folder: Path) -> Command:
    """An epoch by the sample's settings, on smaller images; the run is in `run`."""
    options = ("--config", "examples/sample.toml", "--image_size", 32, "--epochs", 1)
    return ("train", "--shards", folder / "shards", "--run", folder / "run", *options)


@pytest.fixture(scope="session")
def told(folder: Path, made_once: Callable[..., Path], full: bool) -> dict[str, str]:
    """What each command of the trainer printed: train, predict and evaluate."""
    submission = ("--shards", folder / "unlabeled", "--output", folder / "submission.csv")
    commands: dict[str, Command] = {
        "train": train_options(folder),
        "predict": ("predict", "--run", folder / "run", *submission),
        "evaluate": ("evaluate", "--run", folder / "run"),
    }

    def make(path: Path) -> None:
        printed = succeed(full, "trainer", *commands.values())
        path.write_text(json.dumps(dict(zip(commands, printed, strict=True))))

    found: dict[str, str] = json.loads(made_once("told", make).read_text())
    return found


def manifest_of(shards: Path) -> Any:
    return json.loads((shards / "manifest.json").read_text())


def test_a_first_run_shows_the_rejects_at_work(folder: Path) -> None:
    counts = manifest_of(folder / "shards")["counts"]
    assert counts["rejected_by_reason"] == {
        "constant_image": 1,
        "duplicate_id": 1,
        "label_missing": 1,
        "not_dicom": 1,
        "truncated_pixels": 1,
    }
    assert counts["repaired"] == {"shift": 1}
    assert counts["resized"] == counts["written"]
    assert counts["files_seen"] == counts["written"] + counts["rejected"]


@pytest.mark.filterwarnings("ignore")  # of a library that is only a witness here
def test_tensorflow_datasets_reads_all_splits(folder: Path) -> None:
    import tensorflow_datasets as tfds

    manifest = manifest_of(folder / "shards")
    index = pd.read_parquet(folder / "shards" / "index.parquet").set_index("image_id")
    shards = headct.open(folder / "shards")
    builder = tfds.builder_from_directory(folder / "shards")
    assert set(builder.info.splits) == set(manifest["splits"])
    assert builder.info.supervised_keys == ("image", "label")
    for name, split in manifest["splits"].items():
        assert builder.info.splits[name].num_examples == split["examples"]
        examples = list(tfds.as_numpy(builder.as_dataset(split=name)))
        assert len(examples) == split["examples"]
        for example in examples:
            row = index.loc[example["image_id"].decode()]
            assert example["image"].shape == (64, 64, 3)
            assert example["image"].dtype == np.uint8
            read = shards[example["image_id"].decode()]["image"]
            np.testing.assert_array_equal(example["image"], read)
            labels = [row[f"label_{label}"] for label in manifest["labels"]]
            assert example["label"].tolist() == labels
            assert example["patient_id"].decode() == row["patient_id"]


def test_training_leaves_metrics_and_a_plot(folder: Path, told: dict[str, str]) -> None:
    assert told["train"].rstrip().endswith(f"Next: python -m trainer evaluate --run {folder}/run")
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    examples = manifest_of(folder / "shards")["splits"]["fold0"]["examples"]
    assert metrics["examples"] == examples
    assert 0 < metrics["weighted_log_loss"] < 10
    assert (folder / "run" / "history.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning")  # those of RSNA
def test_nothing_of_a_header_is_found_in_a_run(folder: Path, told: dict[str, str]) -> None:
    """None of the ids that the pipeline replaced, in any file of a run, its page among them."""
    words: set[str] = set()
    for path in (folder / "sample" / "slices").glob("*.dcm"):
        with contextlib.suppress(pydicom.errors.InvalidDicomError):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            words |= {str(header[name].value) for name in IDENTIFIERS if name in header}
    assert len(words) >= 3 * 6
    contents = {"stdout": json.dumps(told).encode()}
    for path in filter(Path.is_file, (folder / "run").rglob("*")):
        table = path.suffix == ".parquet"
        content = pd.read_parquet(path).to_csv().encode() if table else path.read_bytes()
        contents[path.name] = content
    assert "report.html" in contents
    assert b"ID_" in contents["predictions-fold0.parquet"]  # so an id would be found
    for name, content in contents.items():
        for word in words:
            assert word.encode() not in content, f"{word} in {name}"


def test_a_complete_run_says_so(folder: Path, told: dict[str, str]) -> None:
    assert "complete" not in told["train"]
    assert "complete" in python("-m", "trainer", *train_options(folder))


def test_shards_of_the_sample_are_trained_by_its_settings(folder: Path, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".trainer").touch()

    def train(*variables: str) -> str:
        """What `make train` starts Python with."""
        command = ["make", "train", f"VENV={tmp_path}", *variables]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout

    shards, sample = f"SHARDS={folder / 'shards'}", f"SAMPLE={folder / 'sample'}"
    shown = train(shards, sample, "EPOCHS=3")
    assert f"{folder / 'shards'} holds the sample: training by examples/sample.toml.\n" in shown
    assert "-m trainer train --config examples/sample.toml --shards=" in shown
    assert train(shards).startswith("-m trainer train --shards=")
    assert train(f"SHARDS={folder / 'none'}", sample).startswith("-m trainer train --shards=")


def test_a_saved_run_predicts_a_submission(folder: Path, told: dict[str, str]) -> None:
    assert "submission.csv" in told["predict"]
    manifest = manifest_of(folder / "unlabeled")
    rows = pd.read_csv(folder / "submission.csv")
    assert rows.columns.tolist() == ["ID", "Label"]
    assert len(rows) == 6 * manifest["splits"]["test"]["examples"] == 6 * 24
    assert rows["ID"].is_unique
    assert rows["Label"].between(0, 1).all()


def test_a_saved_run_is_evaluated(told: dict[str, str]) -> None:
    assert "subdural" in told["evaluate"]
    for name in ("train", "evaluate"):
        assert "where answering every slice with the training prevalence gives" in told[name]


class Here(Executor):
    """Does in this process what would start one that imports TensorFlow anew."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, call: Any, /, *arguments: Any, **named: Any) -> Any:
        done: Future[Any] = Future()
        done.set_result(call(*arguments, **named))
        return done


@pytest.fixture
def run_benchmark(
    full: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a benchmark in this process and with the small network; with --full as it is."""

    def run_here(module: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", Here)
        monkeypatch.setattr(small_network.MAKER, small_network.one_convolution)
        capsys.readouterr()
        runpy.run_module(module, run_name="__main__")
        return capsys.readouterr().out

    return (lambda module, *arguments: python("-m", module, *arguments)) if full else run_here


def test_the_trainers_input_is_measured_on_any_slices(
    folder: Path, run_benchmark: Callable[..., str]
) -> None:
    shown = run_benchmark(
        *("tests.benchmarks.trainer_input", "--shards", folder / "shards"),
        *("--dicom", folder / "sample" / "slices"),
        *("--image_size", 32, "--repeats", 1, "--copies", 1),
    )
    for way in ("(a) floor", "(b) ours", "(c) tutorial", "(d) dicom", "(e) cached at 32"):
        assert way in shown


def test_the_trainers_step_is_measured_on_any_slices(folder: Path) -> None:
    shown = python(
        *("-m", "tests.benchmarks.trainer_step", "--shards", folder / "shards"),
        *("--sizes", 64, "--precisions", "float32", "--steps", 2),
    )
    for way in ("(i) constant", "(ii) cached", "(iii) streamed"):
        assert f"| 64 float32 {way} | 8 |" in " ".join(shown.split())  # columns are aligned
    assert "killed and resumed: same figures" in shown
