import time

import tensorflow as tf

from trainer.training.loop import InputClock


def test_the_clock_sees_a_slow_source_and_not_a_slow_consumer() -> None:
    def slowly(i: int) -> int:
        time.sleep(0.05)
        return i

    source = tf.data.Dataset.range(4).map(lambda i: tf.numpy_function(slowly, [i], tf.int64))
    clock = InputClock()
    assert [int(i) for i in clock.measure(source)] == [0, 1, 2, 3]
    assert 0.2 <= clock.waited < 1
    patient = InputClock()
    for _ in patient.measure(tf.data.Dataset.range(4)):
        time.sleep(0.05)
    assert patient.waited < 0.1


def test_the_clock_counts_no_time_in_which_the_device_computes() -> None:
    clock = InputClock(dispatched=2, computed=1)
    clock.request(0)
    time.sleep(0.05)
    clock.receive(0)
    assert clock.waited == 0
    clock.request(1)
    time.sleep(0.05)
    clock.mark_computed(2)
    time.sleep(0.02)
    clock.receive(1)
    assert 0.02 <= clock.waited < 0.05


def test_no_tuner_holds_up_the_end_of_what_is_measured() -> None:
    batches = InputClock().measure(tf.data.Dataset.range(4))
    assert batches.options().autotune.enabled is False
    assert batches.options().deterministic is True
