"""Each example, run as its first lines say, on shards that the pipeline has just made.

A script runs in this process, which has what it imports, and with --full in one of its own.
"""

import importlib.util
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from nbclient import NotebookClient

import headct
from tests.benchmarks import random_access
from tests.processes import run_python

ROOT = Path(__file__).parents[1]
# Beam's own use of deprecated Python features; RSNA's UIDs, which are no valid UIDs.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*"),
    pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning"),
]


def run(*argv: Any) -> str:
    return run_python(*argv).stdout


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


@pytest.fixture
def shards(sample_shards: Path) -> Path:
    return sample_shards


def test_plain_tf_data(shards: Path, run_script: RunScript) -> None:
    manifest = json.loads((shards / "windows" / "manifest.json").read_text())
    examples = manifest["splits"]["fold1"]["examples"]
    told = run_script("tf_data.py", shards / "windows", "fold1")
    assert told == f"{examples} images of (64, 64, 3), uint8\n"


@pytest.mark.filterwarnings("ignore")  # of a library that is only a witness here
def test_tensorflow_datasets(shards: Path, run_script: RunScript) -> None:
    told = run_script("tfds_splits.py", shards / "windows")
    assert "'fold0'" in told
    assert "(64, 64, 3)" in told
    assert re.search(r"a batch: \(\d, 64, 64, 3\) positives: \{'epidural': \d+, ", told)


def examples_of(folder: Path, splits: list[str]) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Image and labels by the image id, read in sequence by TensorFlow."""
    manifest = json.loads((folder / "manifest.json").read_text())
    dtype = tf.as_dtype(manifest["image"]["dtype"])
    found = {}
    for split in splits:
        for shard in manifest["splits"][split]["shards"]:
            for record in tf.data.TFRecordDataset(str(folder / shard["file"])):
                feature = tf.train.Example.FromString(record.numpy()).features.feature
                image = tf.io.decode_png(feature["image"].bytes_list.value[0], dtype=dtype)
                image_id = feature["image_id"].bytes_list.value[0].decode()
                found[image_id] = image.numpy(), list(feature["label"].int64_list.value)
    return found


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"), [("windows", (3, 64, 64), "uint8"), ("hu", (1, 64, 64), "int32")]
)
def test_a_dataset_for_pytorch(shards: Path, kind: str, shape: tuple[int, ...], dtype: str) -> None:
    """Without torch, which is five gigabytes: it takes anything that has a length and items.

    It warns of arrays that are not writable, and calculates with no uint16.
    """
    images = headct.open(shards / kind, "fold0")
    dataset = load_example("pytorch_dataset").Tensors(images)
    assert len(dataset) == len(images)
    image, labels = dataset[1]
    assert (image.shape, image.dtype, image.flags.c_contiguous) == (shape, dtype, True)
    np.testing.assert_array_equal(image.transpose(1, 2, 0), images[1]["image"])
    assert (labels.shape, labels.dtype) == ((6,), np.float32)
    expected = labels.copy()
    labels += 1  # as smoothing them in place does
    image += 1
    np.testing.assert_array_equal(dataset[1][1], expected)
    (batched,) = dataset.__getitems__([1])
    np.testing.assert_equal(batched, dataset[1])


def test_a_dataset_is_read_by_several_processes_at_once(shards: Path) -> None:
    """Whether they are forked, as DataLoader's are by default, or get it pickled."""
    code = """if True:
        import multiprocessing, sys
        import numpy as np
        sys.path.insert(0, "examples")
        import headct
        from pytorch_dataset import Tensors

        dataset = Tensors(headct.open(sys.argv[1]))
        rows = [*range(len(dataset))] * 4
        expected = [dataset[row] for row in rows]
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(2) as pool:
                found = pool.map(dataset.__getitem__, rows, chunksize=1)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_equal(one, other)
            print(method, len(found))
    """
    slices = len(pd.read_parquet(shards / "windows" / "index.parquet"))
    assert run("-c", code, shards / "windows") == f"fork {4 * slices}\nspawn {4 * slices}\n"


def test_the_benchmark_of_reading_compares_all_ways(shards: Path, tmp_path: Path) -> None:
    images = headct.open(shards / "windows", "fold0")
    ways = random_access.make_ways(images, tmp_path / "png")
    rows = random_access.tabulate(random_access.measure(ways, len(images), reads=2, repeats=1))
    assert [row[:2] for row in rows] == [(o, w) for o in ("random", "in order") for w in ways]
    right = ways["(b) headct"]
    ways["(b) headct"] = lambda row: right(row) ^ 1
    with pytest.raises(AssertionError, match="Mismatched elements"):
        random_access.measure(ways, len(images), reads=2, repeats=1)


def test_batches_for_jax(shards: Path) -> None:
    told = run("examples/jax_grain.py", shards / "windows", "fold0", "fold1").splitlines()
    examples = len(examples_of(shards / "windows", ["fold0", "fold1"]))
    sizes = [int(re.match(r"\((\d+), 64, 64, 3\) float32", line)[1]) for line in told]
    assert sum(sizes) == examples


@pytest.mark.system
def test_both_notebooks(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """One after the other in one kernel, which loads TensorFlow once."""
    names = ("kaggle_colab", "shards_to_model")
    kaggle, notebook = (
        nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4) for name in names
    )
    cells = [*kaggle.cells, *notebook.cells]
    assert (len(kaggle.cells), len(notebook.cells)) == (12, 10)
    assert not any(cell.get("outputs") for cell in cells), "committed without outputs"
    work = tmp_path / "work"
    environment = {
        "INPUT": shards / "sample" / "slices", "LABELS": shards / "sample" / "labels.csv",
        "WORK": work, "PATIENTS": 2, "FOLDS": 2, "MAX_REJECT_FRACTION": 0.6,
        "MODEL": "smallresnet", "WEIGHTS": "none", "IMAGE_SIZE": 32, "BATCH": 2, "EPOCHS": 1,
        "SHARDS": shards / "windows", "RUN": tmp_path / "run", "PYTHONPATH": ROOT,
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    notebook.cells = cells
    if not full:
        small = "from tests.trainer.small_network import put_in_place; put_in_place()"
        notebook.cells.insert(0, nbformat.v4.new_code_cell(small))
    NotebookClient(
        notebook, timeout=200, resources={"metadata": {"path": ROOT / "examples"}}
    ).execute()
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert "error" not in [output.output_type for output in outputs]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 2, "the slices and a ROC curve"
    pages = [output.get("data", {}).get("text/html", "") for output in outputs]
    assert sum("&lt;title&gt;" in page for page in pages) == 2, "the card and the report"
    warned = [output for cell in kaggle.cells for output in cell.get("outputs", ())]
    assert not [output for output in warned if output.get("name") == "stderr"]
    assert "mean_roc_auc" in "".join(output.get("text", "") for output in outputs)
    manifest = json.loads((work / "shards" / "manifest.json").read_text())
    assert manifest["options"]["max_patients"] == 2


def test_windows_chosen_afterwards(shards: Path, run_script: RunScript) -> None:
    told = run_script("window_hounsfield.py", shards / "hu")
    assert "brain (64, 64), uint8" in told
    lowest, highest = re.findall(r"(-?\d+) to (-?\d+) HU", told)[0]
    assert -1024 <= int(lowest) < -950, "air"
    assert 300 < int(highest) < 3000, "bone"
