"""Where a phase of training begins, and what it takes over: the loop around tiny epochs.

An epoch adds 1 to each weight, and is one update of an optimizer that changes nothing else.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from trainer.options import TrainOptions
from trainer.runs import checkpoint
from trainer.runs.checkpoint import Checkpoint, Progress
from trainer.training import train
from trainer.training.training_model import TrainingModel, copy_values


class Loop(train.Loop):
    """A run of 2 epochs of the head and 3 of everything, unless told otherwise."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        given = {"epochs": 5, "freeze_epochs": 2, "patience": 1} | changes
        setup: Any = SimpleNamespace(
            options=TrainOptions(shards="s", run=folder, **given),
            run=SimpleNamespace(checkpoints=folder),
            display=SimpleNamespace(say=lambda line: self.said.append(line)),
        )
        nothing: Any = None
        tracking: Any = SimpleNamespace(log=lambda history: None)
        super().__init__(setup, nothing, nothing, False, saved=None, tracking=tracking)
        self.said: list[str] = []
        self.losses = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
        self.epochs: list[tuple[int, bool]] = []
        self.began: list[dict[str, Any]] = []
        self.models: list[Any] = []
        inputs = keras.layers.Input((1,))
        self.core = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer="zeros")(inputs))
        monkeypatch.setattr(train, "compile_phase", self.compile_phase)

    def compile_phase(self, setup: Any, feed: Any, classifier: Any, frozen: bool, xla: bool) -> Any:
        inputs = keras.layers.Input((1,))
        by_epoch = bool(self.setup.options.swa_epochs)
        momentum = 0.0 if by_epoch else 0.5
        model = TrainingModel(inputs, self.core(inputs), self.core, momentum, 1, by_epoch)
        optimizer = keras.optimizers.SGD(0.0, name="optimizer")
        optimizer.build(model.trainable_variables)
        model.compile(optimizer=optimizer, loss="mse")
        model.frozen = frozen
        self.models.append(model)
        return model

    def train_epoch(self) -> dict[str, Any]:
        model = self.model
        self.epochs.append((self.progress.epoch, model.frozen))
        self.began.append({**state(model), "saved": self.saved is not None})
        for weight in model.averaged:
            weight.assign_add(np.ones(weight.shape))
        if model.momentum:
            model.average()
        model.optimizer.iterations.assign_add(1)
        return {}

    def validate_epoch(self, row: dict[str, Any]) -> None:
        row["val_loss"] = self.losses[self.progress.epoch]
        options = self.setup.options
        self.progress.end_epoch(row, options.freeze_epochs, options.patience)

    def draw_history(self) -> None:
        pass

    def run(self, saved: Checkpoint | None = None) -> Progress:
        self.saved = saved
        self.progress = saved.progress if saved else self.progress
        return super().run()


def state(model: TrainingModel) -> dict[str, float]:
    numbers = (model.averaged[0], model.averages[0], model.steps_done, model.optimizer.iterations)
    values = (float(each.squeeze()) for each in copy_values(list(numbers)))
    return dict(zip(("weight", "average", "averaged", "updates"), values, strict=True))


def saved_at(loop: Loop, progress: Progress) -> Checkpoint:
    """A checkpoint of the loop's model: weight 10, average 20, 30 steps averaged, 40 updates."""
    model = loop.compile_phase(None, None, None, True, False)
    loop.models.clear()
    for variable, value in (
        (model.averaged[0], 10), (model.averages[0], 20), (model.steps_done, 30),
        (model.optimizer.iterations, 40),
    ):  # fmt: skip
        variable.assign(np.full(variable.shape, value))
    found = checkpoint.capture(model, progress)
    model.averaged[0].assign(np.zeros((1, 1)))
    return found


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(tmp_path, monkeypatch)


