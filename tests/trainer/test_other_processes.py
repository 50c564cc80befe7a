"""What needs a process of its own: another backend, and SIGKILL."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from trainer.__main__ import main

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
FLAGS = ("--deterministic", "--no-report")
# Within an epoch and between two updates, of two steps each; the others are at random.
KILLS, ALL_KILLS = (7,), (1, 5, 7, 13, 14)
LABELS = ("upper", "lower", "any")


def command(name: str, **options: Any) -> list[str]:
    return [name, *(f"--{key}={value}" for key, value in options.items())]


def script(full: bool, backend: str, *commands: list[str]) -> str:
    """What does commands of the trainer, one after the other, as with `short_training`."""
    lines = [f"assert main({each!r}) == 0" for each in commands]
    if not full:
        lines.insert(0, f"small_network.put_in_place('one_convolution', {backend!r})")
    imports = ("from tests.trainer import small_network", "from trainer.__main__ import main")
    return "\n".join([*imports, *lines])


def run(code: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ | variables,
    )  # fmt: skip


# JAX, whose process does one after the other

# From Python, where Keras is not loaded yet.
FROM_PYTHON = """
import json, os, sys
from pathlib import Path
import trainer
from headct.errors import UsageError

def small(shape):
    import keras
    return keras.Sequential([keras.Input(shape), keras.layers.Conv2D(4, 3, 2)])

shards, run, options, exported, images, answers = sys.argv[1:]
run, options = Path(run), json.loads(options)
options["model"] = small
trainer.train_run(shards=shards, run=run, backend="jax", **options)
assert "KERAS_BACKEND" not in os.environ
import keras

assert keras.backend.backend() == "jax"
assert json.loads((run / "run.json").read_text())["options"]["backend"] == "jax"
assert json.loads((run / "machine.json").read_text())["backend"] == "jax"
training = {"shards": shards, **options}
for begin, given in ((trainer.train_run, training), (trainer.evaluate_run, {})):
    try:
        begin(run=run, backend="tensorflow", **given)
    except UsageError as error:
        print(error)
"""
# Keras without the trainer: none of its modules can be imported, and none of its classes is known.
ALONE = """
import numpy as np

hidden = {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith("trainer")}
sys.modules["trainer"] = None
classes = keras.saving.get_custom_objects()
known = dict(classes)
classes.clear()
np.save(answers, keras.models.load_model(exported).predict_on_batch(np.load(images)))
classes.update(known)
sys.modules.update(hidden)
os.environ["KERAS_BACKEND"] = "jax"
"""
# The tests below know nothing of the devices on which training shared its batches.
TESTS = """
import pytest

keras.distribution.set_distribution(None)
names = ("answers", "augment", "averaging", "feeds", "half_precision", "resume")
files = [f"tests/trainer/test_{name}.py" for name in names]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *FULL, *files]))
"""


@dataclass(frozen=True)
class WithJax:
    """What came of the process, in whose folder `finished` and a new run are."""

    folder: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def with_jax(
    shards: Path,
    tiny: dict[str, Any],
    finished: Path,
    split_rows: dict[str, list[dict[str, Any]]],
    tmp_path_factory: pytest.TempPathFactory,
    full: bool,
) -> WithJax:
    """A training from Python, answers of an exported model, an evaluation, and more."""
    pytest.importorskip("jax", reason="the JAX backend needs jax")
    folder = tmp_path_factory.mktemp("jax")
    export = ["--run", str(finished), "--output", str(folder / "export"), "--formats", "keras"]
    assert main(["export", *export]) == 0
    np.save(folder / "images.npy", [row["image"] for row in split_rows["fold0"]])
    (folder / "run").mkdir()
    for name in ("run.json", "model.keras"):
        (folder / "run" / name).write_bytes((finished / name).read_bytes())
    slices = shutil.copytree(finished, folder / "slices")
    few = {"kind": "gru", "epochs": 2, "units": 8, "scans_a_step": 2, "crop": 4}
    options = tiny | {"epochs": 1, "image_size": 16, "cache": "device", "ema": 0.5}
    commands = (
        command("evaluate", run=folder / "run", backend="jax"),
        [*command("train_scans", run=slices, backend="jax", **few), FLAGS[1]],
        [*command("train", shards=shards, run=folder / "new", backend="jax", **options), FLAGS[1]],
    )
    code = FROM_PYTHON + ALONE + script(full, "jax", *commands)
    code += f"\nFULL = {['--full'] * full}" + TESTS
    own = json.dumps(tiny | {"epochs": 1, "image_size": 16, "report": False})
    files = (folder / "export/model.keras", folder / "images.npy", folder / "answers.npy")
    variables = {
        # Four devices, which share each batch.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        # What several trainings have in common is compiled once.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = run(code, shards, folder / "python", own, *files, **variables)
    return WithJax(folder, done)


def probabilities_of(run: Path, ids: list[str]) -> Any:
    """Those of fold0, [N, 3], in the order of the images' ids."""
    frame = pd.read_parquet(run / "predictions-fold0.parquet").set_index("image_id")
    assert len(frame) == len(ids)
    return frame.loc[ids, [f"probability_{label}" for label in LABELS]].to_numpy()


