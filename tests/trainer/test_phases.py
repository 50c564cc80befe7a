from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import pytest
from keras import layers

from trainer.networks.model import Classifier
from trainer.options import TrainOptions
from trainer.training.training_model import (
    batch_norms,
    compile_phase,
    learning_rate,
    settle_statistics,
)

BACKBONE = ("conv/kernel", "conv/bias")
NORM = ("norm/gamma", "norm/beta")
HEAD = ("head/kernel", "head/bias")


@pytest.mark.parametrize(
    ("steps", "momentum"), [(20, 0.8), (60, 1 - 10 / 60), (100, 0.9), (1000, 0.99), (10**6, 0.99)]
)
def test_running_statistics_arrive_within_a_short_run(steps: int, momentum: float) -> None:
    norm = keras.layers.BatchNormalization()
    settle_statistics([norm], steps)
    assert norm.momentum == pytest.approx(momentum)


class Stored:
    """A feed whose batches are what the classifier takes."""

    def connect(self, classifier: Classifier) -> tuple[Any, Any]:
        return classifier.model.inputs, classifier.model.outputs


def make_classifier(policy: str = "float32") -> Classifier:
    inputs = layers.Input((4,), dtype="float32")
    features = layers.Dense(3, name="conv")(inputs)
    backbone = keras.Model(inputs, layers.BatchNormalization(name="norm")(features))
    logits = layers.Dense(2, name="head")(backbone(inputs))
    core = keras.Model(inputs, logits)
    core.dtype_policy = keras.DTypePolicy(policy)
    return Classifier(core, core, backbone)


def compiled(
    frozen: bool, classifier: Classifier | None = None, xla: bool = False, **changes: Any
) -> Any:
    """The model of a phase of a run of 20 steps an epoch: 2 epochs of the head, 3 of all."""
    given = {"epochs": 5, "freeze_epochs": 2, "warmup_epochs": 0.0, "learning_rate": 1.0}
    options = TrainOptions(shards="s", run=Path("r"), **(given | changes))
    setup: Any = SimpleNamespace(options=options, steps=20, weights=(1.0, 3.0), rates=())
    feed: Any = Stored()
    return compile_phase(setup, feed, classifier or make_classifier(), frozen, xla)


def names(variables: list[Any]) -> list[str]:
    return sorted("/".join(each.path.split("/")[-2:]) for each in variables)


@pytest.mark.parametrize(
    ("frozen", "batch_norm", "trained"),
    [
        (True, "train", HEAD),
        (True, "frozen", HEAD),
        (False, "train", (*BACKBONE, *NORM, *HEAD)),
        (False, "frozen", (*BACKBONE, *HEAD)),
    ],
)
def test_what_a_phase_trains(frozen: bool, batch_norm: str, trained: tuple[str, ...]) -> None:
    model = compiled(frozen, batch_norm=batch_norm)
    assert names(model.trainable_variables) == sorted(trained)


def test_batch_normalizations_of_networks_within_a_network_are_frozen_too() -> None:
    inner = keras.Sequential([layers.Input((4,)), layers.Dense(3), layers.BatchNormalization()])
    inputs = layers.Input((4,), dtype="float32")
    backbone = keras.Model(inputs, layers.BatchNormalization()(inner(inputs)))
    core = keras.Model(inputs, layers.Dense(2)(backbone(inputs)))
    model = compiled(False, Classifier(core, core, backbone), batch_norm="frozen")
    assert len(model.trainable_variables) == 4, "of the dense layers"
    assert [norm.momentum for norm in batch_norms(backbone)] == pytest.approx([0.9, 0.9])


def test_the_whole_network_follows_the_head() -> None:
    classifier = make_classifier()
    for frozen, count in ((True, 2), (False, 6)):
        assert len(compiled(frozen, classifier).trainable_variables) == count


@pytest.mark.parametrize(("frozen", "steps"), [(True, 40), (False, 60)])
def test_a_phase_has_a_schedule_of_its_own_length(frozen: bool, steps: int) -> None:
    optimizer = compiled(frozen).optimizer
    rates = []
    for step in (0, steps // 2, steps - 1, steps):
        optimizer.iterations.assign(step)
        rates.append(learning_rate(optimizer))
    # A cosine; a step before its end is not there yet.
    assert rates[:2] == pytest.approx([1, 0.5])
    assert rates[2] > 1e-4
    assert rates[3] == 0


def test_the_warm_up_counts_in_epochs() -> None:
    optimizer = compiled(False, warmup_epochs=0.5).optimizer
    optimizer.iterations.assign(9)
    assert learning_rate(optimizer) == pytest.approx(0.9)
    optimizer.iterations.assign(10)
    assert learning_rate(optimizer) == pytest.approx(1)


@pytest.mark.parametrize("frozen", [True, False])
def test_statistics_settle_within_the_whole_run(frozen: bool) -> None:
    classifier = make_classifier()
    compiled(frozen, classifier)
    # Of 5 epochs of 20 steps.
    assert classifier.backbone.get_layer("norm").momentum == pytest.approx(0.9)


def test_how_a_phase_is_compiled() -> None:
    model = compiled(False, label_smoothing=0.1, steps_per_execution=4)
    assert (model.loss.weights, model.loss.label_smoothing) == ([1.0, 3.0], 0.1)
    assert model.steps_per_execution == 4
    for xla in (True, False):
        classifier = make_classifier()
        assert compiled(False, classifier, xla=xla).jit_compile == xla
        # Validation predicts with it.
        assert classifier.model.jit_compile == classifier.core.jit_compile == xla


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_the_loss_is_scaled_where_the_network_is_of_float16(policy: str) -> None:
    optimizer = compiled(False, make_classifier(policy)).optimizer
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
