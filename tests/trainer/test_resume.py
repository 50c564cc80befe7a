"""Every pair of options that add state or numerics: killed at its worst moments, then resumed.

With JAX the same file is run by a process of its own: see test_other_processes.py.
"""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import keras
import pytest

from tests.trainer import small_network
from trainer.__main__ import main
from trainer.options import TrainOptions
from trainer.runs import checkpoint
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.training_setup import prepare_training
from trainer.training.train import train

pytestmark = pytest.mark.filterwarnings(  # Keras's own, with JAX
    "ignore:__array__ implementation:DeprecationWarning"
)
BACKEND = keras.backend.backend()

TRAINING: dict[str, dict[str, Any]] = {
    "freeze": {"freeze_epochs": 1},
    "ema": {"ema": 0.9},
    "accumulate": {"accumulate": 2},
    "float16": {"precision": "float16"},
    "bfloat16": {"precision": "bfloat16"},
    "balanced": {"sampling": "balanced"},
    "ram": {"cache": "ram"},
    "disk": {"cache": "disk"},
    "device": {"cache": "device"},
    "neighbors": {"cache": "disk", "neighbors": 1},
    "calls": {"steps_per_execution": 2},
    "deterministic": {"deterministic": True},
    "mixup": {"mixup": 0.4},
    "crop": {"crop_head": True},
    "swa": {"swa_epochs": 2},
}
EVALUATION = {"tta": ["--tta"], "temperature": ["--fit_temperature"]}
NAMES = [*TRAINING, *EVALUATION]
PAIRS: list[tuple[str, ...]] = [
    pair
    for pair in combinations(NAMES, 2)
    if len({key for name in pair for key in TRAINING.get(name, {name: None})}) == 2
    and pair not in (("ema", "swa"), ("freeze", "swa"), ("neighbors", "crop"))
]
if BACKEND == "jax":  # which is the other one of each pair
    PAIRS = [("mixup", "swa"), *((name,) for name in NAMES)]
# All that go together at once, and the documented example.
TOGETHER = [
    ("freeze", "ema"),
    (
        "freeze",
        "ema",
        "accumulate",
        "float16",
        "balanced",
        "device",
        "calls",
        "mixup",
        "crop",
        "tta",
    ),
    ("freeze", "ema", "accumulate", "bfloat16", "neighbors", "deterministic", "temperature"),
]
# With JAX a run that is not compiled anew for its second epoch.
QUICK = [("mixup", "swa")] if BACKEND == "jax" else TOGETHER[1:]
CASES = [
    pytest.param(names, marks=[] if names in QUICK else pytest.mark.full)
    for names in dict.fromkeys([*TOGETHER, *PAIRS])
]
# Epochs and steps behind a run when it is killed, of two epochs of five steps: within the head's
# phase, at its end, and at the first step of an epoch, between two updates.
KILLS = ((0, 3), (1, 0), (1, 1))


class Killed(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture
def start(
    shards: Path,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """Starts a run of one convolution; it ends where it has come as far as `until`."""
    save = checkpoint.save
    monkeypatch.setattr(small_network.MAKER, small_network.one_convolution)

    def started(name: str, until: tuple[int, int] = (9, 9), **changes: Any) -> Path:
        def save_and_stop(folder: Path, saved: Checkpoint) -> None:
            save(folder, saved)
            if (saved.progress.epoch, saved.progress.step) >= until:
                raise Killed

        # Dropout draws random numbers as augmentation does.
        small = {"image_size": 16, "augment": 0.0, "checkpoint_steps": 1, "report": False}
        given = tiny | small | changes
        with monkeypatch.context() as patch:
            patch.setattr("trainer.training.train.Loop.draw_history", lambda *_: None)
            patch.setattr(checkpoint, "save", save_and_stop)
            run = tmp_path / name
            train(prepare_training(TrainOptions(shards=shards, run=run, backend=BACKEND, **given)))
        return run

    return started


def figures(run: Path) -> dict[str, Any]:
    """The figures that do not depend on the machine's speed."""

    def without_times(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {k: v for k, v in pairs if k not in ("images_per_second", "input_wait")}

    return {
        path.name: json.loads(path.read_text(), object_pairs_hook=without_times)
        for path in sorted(run.glob("*.json"))
        if path.name not in ("run.json", "machine.json")
    }


@pytest.mark.parametrize("chosen", CASES, ids="-".join)
def test_killed_and_resumed_it_has_the_figures_of_a_run_that_was_not(
    chosen: tuple[str, ...], start: Callable[..., Path]
) -> None:
    changes = {k: v for name in chosen for k, v in TRAINING.get(name, {}).items()}
    whole = start("whole", **changes)
    for until in KILLS if "freeze" in chosen else KILLS[-1:]:
        with pytest.raises(Killed):
            start("broken", until, **changes)
    broken = start("broken", **changes)
    flags = [flag for name in chosen for flag in EVALUATION.get(name, [])]
    if flags:
        for run in (whole, broken):
            assert main(["evaluate", f"--run={run}", f"--backend={BACKEND}", *flags]) == 0
    assert figures(broken) == figures(whole)
    assert len(figures(whole)) == (4 if "temperature" in chosen else 3 if flags else 2)