def test_the_head_first_then_everything(loop: Loop) -> None:
    progress = loop.run()
    assert loop.epochs == [(0, True), (1, True), (2, False), (3, False), (4, False)]
    assert len(loop.models) == 2, "one a phase"
    assert (progress.epoch, progress.thawed, progress.stopped) == (5, 2, False)
    assert loop.said == []
    # The weights go on, the optimizer begins anew.
    assert [each["weight"] for each in loop.began] == [0, 1, 2, 3, 4]
    assert [each["updates"] for each in loop.began] == [0, 1, 0, 1, 2]


def test_without_epochs_of_the_head_everything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path, monkeypatch, epochs=2, freeze_epochs=0)
    loop.run()
    assert loop.epochs == [(0, False), (1, False)]
    assert len(loop.models) == 1


def test_a_head_that_gets_no_better_leaves_everything_its_own_epochs(loop: Loop) -> None:
    loop.losses[1] = 9.0
    setup: Any = loop.setup
    setup.options = TrainOptions(shards="s", run=Path("r"), epochs=6, freeze_epochs=3, patience=1)
    loop.run()
    assert loop.epochs == [(0, True), (1, True), (2, False), (3, False), (4, False)]


def test_a_network_that_gets_no_better_stops(loop: Loop) -> None:
    loop.losses[3] = 7.0
    assert loop.run().stopped
    assert loop.epochs == [(0, True), (1, True), (2, False), (3, False)]


def test_a_run_that_has_stopped_does_nothing_more(loop: Loop) -> None:
    progress = Progress(epoch=3, thawed=2, stopped=True)
    assert loop.run(saved_at(loop, progress)) == progress
    assert loop.epochs == []


def test_the_number_of_epochs(loop: Loop) -> None:
    for thawed, epochs in ((None, 5), (2, 5), (1, 4)):
        loop.progress = Progress(thawed=thawed)
        assert loop.last_epoch == epochs


def test_resumed_where_a_phase_begins_only_the_weights_are_taken_over(loop: Loop) -> None:
    loop.run(saved_at(loop, Progress(epoch=2, thawed=2)))
    assert loop.said == ["resumes after epoch 2, step 0"]
    assert loop.epochs == [(2, False), (3, False), (4, False)]
    first, second, _ = loop.began
    assert first == {"weight": 10, "average": 10, "averaged": 0, "updates": 0, "saved": True}
    assert (second["weight"], second["updates"], second["saved"]) == (11, 1, False)


@pytest.mark.parametrize(
    "progress", [Progress(epoch=2, step=1, thawed=2), Progress(epoch=3, thawed=2)]
)
def test_resumed_within_a_phase_everything_is_taken_over(loop: Loop, progress: Progress) -> None:
    loop.run(saved_at(loop, progress))
    first = loop.began[0]
    assert first == {"weight": 10, "average": 20, "averaged": 30, "updates": 40, "saved": True}
    assert loop.models[0].frozen is False


def test_the_phase_after_the_one_that_was_resumed_goes_on_with_its_weights(loop: Loop) -> None:
    loop.run(saved_at(loop, Progress(epoch=1)))
    assert loop.epochs == [(1, True), (2, False), (3, False), (4, False)]
    assert [each["weight"] for each in loop.began] == [10, 11, 12, 13]
    assert [each["updates"] for each in loop.began] == [40, 0, 1, 2]


def test_the_weights_of_the_last_epochs_are_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Weights after the epochs: 1, 2, 3, 4, 5. Resumed after one averaged epoch: 20, then 11, 12.
    for swa_epochs, progress, average in (
        (1, None, 5),
        (2, None, 4.5),
        (3, None, 4),
        (3, Progress(epoch=3, thawed=2), 43 / 3),
    ):
        loop = Loop(tmp_path, monkeypatch, patience=0, swa_epochs=swa_epochs)
        loop.run(progress and saved_at(loop, progress))
        assert state(loop.model)["average"] == pytest.approx(average)


def test_each_epoch_is_saved(loop: Loop, tmp_path: Path) -> None:
    loop.run()
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found.progress.epoch == 5
    assert found.arrays[f"weights/{loop.core.weights[0].path}"].item() == 5
