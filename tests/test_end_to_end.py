"""The whole line as a user runs it: sample, pipeline, trainer, and a stranger's reader."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest

ROOT = Path(__file__).parent.parent
IDENTIFIERS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` as the Makefile does, without what this process has set."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "KERAS_"))}
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(*arguments: object) -> str:
    """Run, and see that nothing but the program's own words reached the terminal."""
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `sample`, `shards` (labeled), `unlabeled` (the sample's slices to predict)."""
    folder = tmp_path_factory.mktemp("line")
    sample, shards = folder / "sample", folder / "shards"
    patients = ("--patients", 6, "--test_patients", 2, "--slices", 12)
    succeed("examples.sample", "--output", sample, *patients)
    common = ("--image_size", 64, "--max_reject_fraction", 0.1)
    labeled = ("--labels", sample / "labels.csv", "--folds", 3, "--examples_per_shard", 16)
    succeed("beam_pipeline", "--input", sample / "slices", *common, *labeled, "--output", shards)
    test = ("--input", sample / "test_slices", "--output", folder / "unlabeled")
    succeed("beam_pipeline", *common, *test)
    return folder


def train(folder: Path) -> str:
    """Train an epoch by the sample's settings, on smaller images; the run is in `run`."""
    options = ("--config", "examples/sample.toml", "--image_size", 32, "--epochs", 1)
    return succeed(
        "trainer", "train", "--shards", folder / "shards", "--run", folder / "run", *options
    )


@pytest.fixture(scope="module")
def trained(folder: Path) -> str:
    """What training printed."""
    return train(folder)


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
            labels = [row[f"label_{label}"] for label in manifest["labels"]]
            assert example["label"].tolist() == labels
            assert example["patient_id"].decode() == row["patient_id"]


def test_training_leaves_metrics_and_a_plot(folder: Path, trained: str) -> None:
    assert trained.endswith(f"Next: make evaluate RUN={folder}/run\n")
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    examples = manifest_of(folder / "shards")["splits"]["fold0"]["examples"]
    assert metrics["examples"] == examples
    assert 0 < metrics["weighted_log_loss"] < 10
    assert (folder / "run" / "history.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning")  # those of RSNA
def test_nothing_of_a_header_is_found_in_a_run(folder: Path, trained: str) -> None:
    """None of the ids that the pipeline replaced, in any file of a run, its page among them."""
    words: set[str] = set()
    for path in (folder / "sample" / "slices").glob("*.dcm"):
        with contextlib.suppress(pydicom.errors.InvalidDicomError):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            words |= {str(header[name].value) for name in IDENTIFIERS if name in header}
    assert len(words) >= 3 * 6
    contents = {"stdout": trained.encode()}
    for path in filter(Path.is_file, (folder / "run").rglob("*")):
        table = path.suffix == ".parquet"
        content = pd.read_parquet(path).to_csv().encode() if table else path.read_bytes()
        contents[path.name] = content
    assert "report.html" in contents
    assert b"ID_" in contents["predictions-fold0.parquet"]  # so an id would be found
    for name, content in contents.items():
        for word in words:
            assert word.encode() not in content, f"{word} in {name}"


def test_a_complete_run_says_so(folder: Path, trained: str) -> None:
    assert "complete" in train(folder)


def train_command(*variables: str) -> str:
    """The commands that `make train` would run."""
    done = subprocess.run(
        ["make", "-n", "train", *variables], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_shards_of_the_sample_are_trained_by_its_settings(folder: Path) -> None:
    shards, sample = f"SHARDS={folder / 'shards'}", f"SAMPLE={folder / 'sample'}"
    assert "--config examples/sample.toml --epochs 3 --seed 7" in " ".join(
        train_command(shards, sample, "EPOCHS=3", "ARGS=--seed 7").split()
    )
    assert "--config" not in train_command(shards)
    assert "--config" not in train_command(f"SHARDS={folder / 'none'}", sample)


def test_a_saved_run_predicts_a_submission(folder: Path, trained: str) -> None:
    submission = folder / "submission.csv"
    succeed(
        *("trainer", "predict", "--run", folder / "run"),
        *("--shards", folder / "unlabeled", "--output", submission),
    )
    manifest = manifest_of(folder / "unlabeled")
    rows = pd.read_csv(submission)
    assert rows.columns.tolist() == ["ID", "Label"]
    assert len(rows) == 6 * manifest["splits"]["test"]["examples"] == 6 * 24
    assert rows["ID"].is_unique
    assert rows["Label"].between(0, 1).all()


def test_a_saved_run_is_evaluated(folder: Path, trained: str) -> None:
    shown = succeed("trainer", "evaluate", "--run", folder / "run")
    assert "subdural" in shown
    assert "where answering every slice with the training prevalence gives" in shown
    assert "where answering every slice with the training prevalence gives" in trained


def test_the_trainers_benchmarks_run_on_any_slices(folder: Path) -> None:
    shards = ("--shards", folder / "shards")
    shown = succeed(
        *("tests.benchmarks.trainer_input", *shards, "--dicom", folder / "sample" / "slices"),
        *("--image_size", 32, "--repeats", 1, "--copies", 1),
    )
    for way in ("(a) floor", "(b) ours", "(c) tutorial", "(d) dicom", "(e) cached at 32"):
        assert way in shown
    shown = succeed(
        *("tests.benchmarks.trainer_step", *shards, "--epochs", 2),
        *("--ways", "cached", "--sizes", 64, "--precisions", "float32"),
    )
    assert "64 float32 (iii) cached" in shown
