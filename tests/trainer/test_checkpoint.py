from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from trainer.runs.checkpoint import (
    Checkpoint,
    Progress,
    capture,
    checkpoints,
    load_newest,
    restore,
    save,
    variables,
)


def make_model() -> Any:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    model.add(keras.layers.Dropout(0.5, seed=1))
    optimizer = keras.optimizers.AdamW(use_ema=True)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer, loss="mse")
    return model


def step(model: Any) -> None:
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))


def state(model: Any) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(each)) for each in variables(model)]


def make_checkpoint(epoch: int, step: int = 0) -> Checkpoint:
    return Checkpoint(Progress(epoch, step), (np.arange(3.0), np.array([epoch])))


def test_a_model_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    model = make_model()
    step(model)
    save(tmp_path, capture(model, Progress(epoch=1, step=2, history=[{"loss": 1.0}])))
    step(model)
    expected = state(model)
    other = make_model()
    found = load_newest(tmp_path)
    assert found is not None
    assert found.progress == Progress(epoch=1, step=2, history=[{"loss": 1.0}])
    restore(other, found)
    step(other)
    for one, another in zip(expected, state(other), strict=True):
        np.testing.assert_array_equal(one, another)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for epoch, at in ((0, 9), (0, 10), (1, 0)):
        save(tmp_path, make_checkpoint(epoch, at))
    names = [each.name for each in checkpoints(tmp_path)]
    assert names == ["epoch-0000-step-00000010.npz", "epoch-0001-step-00000000.npz"]


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    save(tmp_path, make_checkpoint(1))
    save(tmp_path, make_checkpoint(2))
    victim = checkpoints(tmp_path)[-1]
    content = bytearray(victim.read_bytes())
    if damage == "bit":
        content[150] ^= 1
    victim.write_bytes({"cut": content[:-40], "bit": content, "empty": b""}[damage])
    found = load_newest(tmp_path)
    assert found is not None
    assert found.progress.epoch == 1


def test_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
