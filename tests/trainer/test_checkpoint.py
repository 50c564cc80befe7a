from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from headct.errors import UsageError
from trainer.runs.checkpoint import (
    CACHE_NAME,
    GROUPS,
    Checkpoint,
    Progress,
    capture,
    checkpoints,
    load_newest,
    restore,
    save,
    variables,
)


def make_model(width: int = 2) -> Any:
    keras.utils.clear_session()
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(width)])
    model.add(keras.layers.Dropout(0.5, seed=1))
    optimizer = keras.optimizers.AdamW(use_ema=True, name="optimizer")
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer, loss="mse")
    return model


def step(model: Any) -> None:
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))


def state(model: Any) -> list[np.ndarray]:
    return [
        np.array(keras.ops.convert_to_numpy(each)) for each in variables(model, *GROUPS).values()
    ]


def make_checkpoint(epoch: int, step: int = 0) -> Checkpoint:
    return Checkpoint(Progress(epoch, step), {"a/b": np.arange(3.0), "c": np.array([epoch])})


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


def after(losses: list[float], head_epochs: int, patience: int) -> tuple[Progress, list[bool]]:
    """The progress after epochs of those validation losses, and which of them were better."""
    progress = Progress(thawed=None if head_epochs else 0)
    better = [progress.end_epoch({"val_loss": each}, head_epochs, patience) for each in losses]
    return progress, better


@pytest.mark.parametrize(
    ("losses", "patience", "stopped"),
    [
        ([3, 2, 2], 2, False),  # as good as before is not better
        ([3, 2, 2, 3], 2, True),
        ([3, 2, 4, 1.9, 3], 2, False),
        ([3, 3], 1, True),
        ([3], 1, False),
        ([3, 4, 5, 6, 7], 0, False),
    ],
)
def test_patience_by_hand(losses: list[float], patience: int, stopped: bool) -> None:
    progress, _ = after(losses, 0, patience)
    assert progress.stopped == stopped
    assert progress.thawed == 0
    assert (progress.best_loss, progress.phase_loss) == (min(losses), min(losses))
    assert [row["val_loss"] for row in progress.history] == losses


@pytest.mark.parametrize(
    ("losses", "patience", "thawed"),
    [
        ([3], 2, None),
        ([3, 2], 2, None),
        ([3, 2, 1], 2, 3),  # its three epochs are over
        ([3, 3], 1, 2),  # it got no better
        ([3, 4], 0, None),
    ],
)
def test_the_head_gives_way_by_hand(losses: list[float], patience: int, thawed: int | None) -> None:
    progress, _ = after(losses, 3, patience)
    assert (progress.thawed, progress.epoch, progress.stopped) == (thawed, len(losses), False)
    assert (progress.phase_loss is None) == (thawed is not None)
    if thawed:
        assert progress.since_best == 0


def test_the_best_of_both_phases_is_kept_and_patience_counts_in_each() -> None:
    progress, better = after([2, 5, 6, 5, 4, 4, 1], 2, 2)
    assert better == [True, False, False, False, False, False, True]
    # 6, 5 and 4 were each the best of the second phase; one more 4 was not yet too many.
    assert (progress.thawed, progress.stopped, progress.since_best) == (2, False, 0)
    assert (progress.best_loss, progress.phase_loss) == (1, 1)
    assert (progress.epoch, progress.step) == (7, 0)
    progress, _ = after([2, 5, 6, 6, 6], 2, 2)
    assert (progress.stopped, progress.since_best) == (True, 2)


def test_where_a_phase_begins() -> None:
    assert Progress(epoch=2, thawed=2).begins_phase()
    assert not Progress(epoch=2, thawed=2, step=1).begins_phase()
    assert not Progress(epoch=3, thawed=2).begins_phase()
    assert not Progress(epoch=2, thawed=None).begins_phase()


def test_an_epoch_ends_at_step_zero() -> None:
    progress = Progress(step=7)
    progress.end_epoch({"val_loss": 1.0}, 3, 3)
    assert (progress.epoch, progress.step) == (1, 0)


