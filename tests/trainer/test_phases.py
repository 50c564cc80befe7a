from types import SimpleNamespace

import keras
import pytest

from trainer.training.phases import settle_statistics


@pytest.mark.parametrize(
    ("steps", "momentum"), [(20, 0.8), (60, 1 - 10 / 60), (100, 0.9), (1000, 0.99), (10**6, 0.99)]
)
def test_running_statistics_arrive_within_a_short_run(steps: int, momentum: float) -> None:
    norm = keras.layers.BatchNormalization()
    settle_statistics(SimpleNamespace(layers=[norm, keras.layers.ReLU()]), steps)
    assert norm.momentum == pytest.approx(momentum)
