"""Each example, run as its first lines say, on shards that the pipeline has just made.

A script runs in this process, which has what it imports, and with --full in one of its own.
"""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from nbclient import NotebookClient

from beam_pipeline.__main__ import main
from examples.sample import write_sample
from tests.benchmarks import random_access

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


@pytest.fixture(scope="session")
def shards(made_once: Callable[..., Path]) -> Path:
    """Of windows in `windows`, and of Hounsfield units in `hu`."""

    def make(folder: Path) -> None:
        sample = folder / "sample"
        write_sample(sample, patients=3, slices=4)
        given = ["--input", f"{sample}/slices", "--labels", f"{sample}/labels.csv", "--folds", "2"]
        given += ["--image_size", "64", "--max_reject_fraction", "0.6"]
        assert main([*given, "--output", f"{folder}/windows"]) == 0
        assert main([*given, "--output", f"{folder}/hu", "--hu"]) == 0

    return made_once("examples", make)


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


def test_a_volume_of_a_patient(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a volume of (" in run("examples/patient_slices.py", shards / "windows")
    monkeypatch.syspath_prepend(ROOT / "examples")
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


@pytest.mark.parametrize("kind", ["windows", "hu"])
def test_random_reads_equal_a_sequential_read(shards: Path, kind: str) -> None:
    folder, splits = shards / kind, ["fold0", "fold1"]
    example = load_example("shard_images")
    expected = examples_of(folder, splits)
    index = pd.read_parquet(folder / "index.parquet").sample(frac=1, random_state=0)
    images = example.ShardImages(folder, index)
    assert len(images) == len(expected)
    for image_id, (image, labels) in zip(index["image_id"], images, strict=True):
        assert (image.dtype, image.flags.writeable) == (images.dtype, True)
        np.testing.assert_array_equal(image, expected[image_id][0])
        assert labels.tolist() == expected[image_id][1]
    told = run("examples/shard_images.py", folder, *splits)
    assert told.startswith(f"{len(expected)} images; one in the middle: {images.shape}")


@pytest.mark.parametrize("kind", ["windows", "hu"])
def test_without_isal_images_are_the_same(
    shards: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = load_example("shard_images")
    monkeypatch.setitem(sys.modules, "isal", None)
    plain = load_example("shard_images")
    assert (fast.zlib.__name__, plain.zlib) == ("isal.isal_zlib", zlib)
    found = plain.read_splits(shards / kind, ["fold0"])
    expected = fast.read_splits(shards / kind, ["fold0"])
    for (image, _), (other, _) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(image, other)


def test_a_png_of_another_writer_is_an_error_rather_than_other_pixels(shards: Path) -> None:
    images = load_example("shard_images").read_splits(shards / "windows", ["fold0"])
    up = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    _, png = cv2.imencode(".png", images[0][0], up)
    with pytest.raises(ValueError, match="another writer"):
        images.decode(png.tobytes())


def test_a_mistyped_split_is_an_error_rather_than_no_images(shards: Path) -> None:
    read_splits = load_example("shard_images").read_splits
    with pytest.raises(ValueError, match=r"no split \['fold7'\]: there are \['fold0', 'fold1'\]"):
        read_splits(shards / "windows", ["fold0", "fold7"])


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"), [("windows", (3, 64, 64), "uint8"), ("hu", (1, 64, 64), "int32")]
)
def test_a_dataset_for_pytorch(
    shards: Path, kind: str, shape: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torch, which is five gigabytes: it takes anything that has a length and items.

    It warns of arrays that are not writable, and calculates with no uint16.
    """
    monkeypatch.syspath_prepend(ROOT / "examples")
    images = load_example("shard_images").read_splits(shards / kind, ["fold0"])
    dataset = load_example("pytorch_dataset").ShardDataset(images)
    assert len(dataset) == len(images)
    image, labels = dataset[1]
    assert (image.shape, image.dtype, image.flags.c_contiguous) == (shape, dtype, True)
    np.testing.assert_array_equal(image.transpose(1, 2, 0), images[1][0])
    assert (labels.shape, labels.dtype) == ((6,), np.float32)
    expected = labels.copy()
    labels += 1  # as smoothing them in place does
    image += 1
    np.testing.assert_array_equal(dataset[1][1], expected)


def test_a_dataset_is_read_by_several_processes_at_once(shards: Path) -> None:
    """Whether they are forked, as DataLoader's are by default, or get it pickled."""
    code = """if True:
        import multiprocessing, sys
        from pathlib import Path
        import numpy as np
        sys.path.insert(0, "examples")
        from pytorch_dataset import ShardDataset
        from shard_images import read_splits

        dataset = ShardDataset(read_splits(Path(sys.argv[1]), ["fold0", "fold1"]))
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


def test_the_benchmark_of_reading_compares_all_ways(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    images = load_example("shard_images").read_splits(shards / "windows", ["fold0"])
    ways = random_access.make_ways(images, tmp_path / "png")
    rows = random_access.tabulate(random_access.measure(ways, len(images), reads=2, repeats=1))
    assert [row[:2] for row in rows] == [(o, w) for o in ("random", "in order") for w in ways]
    assert [ways["(b) isal"](row).tolist() for row in range(len(images))] == [
        image.transpose(2, 0, 1).tolist() for image, _ in images
    ]
    ways["(b) isal"] = lambda row: ways["(c) zlib"](row) ^ 1
    with pytest.raises(AssertionError, match="Mismatched elements"):
        random_access.measure(ways, len(images), reads=2, repeats=1)


def test_random_access_needs_neither_tensorflow_nor_beam_nor_protobuf(shards: Path) -> None:
    code = (
        "import sys, runpy; sys.argv[1:] = sys.argv[2:]; "
        "runpy.run_path('examples/shard_images.py', run_name='__main__'); "
        "heavy = {'tensorflow', 'apache_beam', 'google.protobuf', 'keras', 'trainer'}; "
        "assert not heavy & {*sys.modules}, heavy & {*sys.modules}"
    )
    assert "images; one in the middle" in run("-c", code, "x", shards / "windows", "fold0")


def test_batches_for_jax(shards: Path) -> None:
    told = run("examples/jax_grain.py", shards / "windows", "fold0", "fold1").splitlines()
    examples = len(examples_of(shards / "windows", ["fold0", "fold1"]))
    sizes = [int(re.match(r"\((\d+), 64, 64, 3\) float32", line)[1]) for line in told]
    assert sum(sizes) == examples


def test_a_conversion_to_webdataset(shards: Path, tmp_path: Path) -> None:
    expected = examples_of(shards / "windows", ["fold0"])
    told = run("examples/webdataset_tars.py", shards / "windows", "fold0", tmp_path)
    assert told == f"{len(expected)} slices are in {tmp_path}\n"
    found = {}
    (path,) = tmp_path.glob("*.tar")
    with tarfile.open(path) as tar:
        for member in tar:
            found[member.name] = tar.extractfile(member).read()
    for image_id, (image, labels) in expected.items():
        np.testing.assert_array_equal(tf.io.decode_png(found[f"{image_id}.png"]), image)
        assert [*json.loads(found[f"{image_id}.json"])["labels"].values()] == labels


def test_a_notebook_from_shards_to_a_look_at_a_model(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    notebook = nbformat.read(ROOT / "examples" / "shards_to_model.ipynb", as_version=4)
    assert len(notebook.cells) == 10
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    for name, value in (("SHARDS", shards / "windows"), ("RUN", tmp_path / "run"), ("EPOCHS", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if not full:
        small = "from tests.trainer.small_network import put_in_place; put_in_place()"
        notebook.cells.insert(0, nbformat.v4.new_code_cell(small))
    NotebookClient(
        notebook, timeout=200, resources={"metadata": {"path": ROOT / "examples"}}
    ).execute()
    kinds = [output.output_type for cell in notebook.cells for output in cell.get("outputs", ())]
    assert "error" not in kinds
    images = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(images) == 2, "the slices and a ROC curve"


def test_windows_chosen_afterwards(shards: Path, run_script: RunScript) -> None:
    told = run_script("window_hounsfield.py", shards / "hu", "fold0")
    assert "brain (64, 64), uint8" in told
    lowest, highest = re.findall(r"(-?\d+) to (-?\d+) HU", told)[0]
    assert -1024 <= int(lowest) < -950, "air"
    assert 300 < int(highest) < 3000, "bone"
