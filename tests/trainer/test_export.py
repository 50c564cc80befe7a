"""Each format gives the numbers that `predict` gives, or is not written."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import combinations
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import tensorflow as tf

from beam_pipeline.images.convert import HU_OFFSET, PADDING_HU, render
from headct.manifest import ImageSpec
from headct.windows import VoiFunction, Window
from trainer.__main__ import main
from trainer.evaluation import export
from trainer.files import this_machine
from trainer.networks.image_layers import Normalize
from trainer.networks.model import build_classifier
from trainer.networks.saved_models import in_float32, load_classifier
from trainer.options import TrainOptions
from trainer.runs import evaluation_setup

FORMATS = ("keras", "saved_model", "onnx")
COMBINATIONS = [",".join(chosen) for count in (1, 2, 3) for chosen in combinations(FORMATS, count)]
ALL = ",".join(FORMATS)


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


# In float32 each format is looked at below, by default: see `exported`.
PRECISIONS = [pytest.param("float32", marks=pytest.mark.full), "mixed_float16", "mixed_bfloat16"]


@pytest.fixture(scope="module", params=PRECISIONS)
def run_of(
    request: pytest.FixtureRequest, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run that computed in each precision, with a model that answers images differently."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(finished / "run.json", folder)
    image = ImageSpec(**json.loads((finished / "run.json").read_text())["shards"]["image"])
    options = TrainOptions(shards="s", run="r", model="smallresnet", weights="none", image_size=32)
    model = build_classifier(options, image, (0.1, 0.3, 0.5), request.param).model
    trained = load_classifier(finished / "model.keras")
    model.set_weights(trained.get_weights())
    model.save(folder / "model.keras")
    return folder, request.param.removeprefix("mixed_")


@pytest.mark.parametrize(
    "formats",
    [each if each == ALL else pytest.param(each, marks=pytest.mark.full) for each in COMBINATIONS],
)
def test_every_precision_in_every_combination(
    run_of: tuple[Path, str],
    formats: str,
    examples: tuple[Any, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    run, precision = run_of
    argv = ["export", "--run", str(run), "--output", str(tmp_path / "e"), "--formats", formats]
    assert main(argv) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert f"what `predict` answers in {precision}" in told.out
    wanted = {export.FILES[each] for each in formats.split(",")} | {"description.json"}
    assert {each.name for each in (tmp_path / "e").iterdir()} == wanted
    images, expected = examples  # of the same weights in float32
    for name in formats.split(","):
        found = export.answer(name, tmp_path / "e" / export.FILES[name], images)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    compared = json.loads((tmp_path / "e" / "description.json").read_text())["compared"]
    assert (compared["images"], compared["kind"]) == (11, "slices of fold0")
    assert compared["precision"] == precision
    assert (compared["largest_difference"] > 1e-6) == (precision != "float32")


def test_a_copy_in_float32_computes_in_float32(run_of: tuple[Path, str]) -> None:
    run, precision = run_of
    model = load_classifier(run / "model.keras")
    assert model.get_layer("core").get_layer("pool").compute_dtype == precision
    copy = in_float32(model)
    assert {each.compute_dtype for each in copy._flatten_layers()} == {"float32"}
    for one, other in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_answers_otherwise_is_not_written(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["export", "--run", str(finished), "--output", str(tmp_path / "e"), "--formats"]
    real = Normalize.portable
    with monkeypatch.context() as patch:
        patch.setattr(Normalize, "portable", lambda *given: real(*given) + 0.01)
        assert main([*argv, "keras"]) == 2
    assert "float32: the exported model differs from `predict` by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

    def write_another(model: Any, name: str, path: Path) -> None:
        weights = model.get_weights()
        model.set_weights([each * 1.01 for each in weights])
        try:
            model.save(path)
        finally:
            model.set_weights(weights)

    monkeypatch.setattr(export, "write_format", write_another)
    (tmp_path / "e").mkdir()
    assert main([*argv, "keras"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "trainer: --formats keras: the exported model differs from `predict` by"
    )
    assert error.count("\n") == 1
    assert not list((tmp_path / "e").iterdir())


@pytest.mark.parametrize("package", ["onnx", "tf2onnx", "onnxruntime"])
def test_what_is_not_installed_is_said_before_anything_is_written(
    finished: Path,
    tmp_path: Path,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = evaluation_setup.find_spec
    monkeypatch.setattr(
        evaluation_setup, "find_spec", lambda name: None if name == package else there(name)
    )
    argv = ["export", "--run", str(finished), "--output", str(tmp_path / "e")]
    assert main(argv) == 2
    assert capsys.readouterr().err == (
        f"trainer: --formats onnx: {package} is not installed; `make export` brings it, and so does"
        " the extra `onnx`: pip install 'headct-shards[onnx]'\n"
    )
    assert not list(tmp_path.iterdir())
    assert main([*argv, "--formats", "keras"]) == 0


def test_make_export_installs_what_is_needed() -> None:
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert {"onnx", "tf2onnx", "onnxruntime"} <= {*project["optional-dependencies"]["onnx"]}
    makefile = (root / "Makefile").read_text()
    assert "$(VENV)/.onnx: EXTRAS = [$(TENSORFLOW),onnx]\n" in makefile
    assert "\nexport: $(VENV)/.onnx " in makefile


def test_without_its_shards_noise_is_compared(
    finished: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    description = json.loads((run / "run.json").read_text())
    description["shards"]["path"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(description))
    argv = ["export", "--run", str(run), "--formats", "keras", "--output"]
    assert main([*argv, str(tmp_path / "a")]) == 0
    told = capsys.readouterr().out
    assert told.startswith("no slices to try the model on, noise instead; --shards names some (")
    assert "on 16 images of noise" in told
    assert main([*argv, str(tmp_path / "b"), "--shards", str(shards)]) == 0
    assert "on 11 slices of fold0" in capsys.readouterr().out
    assert main([*argv, str(tmp_path / "c"), "--shards", str(tmp_path / "gone")]) == 2
    assert not (tmp_path / "c").exists()


def test_what_a_killed_export_left_is_no_content(finished: Path, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".export-{this_machine()}-{ended.pid}" / "saved_model"
    left.mkdir(parents=True)
    argv = ["export", "--run", str(finished), "--output", str(tmp_path), "--formats", "keras"]
    assert main(argv) == 0
    assert {each.name for each in tmp_path.iterdir()} == {"model.keras", "description.json"}


def test_names_are_those_of_the_description(exported: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="ONNX needs onnx")
    described = json.loads((exported / "description.json").read_text())
    model = onnx.load(exported / described["files"]["onnx"])
    for tensor, told in ((model.graph.input, "input"), (model.graph.output, "output")):
        (only,) = tensor
        assert only.name == described[told]["name"]
        sides = [each.dim_param or each.dim_value for each in only.type.tensor_type.shape.dim]
        assert sides == ["batch", *described[told]["shape"][1:]]
    versions = {each.domain: each.version for each in model.opset_import}
    assert versions[""] == described["opset"]
    saved = tf.saved_model.load(str(exported / described["files"]["saved_model"]))
    signature = saved.signatures[described["saved_model_signature"]]
    assert list(signature.structured_outputs) == [described["output"]["name"]]
    assert list(signature.structured_input_signature[1]) == [described["input"]["name"]]
    loaded = keras.models.load_model(exported / described["files"]["keras"])
    assert [each.name for each in loaded.inputs] == [described["input"]["name"]]
    assert loaded.output_names == [described["output"]["name"]]
    assert described["labels"] == ["upper", "lower", "any"]
    assert [each["name"] for each in described["channels"]] == ["brain", "subdural", "bone"]
    assert described["calibration"] is None


def test_the_page_has_every_key(exported: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", page.partition("## Exported models")[2], re.M)
    described = json.loads((exported / "description.json").read_text())
    assert {name for name, _ in rows} == set(described)
    for name, text in rows:
        if name in ("input", "output", "preparation", "compared"):
            assert set(described[name]) <= set(re.findall(r"`(\w+)`", text)), name


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
    kept = {"upper": 2.0, "lower": 1.0, "any": {"temperature": 0.5, "bias": -1.0}}
    (run / "temperatures.json").write_text(json.dumps(kept))
    argv = ["export", "--run", str(run), "--output", str(tmp_path / "e"), "--formats", "keras"]
    assert main([*argv, "--temperature"]) == 0
    images, expected = examples
    model = keras.models.load_model(tmp_path / "e" / "model.keras")
    described = json.loads((tmp_path / "e" / "description.json").read_text())
    assert described["calibration"] == {
        "temperatures": {"upper": 2.0, "lower": 1.0, "any": 0.5},
        "biases": {"upper": 0.0, "lower": 0.0, "any": -1.0},
    }
    logits = np.log(expected / (1 - expected)) / [2.0, 1.0, 0.5] + [0, 0, -1]
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


HOUNSFIELD = np.concatenate([np.arange(-1100, 3100), np.linspace(-5, 95, 401), [-4000.0, 70000.0]])


def compute(formula: str, **values: Any) -> npt.NDArray[Any]:
    names = {name: getattr(np, name) for name in ("clip", "exp", "floor", "maximum")}
    return np.asarray(eval(formula, {"__builtins__": {}}, names | values))


@pytest.mark.parametrize("function", list(VoiFunction))
@pytest.mark.parametrize("window", [Window("brain", 40, 80), Window("thin", 1.5, 0.5)])
def test_gray_levels_are_those_of_the_pipeline(function: VoiFunction, window: Window) -> None:
    expected = render(HOUNSFIELD, (window,), (function,))[..., 0]
    formula = export.FORMULAS[function]
    found = compute(formula, hu=HOUNSFIELD, center=window.center, width=window.width)
    np.testing.assert_array_equal(found, expected)


def test_hounsfield_units_are_those_of_the_pipeline() -> None:
    expected = render(HOUNSFIELD, (), ())[..., 0]
    found = compute(export.FORMULAS["hu"], hu=HOUNSFIELD, hu_offset=HU_OFFSET)
    np.testing.assert_array_equal(found, expected)


def test_the_padding_is_that_of_the_pipeline() -> None:
    assert export.PADDING_HU == PADDING_HU
