"""Answers of networks on the device; test_other_processes.py runs it with JAX, too."""

from typing import Any

import keras
import numpy as np
import pytest

from trainer.networks.answers import in_flight, send


def test_a_batch_is_started_before_the_last_one_is_waited_for() -> None:
    events = []

    def start(images: Any) -> int:
        events.append(f"start {images}")
        return int(images)

    for place, answer in in_flight([("abc"[i], np.array(i)) for i in range(3)], start):
        events.append(f"wait {place}{answer}")
    assert events == ["start 0", "start 1", "wait a0", "start 2", "wait b1", "wait c2"]
    assert [*in_flight([], start)] == []
    assert [*in_flight([("alone", np.array(7))], start)] == [("alone", 7)]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_mirror_image_is_made_on_the_device(dtype: str) -> None:
    inputs = keras.Input((4, 6, 2), dtype=dtype)
    weights = np.random.default_rng(0).normal(size=(48, 3)).astype(np.float32)
    flat = keras.layers.Flatten()(keras.ops.cast(inputs, "float32"))
    model = keras.Model(inputs, keras.layers.Dense(3, use_bias=False)(flat))
    images = np.random.default_rng(1).integers(0, 256, (5, 4, 6, 2), dtype)
    for scale in (1, 2):  # compiled once, whatever the weights are
        model.set_weights([weights * scale])
        plain, mirrored = (
            each.reshape(5, -1).astype(np.float32) @ weights * scale
            for each in (images, images[:, :, ::-1])
        )
        np.testing.assert_allclose(np.asarray(send(model, images)), plain, rtol=1e-3, atol=0.1)
        found = np.asarray(send(model, images, flip=True))
        np.testing.assert_allclose(found, (plain + mirrored) / 2, rtol=1e-3, atol=0.1)
