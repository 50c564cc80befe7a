"""How long a device stood still because its input was not there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from trainer.data.input_pipeline import as_written, with_options


@dataclass
class InputClock:
    """Adds up how long a device stood still because its input was not there.

    Who hands steps to the device says so, else the device counts as idle whenever a batch
    is asked for. Where one call computes several steps nothing is heard between them, and
    what is added up is the most it can be.

    Attributes:
        waited: seconds.
        handed: steps that the device was given so far.
        computed: steps that it is done with.
    """

    waited: float = 0.0
    handed: int = 0
    computed: int = 0
    idle_since: float = field(default=0.0, repr=False)
    asked: float = field(default=0.0, repr=False)

    def has_computed(self, steps: int) -> None:
        """The device is done with the first `steps` steps."""
        self.computed, self.idle_since = steps, time.perf_counter()

    def start(self, index: Any) -> Any:
        """The consumer asks for a batch."""
        self.asked = time.perf_counter()
        return index

    def stop(self, index: Any) -> Any:
        """The batch is there."""
        if self.computed >= self.handed:
            self.waited += time.perf_counter() - max(self.asked, self.idle_since)
        return index

    def measure(self, batches: Any) -> Any:
        """Passes `batches` on; a zip asks its parts one after the other, in their order."""
        first, last = (_counter_calling(each) for each in (self.start, self.stop))
        timed = tf.data.Dataset.zip((first, batches, last))
        return with_options(timed.map(as_written(lambda _, batch, __: batch)))


def _counter_calling(function: Callable[[Any], Any]) -> Any:
    """0, 1, 2, … ; `function` is called as each is asked for."""

    def call(number: Any) -> Any:
        # Of a pipeline with a stateful part, --deterministic would do nothing in parallel.
        return tf.numpy_function(function, [number], tf.int64, stateful=False)

    return tf.data.Dataset.counter().map(as_written(call))
