"""Each example, run as its first lines say, on shards that the pipeline has just made.

A script runs in this process, which has what it imports, and with --full in one of its own.
"""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from beam_pipeline.__main__ import main
from examples.sample import write_sample

ROOT = Path(__file__).parents[1]
# Beam's own use of deprecated Python features; RSNA's UIDs, which are no valid UIDs.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*"),
    pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning"),
]


def run(*argv: Any) -> str:
    command = [sys.executable, *map(str, argv)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


RunScript = Callable[..., str]


@pytest.fixture
def run_script(
    full: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunScript:
    """Runs an example by its name; what it prints."""

    def run_here(name: str, *argv: Any) -> str:
        path = str(ROOT / "examples" / name)
        monkeypatch.setattr(sys, "argv", [path, *map(str, argv)])
        capsys.readouterr()
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return (lambda name, *argv: run(f"examples/{name}", *argv)) if full else run_here


def load_example(name: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of windows in `windows`, and of Hounsfield units in `hu`."""
    folder = tmp_path_factory.mktemp("examples")
    sample = folder / "sample"
    write_sample(sample, patients=3, slices=4)
    given = ["--input", f"{sample}/slices", "--labels", f"{sample}/labels.csv", "--folds", "2"]
    given += ["--image_size", "64", "--max_reject_fraction", "0.6"]
    assert main([*given, "--output", f"{folder}/windows"]) == 0
    assert main([*given, "--output", f"{folder}/hu", "--hu"]) == 0
    return folder


def test_plain_tf_data(shards: Path, run_script: RunScript) -> None:
    manifest = json.loads((shards / "windows" / "manifest.json").read_text())
    examples = manifest["splits"]["fold1"]["examples"]
    told = run_script("tf_data.py", shards / "windows", "fold1")
    assert told == f"{examples} images of (64, 64, 3), uint8\n"


@pytest.mark.filterwarnings("ignore")  # of a library that is only a witness here
def test_tensorflow_datasets(shards: Path, run_script: RunScript) -> None:
    told = run_script("tfds_splits.py", shards / "windows")
    assert "'fold0'" in told
    assert "a slice: (64, 64, 3) labels [" in told


def test_a_volume_of_a_patient(shards: Path) -> None:
    assert "a volume of (" in run("examples/patient_slices.py", shards / "windows")
    volume = load_example("patient_slices").volume
    index = pd.read_parquet(shards / "windows" / "index.parquet")
    patient = index["patient_id"].iloc[0]
    rows = index[index["patient_id"] == patient].sort_values("position_z")
    found = volume(shards / "windows", patient)
    assert found.shape == (len(rows), 64, 64, 3)
    for image, (_, row) in zip(found, rows.iterrows(), strict=True):
        records = tf.data.TFRecordDataset(str(shards / "windows" / row["shard"]))
        record = next(iter(records.skip(row["record"]))).numpy()
        png = tf.train.Example.FromString(record).features.feature["image"].bytes_list.value[0]
        np.testing.assert_array_equal(image, tf.io.decode_png(png).numpy())


def test_random_access_for_pytorch(shards: Path) -> None:
    """Without torch, which is five gigabytes: it takes anything that has a length and items."""
    found = load_example("pytorch_dataset").ShardDataset(shards / "windows", ["fold0", "fold1"])
    manifest = json.loads((shards / "windows" / "manifest.json").read_text())
    expected = {}
    for split in ("fold0", "fold1"):
        for shard in manifest["splits"][split]["shards"]:
            for record in tf.data.TFRecordDataset(str(shards / "windows" / shard["file"])):
                feature = tf.train.Example.FromString(record.numpy()).features.feature
                image = tf.io.decode_png(feature["image"].bytes_list.value[0]).numpy()
                expected[image.tobytes()] = list(feature["label"].int64_list.value)
    order = np.random.default_rng(0).permutation(len(found))
    read = [found[row] for row in order]
    assert all(image.shape == (3, 64, 64) and image.dtype == np.uint8 for image, _ in read)
    keys = {image.transpose(1, 2, 0).tobytes(): labels.tolist() for image, labels in read}
    assert len(read) == len(expected)
    assert keys == expected


def test_windows_chosen_afterwards(shards: Path, run_script: RunScript) -> None:
    told = run_script("window_hounsfield.py", shards / "hu", "fold0")
    assert "brain (64, 64), uint8" in told
    lowest, highest = re.findall(r"(-?\d+) to (-?\d+) HU", told)[0]
    assert -1024 <= int(lowest) < -950, "air"
    assert 300 < int(highest) < 3000, "bone"
