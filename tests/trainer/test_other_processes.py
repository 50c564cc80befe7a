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
KILLS = int(os.environ.get("TRAINER_KILLS", "1"))


def command(name: str, **options: Any) -> list[str]:
    flags = [f"--{key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", "trainer", name, *flags]


def run(argv: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ | variables
    )


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
    both = "; ".join(f"assert main({line[3:]!r}) == 0" for line in lines)
    # Two devices, which share each batch.
    done = run(
        [sys.executable, "-c", f"from trainer.__main__ import main; {both}"],
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
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


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_killed_at_random_steps_it_ends_as_if_undisturbed(
    shards: Path, tiny: dict[str, Any], tmp_path: Path, precision: str
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
    undisturbed = start(whole)
    for step in sorted(random.Random(0).sample(range(1, 15), KILLS)):
        process = start(broken)
        while newest_step(tmp_path / "broken" / "checkpoints", 5) < step:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = run(broken, **quiet)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "resumes after" in resumed.stdout
    assert undisturbed.wait(timeout=240) == 0
    for name in ("history.json", "metrics.json"):
        one, other = (read(tmp_path / folder / name) for folder in ("broken", "whole"))
        assert one == other


def read(path: Path) -> Any:
    """The figures that do not depend on the machine's speed."""

    def without_times(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {k: v for k, v in pairs if k not in ("images_per_second", "input_wait")}

    return json.loads(path.read_text(), object_pairs_hook=without_times)
