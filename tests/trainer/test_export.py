"""Each format gives the numbers that training wrote down."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from trainer.__main__ import main

FORMATS = "keras,saved_model,onnx"


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tf2onnx", reason="ONNX needs tf2onnx")
    folder = tmp_path_factory.mktemp("exported") / "export"
    assert main(["export", "--run", str(finished), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def examples(split_rows: dict[str, list[dict[str, Any]]], finished: Path) -> tuple[Any, Any]:
    """Images of the validation fold, and the probabilities that training wrote for them."""
    frame = pd.read_parquet(finished / "predictions-fold0.parquet").set_index("image_id")
    rows = split_rows["fold0"]
    columns = [f"probability_{name}" for name in ("upper", "lower", "any")]
    expected = frame.loc[[row["image_id"] for row in rows], columns].to_numpy()
    return np.stack([row["image"] for row in rows]), expected


ALONE = """
import sys
import keras
import numpy as np

model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict_on_batch(np.load(sys.argv[2])))
assert not any(name.startswith("trainer") for name in sys.modules)
"""


# With JAX, and there by default: test_other_processes.py.
@pytest.mark.full
def test_keras_alone_loads_it(exported: Path, examples: tuple[Any, Any], tmp_path: Path) -> None:
    images, expected = examples
    np.save(tmp_path / "images.npy", images)
    paths = [exported / "model.keras", tmp_path / "images.npy", tmp_path / "found.npy"]
    argv = [sys.executable, "-c", ALONE, *map(str, paths)]
    subprocess.run(argv, check=True, cwd=tmp_path, env=os.environ | {"KERAS_BACKEND": "tensorflow"})
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-5)


def test_saved_model(exported: Path, examples: tuple[Any, Any]) -> None:
    images, expected = examples
    model = tf.saved_model.load(str(exported / "saved_model"))
    np.testing.assert_allclose(model.serve(images).numpy(), expected, atol=1e-5)


def test_onnx(exported: Path, examples: tuple[Any, Any]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    images, expected = examples
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    (answered,) = session.run(None, {"image": images})
    np.testing.assert_allclose(answered, expected, atol=1e-5)


def test_temperatures_cool_the_answers(
    finished: Path, examples: tuple[Any, Any], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "temperatures.json").write_text(json.dumps({"upper": 2.0, "lower": 1.0, "any": 0.5}))
    argv = ["export", "--run", str(run), "--output", str(tmp_path / "e"), "--formats", "keras"]
    assert main([*argv, "--temperature"]) == 0
    images, expected = examples
    model = keras.models.load_model(tmp_path / "e" / "model.keras")
    logits = np.log(expected / (1 - expected)) / [2.0, 1.0, 0.5]
    np.testing.assert_allclose(model.predict_on_batch(images), 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_bad_input(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    cases = {
        ("--run", str(finished), "--output", str(tmp_path)): "exists and is not empty",
        ("--run", str(tmp_path), "--output", str(tmp_path / "e")): "no run.json",
        ("--run", "r", "--output", "o", "--formats", "keras,pickle"): "--formats keras,pickle",
    }
    for case, message in cases.items():
        assert main(["export", *case]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