def test_arrays_come_back_by_name(tmp_path: Path) -> None:
    arrays = {f"group/layer.{i}/é#{i}": np.full(i % 3, i) for i in range(120)}
    save(tmp_path, Checkpoint(Progress(), arrays))
    found = load_newest(tmp_path)
    assert found is not None
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)


def test_weights_alone_and_metrics_alone() -> None:
    model = make_model()
    numbers = {name: i + 1 for i, name in enumerate(variables(model, *GROUPS))}
    arrays = {k: np.full(v.shape, numbers[k]) for k, v in variables(model, *GROUPS).items()}
    # In whatever order they are stored.
    saved = Checkpoint(Progress(), dict(sorted(arrays.items(), reverse=True)))
    assert {name.split("/")[0] for name in numbers} == {"weights", "optimizer", "metrics"}
    for groups in (("weights",), ("metrics",), GROUPS):
        for each in variables(model, *GROUPS).values():
            each.assign(np.zeros(each.shape))
        restore(model, saved, *groups)
        found = {k: int(np.max(v)) for k, v in zip(numbers, state(model), strict=True)}
        assert found == {k: v if k.startswith(groups) else 0 for k, v in numbers.items()}


def test_variables_of_one_path_are_told_apart() -> None:
    same = [keras.Variable([value], name="same") for value in (1.0, 2.0)]
    model: Any = SimpleNamespace(variables=same)
    assert [*variables(model, "weights").values()] == same
    saved = Checkpoint(Progress(), {"weights/same": np.full(1, 3), "weights/same#2": np.full(1, 4)})
    restore(model, saved, "weights")
    assert [float(each[0]) for each in same] == [3, 4]


@pytest.mark.parametrize("change", ["less", "more", "shape"])
@pytest.mark.parametrize("groups", [(), pytest.param(("weights",), marks=pytest.mark.full)])
def test_a_checkpoint_of_another_network_is_refused(change: str, groups: tuple[str, ...]) -> None:
    arrays = capture(make_model(), Progress()).arrays
    name = next(each for each in arrays if each.endswith("kernel") and "weights" in each)
    match change:
        case "less":
            del arrays[name]
        case "more":
            arrays["weights/other"] = np.zeros(3)
            name = "weights/other"
        case "shape":
            arrays[name] = arrays[name].T
    model = make_model()
    before = state(model)
    with pytest.raises(UsageError, match="checkpoint of epoch 4, step 2 is of another") as raised:
        restore(model, Checkpoint(Progress(4, 2), arrays), *groups)
    shapes = {"less": "missing in it, [3, 2]", "more": "[3] in it, missing", "shape": "[2, 3]"}
    assert f"{name} is {shapes[change]} in" in str(raised.value)
    assert "\n" not in str(raised.value)
    for one, other in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_images_on_the_device_are_no_part_of_a_checkpoint() -> None:
    names = ("kernel", CACHE_NAME, "bias")
    model = SimpleNamespace(variables=[SimpleNamespace(name=each, path=each) for each in names])
    assert [each.name for each in variables(model, "weights").values()] == ["kernel", "bias"]


def test_a_checkpoint_with_code_in_it_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, make_checkpoint(1))
    victim = tmp_path / "epoch-0002-step-00000000.npz"
    stored = dict(np.load(checkpoints(tmp_path)[0]))
    np.savez(victim, **(stored | {"a/b": np.array([Path("object")])}))
    found = load_newest(tmp_path)
    assert found is not None
    assert found.arrays["a/b"].tolist() == [0, 1, 2]


def test_a_position_that_is_no_json_is_not_written(tmp_path: Path) -> None:
    progress = Progress(epoch=1, history=[{"val_loss": float("nan")}])
    with pytest.raises(ValueError, match="JSON compliant"):
        save(tmp_path, Checkpoint(progress, {}))
    assert not checkpoints(tmp_path)


def test_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None


def test_where_all_are_damaged_training_does_not_start_over(tmp_path: Path) -> None:
    save(tmp_path, make_checkpoint(1))
    checkpoints(tmp_path)[0].write_bytes(b"damaged")
    with pytest.raises(UsageError, match="no checkpoint can be read"):
        load_newest(tmp_path)
