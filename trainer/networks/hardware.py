"""What the machine has, and the arithmetic and compiler that suit it."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import keras
import numpy as np
import psutil
import tensorflow as tf

from headct.declarations import quoted
from headct.errors import UsageError
from trainer.data.damage import is_of_data, reason
from trainer.errors import DeviceFailed
from trainer.files import disk_trouble

_OF_DEVICES = (
    tf.errors.AbortedError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.UnavailableError,
    tf.errors.UnimplementedError,
    tf.errors.UnknownError,
)


def compute_capability() -> tuple[int, int] | None:
    """The lowest CUDA compute capability of the GPUs that Keras uses; None without a GPU."""
    if keras.backend.backend() == "jax":
        gpus = [each for each in jax_devices() if each.platform == "gpu"]
        found = [tuple(int(n) for n in each.compute_capability.split(".")) for each in gpus]
    else:
        devices = tf.config.list_physical_devices("GPU")
        details = [tf.config.experimental.get_device_details(each) for each in devices]
        found = [tuple(each.get("compute_capability", (0, 0))) for each in details]
    return min(((each[0], each[1]) for each in found), default=None)


def jax_devices() -> list[Any]:
    """What JAX computes on.

    Raises:
        UsageError: it finds none of those that it is told to use.
    """
    import jax

    try:
        return list(jax.devices())
    except (RuntimeError, AssertionError) as error:  # an absent platform fails an assertion
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UsageError(
            f"--backend jax: JAX finds no device with JAX_PLATFORMS={quoted(asked)}"
            f"{f' ({reason(error)})' if str(error) else ''}"
        ) from None


def free_device_memory(capability: tuple[int, int] | None) -> int | None:
    """Bytes that this process may still take on the device, or on the machine without a GPU.

    None where nobody tells: on a part of a GPU (MIG), say.

    Raises:
        UsageError: the driver does not answer.
    """
    if capability is None:
        return int(psutil.virtual_memory().available)
    if keras.backend.backend() == "jax":
        return _free_jax_memory()
    # TensorFlow takes all that is free with its first tensor: what is used of that counts then.
    has_begun = memory_before_tensorflow.cache_info().currsize > 0
    free = memory_before_tensorflow(visible_gpu(os.environ.get("CUDA_VISIBLE_DEVICES")))
    if free is None or not has_begun:
        return free
    return free - int(tf.config.experimental.get_memory_info("GPU:0")["current"])


def _free_jax_memory() -> int | None:
    """The least that JAX has left on one of its devices: each holds all images."""
    found = [each.memory_stats() for each in jax_devices()]
    if not all(each and "bytes_limit" in each for each in found):
        return None
    return min(int(each["bytes_limit"]) - int(each["bytes_in_use"]) for each in found)


def visible_gpu(variable: str | None) -> str | None:
    """The first GPU of CUDA_VISIBLE_DEVICES, the one that TensorFlow computes on.

    As nvidia-smi names it: a number, or a unique id. None where nvidia-smi has no name for it.
    """
    if variable is None:
        return "0"
    first = variable.split(",")[0].strip()
    return first if first.isdecimal() or first.startswith("GPU-") else None


@cache
def memory_before_tensorflow(gpu: str | None) -> int | None:
    """Bytes that are free on a GPU before TensorFlow takes them.

    Raises:
        UsageError: the driver does not answer.
    """
    if gpu is None:
        return None
    query = [
        "nvidia-smi",
        f"--id={gpu}",
        "--query-gpu=memory.free",
        "--format=csv,noheader,nounits",
    ]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
        return int(answer.stdout.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise UsageError(f"--cache device: nvidia-smi does not answer ({error})") from None


def leave_gpu_to_jax() -> None:
    """Keeps TensorFlow, which only reads data then, from taking the GPU's memory."""
    if keras.backend.backend() == "jax":
        tf.config.set_visible_devices([], "GPU")