@pytest.fixture
def expected(finished: Path, split_rows: dict[str, list[dict[str, Any]]]) -> Any:
    """What TensorFlow answers."""
    return probabilities_of(finished, [row["image_id"] for row in split_rows["fold0"]])


def test_keras_alone_loads_an_exported_model_with_jax(with_jax: WithJax, expected: Any) -> None:
    assert (with_jax.folder / "answers.npy").exists(), with_jax.done.stderr
    found = np.load(with_jax.folder / "answers.npy")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_jax_gives_the_same_logits_and_trains(
    with_jax: WithJax, expected: Any, split_rows: dict[str, list[dict[str, Any]]]
) -> None:
    assert with_jax.done.stderr == ""
    assert "jax on 4 devices" in with_jax.done.stdout
    found = probabilities_of(
        with_jax.folder / "run", [row["image_id"] for row in split_rows["fold0"]]
    )
    one, other = (np.log(each / (1 - each)) for each in (expected, found))
    np.testing.assert_allclose(one, other, atol=1e-4)
    trained = json.loads((with_jax.folder / "new" / "metrics.json").read_text())
    assert trained["examples"] == 21


def test_a_scan_model_trained_with_jax_answers_with_tensorflow(with_jax: WithJax) -> None:
    scans = with_jax.folder / "slices" / "scans"
    trained = json.loads((scans / "metrics.json").read_text())
    assert json.loads((scans / "machine.json").read_text())["backend"] == "jax"
    assert main(["evaluate", "--run", str(scans)]) == 0
    found = json.loads((scans / "evaluation-fold0.json").read_text())
    assert found["weighted_log_loss"] == pytest.approx(trained["weighted_log_loss"], rel=1e-4)


def test_what_differs_between_backends_holds_with_jax(with_jax: WithJax) -> None:
    assert with_jax.done.returncode == 0, with_jax.done.stdout
    assert "2 skipped" in with_jax.done.stdout, "what is said of TensorFlow alone"


def test_from_python_what_is_recorded_is_what_computed(with_jax: WithJax) -> None:
    line = "--backend tensorflow: Keras was loaded with jax in this process; choose jax, or begin a"
    assert with_jax.done.stdout.count(line) == 2, with_jax.done.stderr


# SIGKILL


def newest_step(folder: Path, per_epoch: int) -> int:
    """Steps that the newest checkpoint has behind it."""
    found = [re.findall(r"\d+", path.name) for path in folder.glob("epoch-*.npz")]
    return max((int(epoch) * per_epoch + int(step) for epoch, step in found), default=-1)


# In float16 there is all that there is in float32, and the scale of the loss.
@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.full), "float16"])
def test_killed_at_random_steps_it_ends_as_if_undisturbed(
    shards: Path,
    tiny: dict[str, Any],
    tmp_path: Path,
    precision: str,
    full: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = tiny | {"checkpoint_steps": 1, "epochs": 3, "ema": 0.9, "accumulate": 2}
    options |= {"precision": precision, "sampling": "balanced"}
    broken, whole = (
        [*command("train", shards=shards, run=tmp_path / name, **options), *FLAGS]
        for name in ("broken", "whole")
    )
    for step in ALL_KILLS if full else KILLS:
        process = subprocess.Popen(
            [sys.executable, "-c", script(full, "tensorflow", broken)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            # TensorFlow says of some processors that float16 is slow on them.
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        while newest_step(tmp_path / "broken" / "checkpoints", 5) < step:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    # This process resumes what the other began.
    assert main(broken) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "resumes after" in told.out
    assert main(whole) == 0
    assert "resumes" not in capsys.readouterr().out
    for name in ("history.json", "metrics.json"):
        one, other = (read(tmp_path / folder / name) for folder in ("broken", "whole"))
        assert one == other


def read(path: Path) -> Any:
    """The figures that do not depend on the machine's speed."""

    def without_times(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {k: v for k, v in pairs if k not in ("images_per_second", "input_wait")}

    return json.loads(path.read_text(), object_pairs_hook=without_times)
