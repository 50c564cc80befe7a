"""Each example, run as its first lines say, on shards that the pipeline has just made."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

ROOT = Path(__file__).parents[1]


def run(*argv: Any) -> str:
    command = [sys.executable, *map(str, argv)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of windows in `windows`, and of Hounsfield units in `hu`."""
    folder = tmp_path_factory.mktemp("examples")
    sample = folder / "sample"
    run("-m", "examples.sample", "--output", sample, "--patients", 3, "--slices", 4)
    given = ["--input", sample / "slices", "--labels", sample / "labels.csv", "--folds", 2]
    given += ["--image_size", 64, "--max_reject_fraction", 0.6]
    run("-m", "beam_pipeline", *given, "--output", folder / "windows")
    run("-m", "beam_pipeline", *given, "--output", folder / "hu", "--hu")
    return folder


def test_plain_tf_data(shards: Path) -> None:
    manifest = json.loads((shards / "windows" / "manifest.json").read_text())
    examples = manifest["splits"]["fold1"]["examples"]
    told = run("examples/tf_data.py", shards / "windows", "fold1")
    assert told == f"{examples} images of (64, 64, 3), uint8\n"


def test_tensorflow_datasets(shards: Path) -> None:
    told = run("examples/tfds_splits.py", shards / "windows")
    assert "'fold0'" in told
    assert "a slice: (64, 64, 3) labels [" in told


def test_a_volume_of_a_patient(shards: Path) -> None:
    assert "a volume of (" in run("examples/patient_slices.py", shards / "windows")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from patient_slices import volume  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(ROOT / "examples"))
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


def test_windows_chosen_afterwards(shards: Path) -> None:
    told = run("examples/window_hounsfield.py", shards / "hu", "fold0")
    assert "brain (64, 64), uint8" in told
    lowest, highest = re.findall(r"(-?\d+) to (-?\d+) HU", told)[0]
    assert -1024 <= int(lowest) < -950, "air"
    assert 300 < int(highest) < 3000, "bone"