def begin_session(seed: int) -> None:
    """Seeds everything, and lets Keras number from 0 what has no name: checkpoints go by names."""
    policy = keras.config.dtype_policy()
    keras.utils.clear_session()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds everything for a while; Python's and NumPy's random numbers go on as before."""
    before = random.getstate(), np.random.get_state()
    keras.utils.set_random_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def choose_precision(asked: str, capability: tuple[int, int] | None) -> str:
    """The Keras dtype policy for `asked`, as `options.TrainOptions.precision` has it.

    Tensor cores take float16 from compute capability 7.0 on and bfloat16, which needs no
    loss scaling, from 8.0 on.
    """
    if asked == "auto":
        if capability is None or capability < (7, 0):
            asked = "float32"
        else:
            asked = "bfloat16" if capability >= (8, 0) else "float16"
    return asked if asked == "float32" else f"mixed_{asked}"


def choose_xla(asked: str, capability: tuple[int, int] | None, deterministic: bool) -> bool:
    """Whether to compile with XLA.

    On a processor it takes minutes to compile and its convolutions are slower than oneDNN's.
    JAX has nothing else; Keras uses no XLA where TensorFlow's operations are deterministic.

    Raises:
        UsageError: it is asked for where there is none.
    """
    if keras.backend.backend() == "jax":
        return True
    if asked == "on" and deterministic:
        raise UsageError("--xla on: not with --deterministic; --backend jax has both")
    return not deterministic and (asked == "on" or (asked == "auto" and capability is not None))


def make_deterministic() -> None:
    """Lets each operation give the same bits each time, on GPUs too."""
    tf.config.experimental.enable_op_determinism()
    if keras.backend.backend() == "jax":
        # Read when JAX first looks for devices.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def use_all_devices(batch_size: int) -> int:
    """Spreads each batch over all devices that JAX has; how many there are.

    Keras's distribution is JAX's alone: with TensorFlow one GPU is used.

    Raises:
        UsageError: the batch cannot be divided among them, or there is none.
    """
    if keras.backend.backend() != "jax":
        return 1
    devices = jax_devices()
    if len(devices) > 1:
        if batch_size % len(devices):
            raise UsageError(
                f"--batch_size {batch_size}: must be a multiple of {len(devices)} devices"
            )
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    return len(devices)


def unused_gpus() -> int:
    """How many GPUs Keras leaves alone with TensorFlow."""
    if keras.backend.backend() == "jax":
        return 0
    return max(len(tf.config.list_physical_devices("GPU")) - 1, 0)


@contextmanager
def device_errors_reported() -> Iterator[None]:
    """Says in one line that memory does not suffice, or that a device failed.

    Raises:
        UsageError: an allocation failed.
        DeviceFailed: a GPU, its driver or its compiler failed.
    """
    try:
        yield
    except (tf.errors.OpError, MemoryError, RuntimeError) as error:
        if disk_trouble(error):
            raise
        if _is_lack_of_memory(error):
            raise UsageError(
                "too little memory for this --batch_size and --image_size; in a new run directory,"
                " a smaller batch with --accumulate has the same gradients but for batch"
                " normalization"
            ) from None
        if not _is_of_device(error):
            raise
        raise DeviceFailed(
            f"the device failed ({reason(error)}); --xla off, --precision float32 or another"
            " --backend may do without what failed"
        ) from None


def _is_lack_of_memory(error: Exception) -> bool:
    if isinstance(error, RuntimeError):  # JAX has no exception of its own for it
        return "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, tf.errors.ResourceExhaustedError | MemoryError)


def _is_of_device(error: Exception) -> bool:
    """Whether an error is neither of data nor of what a program computes."""
    if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
        return True
    if isinstance(error, tf.errors.InvalidArgumentError) and "device" not in reason(error):
        return False
    return isinstance(error, _OF_DEVICES) and not is_of_data(error)


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Makes layers under `name`; keras.applications offers no other way to say it."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
