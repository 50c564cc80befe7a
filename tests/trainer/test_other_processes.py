"""What needs a process of its own: another backend, and SIGKILL."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
FLAGS = ("--deterministic", "--no-report")
KILLS, ALL_KILLS = 1, 5


def command(name: str, **options: Any) -> list[str]:
    flags = [f"--{key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", "trainer", name, *flags]


def run(argv: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ | variables
    )


def in_one_process(*commands: list[str]) -> list[str]:
    """A command that does several, one after the other, and imports what they need once."""
    calls = "; ".join(f"assert main({each[3:]!r}) == 0" for each in commands)
    return [sys.executable, "-c", f"from trainer.__main__ import main; {calls}"]


def test_jax_gives_the_same_logits_and_trains(
    shards: Path, tiny: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    pytest.importorskip("jax", reason="the JAX backend needs jax")
    before = pd.read_parquet(finished / "predictions-fold0.parquet")
    (tmp_path / "run").mkdir()
    for name in ("run.json", "model.keras"):
        (tmp_path / "run" / name).write_bytes((finished / name).read_bytes())
    options = tiny | {"epochs": 1, "image_size": 16, "cache": "device", "ema": 0.5}
    lines = [
        command("evaluate", run=tmp_path / "run", backend="jax"),
        [
            *command("train", shards=shards, run=tmp_path / "jax", backend="jax", **options),
            "--no-report",
        ],
    ]
    # Two devices, which share each batch.
    devices = "--xla_force_host_platform_device_count=2"
    done = run(in_one_process(*lines), XLA_FLAGS=devices)
    assert (done.returncode, done.stderr) == (0, "")
    assert "jax on 2 devices" in done.stdout
    after = pd.read_parquet(tmp_path / "run" / "predictions-fold0.parquet")
    assert before["image_id"].tolist() == after["image_id"].tolist()
    for label in ("upper", "lower", "any"):
        one, other = (
            np.log(frame[f"probability_{label}"] / (1 - frame[f"probability_{label}"]))
            for frame in (before, after)
        )
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert json.loads((tmp_path / "jax" / "metrics.json").read_text())["examples"] == 21


def test_what_differs_between_backends_holds_with_jax() -> None:
    pytest.importorskip("jax", reason="the JAX backend needs jax")
    files = ("test_averaging.py", "test_feeds.py", "test_half_precision.py")
    argv = [sys.executable, "-m", "pytest", "-q", *(f"tests/trainer/{each}" for each in files)]
    done = run(argv, KERAS_BACKEND="jax")
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout, "what is said of TensorFlow alone"


def newest_step(folder: Path, per_epoch: int) -> int:
    """Steps that the newest checkpoint has behind it."""
    found = [re.findall(r"\d+", path.name) for path in folder.glob("epoch-*.npz")]
    return max((int(epoch) * per_epoch + int(step) for epoch, step in found), default=-1)


# In float16 there is all that there is in float32, and the scale of the loss.
@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.full), "float16"])
def test_killed_at_random_steps_it_ends_as_if_undisturbed(
    shards: Path, tiny: dict[str, Any], tmp_path: Path, precision: str, full: bool
) -> None:
    options = tiny | {"checkpoint_steps": 1, "epochs": 3, "ema": 0.9, "accumulate": 2}
    options |= {"precision": precision, "sampling": "balanced"}
    broken, whole = (
        [*command("train", shards=shards, run=tmp_path / name, **options), *FLAGS]
        for name in ("broken", "whole")
    )
    # TensorFlow says of some processors that float16 is slow on them.
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    start = partial(subprocess.Popen, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | quiet)
    for step in sorted(random.Random(0).sample(range(1, 15), ALL_KILLS if full else KILLS)):
        process = start(broken)
        while newest_step(tmp_path / "broken" / "checkpoints", 5) < step:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run(in_one_process(broken, whole), **quiet)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resumes after" in done.stdout
    for name in ("history.json", "metrics.json"):
        one, other = (read(tmp_path / folder / name) for folder in ("broken", "whole"))
        assert one == other


def read(path: Path) -> Any:
    """The figures that do not depend on the machine's speed."""

    def without_times(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {k: v for k, v in pairs if k not in ("images_per_second", "input_wait")}

    return json.loads(path.read_text(), object_pairs_hook=without_times)
