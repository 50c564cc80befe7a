"""Gradients in float16; test_other_processes.py runs it with JAX as the backend, too."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

from headct.manifest import ImageSpec
from trainer.networks.model import build_classifier
from trainer.options import TrainOptions
from trainer.training.training_model import WeightedBinaryCrossentropy, build_optimizer, copy_values

JAX = keras.backend.backend() == "jax"  # which else compiles each operation by itself
RANDOM = np.random.default_rng(0)
SIDE = 64
IMAGES = RANDOM.integers(0, 255, (8, SIDE, SIDE, 3), dtype=np.uint8)
LABELS = RANDOM.integers(0, 2, (8, 6)).astype(np.float32)


def first_update(policy: str) -> tuple[npt.NDArray[np.float64], Any]:
    """What the first update of a network adds to its backbone's weights, and its optimizer.

    By stochastic gradient descent: it is proportional to the gradient. The head's is large.
    """
    options = TrainOptions(
        shards=Path("s"),
        run=Path("r"),
        model="smallresnet",
        weights="none",
        image_size=SIDE,
        optimizer="sgd",
        learning_rate=1.0,
        warmup_epochs=0.0,
        weight_decay=0.0,
        clip_norm=0.0,
        augment=0.0,
        dropout=0.0,
    )
    keras.utils.set_random_seed(0)
    model = build_classifier(
        options, ImageSpec(SIDE, SIDE, 3, "uint8", 0), (0.15, 0.01, 0.05, 0.04, 0.05, 0.06), policy
    ).model
    head = model.get_layer("core").get_layer("head")
    # Small, as after pretraining: the gradients of the backbone are proportional to it.
    head.kernel.assign(np.random.default_rng(1).normal(size=head.kernel.shape) * 1e-5)
    core_policy = model.get_layer("core").dtype_policy.name
    optimizer = build_optimizer(options, model.trainable_variables, 10, 10, core_policy)
    model.compile(
        optimizer=optimizer, loss=WeightedBinaryCrossentropy((1, 1, 1, 1, 1, 2)), jit_compile=JAX
    )
    backbone = model.get_layer("core").get_layer("backbone")
    before = flat(backbone)
    for _ in range(20):  # the first steps may be skipped, until the scale is small enough
        model.train_on_batch(IMAGES, LABELS)
        if not np.array_equal(flat(backbone), before):
            break
    return flat(backbone) - before, model.optimizer


def flat(backbone: Any) -> npt.NDArray[np.float64]:
    values = [each.ravel() for each in copy_values(backbone.trainable_variables)]
    return np.concatenate(values).astype(np.float64)


def cosine(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_the_gradient_in_float16_is_that_in_float32() -> None:
    half, optimizer = first_update("mixed_float16")
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    full, plain = first_update("float32")
    assert not isinstance(plain, keras.optimizers.LossScaleOptimizer)
    assert cosine(half, full) >= 0.99
    assert np.linalg.norm(half) == pytest.approx(np.linalg.norm(full), rel=0.02)
