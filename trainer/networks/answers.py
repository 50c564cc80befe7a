"""Answers of a network to batches of images: compiled once, two batches in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy.typing as npt
import tensorflow as tf
from keras import ops

from trainer.networks.hardware import begin_copy

IN_FLIGHT = 2


def send(model: Any, images: npt.NDArray[Any], flip: bool = False) -> Any:
    """Start a network on images, and return its answers, float32 [B, L], as the device's array.

    They may not be computed yet: reading the array waits for them. The first call compiles a
    function that the model keeps, whatever becomes of its weights.

    Args:
        model: images → answers.
        images: stored or resized images, [B, H, W, C]; the device converts their dtype.
        flip: average the answers to each image and its mirror image, made on the device.
    """
    # Not as an attribute, which Keras would track.
    functions = vars(model).setdefault("answering functions", {})
    if flip not in functions:
        functions[flip] = _compile(model, flip)
    return functions[flip](images)


def in_flight(
    batches: Iterable[tuple[Any, Any]], start: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any]]:
    """Yield what comes with each batch of images, and what `start` returns for the images.

    A result is yielded after the next batch was started, so that the device need not wait while
    the caller waits for a result.

    Args:
        batches: pairs of anything and images.
        start: returns arrays that may not be computed yet, such as those of `send`.
    """
    waiting: deque[tuple[Any, Any]] = deque()
    for rest, images in batches:
        waiting.append((rest, start(images)))
        if len(waiting) == IN_FLIGHT:
            yield waiting.popleft()
    yield from waiting


def _compile(model: Any, flip: bool) -> Callable[[npt.NDArray[Any]], Any]:
    def answer(images: Any) -> Any:
        found = ops.cast(model(images, training=False), "float32")
        if not flip:
            return found
        mirrored = ops.cast(model(ops.flip(images, axis=2), training=False), "float32")
        return (found + mirrored) / 2

    if keras.backend.backend() != "jax":
        return tf.function(  # type: ignore[no-any-return]
            answer, jit_compile=model.jit_compile, autograph=False, reduce_retracing=True
        )
    import jax

    variables = list(model.variables)

    @jax.jit
    def answer_by(values: list[Any], images: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return answer(images)

    return lambda images: answer_by([each.value for each in variables], begin_copy(images))
