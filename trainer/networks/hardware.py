"""Devices of this machine: memory, precision, XLA, seeds, and device errors."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import keras
import platformdirs
import psutil
import tensorflow as tf

from headct.declarations import quoted
from headct.errors import UsageError
from trainer.data.damage import is_of_data, reason
from trainer.data.image_cache import GIGABYTE, MEMORY_SHARE, check_memory
from trainer.errors import DeviceFailed
from trainer.files import disk_trouble

DEFAULT_BATCH, LARGEST_BATCH = 32, 256
_LEAST_STEPS = 20  # per epoch, in larger batches than the default
_USED_SHARE = 0.6  # of a GPU's memory; convolutions need workspace
_COMPILED_BYTES = 2 << 30  # of JAX's compiled programs in the user's cache


def compute_capability() -> tuple[int, int] | None:
    """Return the lowest CUDA compute capability of the GPUs that Keras uses; None without a GPU."""
    if keras.backend.backend() == "jax":
        gpus = [device for device in jax_devices() if device.platform == "gpu"]
        versions = [tuple(map(int, gpu.compute_capability.split("."))) for gpu in gpus]
    else:
        gpus = tf.config.list_physical_devices("GPU")
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        versions = [tuple(detail.get("compute_capability", (0, 0))) for detail in details]
    return min(((version[0], version[1]) for version in versions), default=None)


def jax_devices() -> list[Any]:
    """Return the devices that JAX computes on.

    Raises:
        UsageError: JAX finds no device of the requested platform.
    """
    import jax

    try:
        return list(jax.devices())
    except (RuntimeError, AssertionError) as error:  # AssertionError: the platform is absent
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UsageError(
            f"--backend jax: JAX finds no device with JAX_PLATFORMS={quoted(asked)}"
            f"{f' ({reason(error)})' if str(error) else ''}"
        ) from None


def gpu_memory() -> int | None:
    """Return the bytes of memory of the smallest GPU that Keras may use; None without a GPU."""
    if compute_capability() is None:
        return None
    if keras.backend.backend() == "jax":
        limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax_devices()]
        return min((int(limit) for limit in limits if limit), default=None)
    # TensorFlow tells how much of the memory it uses, but not how much there is.
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        return min(int(line) << 20 for line in told.split("\n") if line.strip())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def choose_batch_size(network: Any, memory: int, devices: int, examples: int) -> int:
    """Return the images per training step that fill a GPU, at most `LARGEST_BATCH`.

    A step of 32 images leaves a fast GPU waiting for its next one. An epoch has at least 20 steps,
    or steps of 32 images.

    Args:
        network: the classifier's core; a step keeps the outputs of all its layers.
        memory: bytes of each GPU's memory that are free.
        devices: number of GPUs that share a batch.
        examples: training examples.
    """
    # Weights, gradients, two moments and averages, in float32.
    fixed = 5 * 4 * network.count_params()
    each = 2 * _activation_bytes(network)  # and their gradients
    fitting = max(1, int((_USED_SHARE * memory - fixed) // each))
    useful = max(DEFAULT_BATCH, examples // _LEAST_STEPS)
    alone = min(fitting, max(1, min(LARGEST_BATCH, useful) // devices))
    return int(2 ** (alone.bit_length() - 1) * devices)


def _activation_bytes(network: Any) -> int:
    """Return the bytes of all layers' outputs for one image."""
    total = 0
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            total += _activation_bytes(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            half = "16" in layer.compute_dtype
            outputs = layer.output if isinstance(layer.output, list) else [layer.output]
            total += sum(math.prod(each.shape[1:]) for each in outputs) * (2 if half else 4)
    return total


def check_device_memory(needed: int) -> None:
    """Check that a cache of `needed` bytes fits into the memory of the device, by trying.

    Raises:
        UsageError: there is too little memory.
    """
    if compute_capability() is None:
        check_memory("device", needed, psutil.virtual_memory().available, "ram")
        return
    wanted = int(needed / MEMORY_SHARE)
    try:
        # A matrix, because some libraries count the elements of a vector in 32 bits.
        tried = keras.ops.zeros((wanted // 4096 + 1, 1024), "float32")
        keras.ops.convert_to_numpy(tried[0, 0])  # JAX fails when a value is read
    except (tf.errors.ResourceExhaustedError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        raise UsageError(
            f"--cache device: needs {needed / GIGABYTE:.1f} GB, and the device has less; use"
            " --cache ram or a smaller --image_size"
        ) from None


def set_up_jax() -> None:
    """With JAX, hide the GPU from TensorFlow, which only reads data, and keep compiled programs.

    JAX keeps them in the user's cache, for other folds and processes; its own variables choose
    another folder, another size, or none. TensorFlow's XLA has no such cache.
    """
    if keras.backend.backend() != "jax":
        return
    import jax

    tf.config.set_visible_devices([], "GPU")
    choices = {
        "jax_compilation_cache_dir": str(platformdirs.user_cache_path("headct-jax")),
        "jax_compilation_cache_max_size": _COMPILED_BYTES,
    }
    for name, value in choices.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def begin_session(seed: int) -> None:
    """Seed all random numbers; reset Keras's automatic names, because checkpoints use them."""
    policy = keras.config.dtype_policy()
    keras.utils.clear_session()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(seed)


def choose_precision(asked: str, capability: tuple[int, int] | None) -> str:
    """Return the Keras dtype policy for `options.TrainOptions.precision`.

    Tensor cores support float16 from compute capability 7.0, and bfloat16 from 8.0; bfloat16 needs
    no loss scaling.
    """
    if asked == "auto":
        if capability is None or capability < (7, 0):
            asked = "float32"
        else:
            asked = "bfloat16" if capability >= (8, 0) else "float16"
    return asked if asked == "float32" else f"mixed_{asked}"


def choose_xla(asked: str, capability: tuple[int, int] | None, deterministic: bool) -> bool:
    """Return whether to compile with XLA.

    On a CPU, compiling takes minutes and XLA's convolutions are slower than oneDNN's. JAX always
    uses XLA; Keras never compiles TensorFlow's deterministic operations with XLA.

    Raises:
        UsageError: XLA is requested but not available.
    """
    if keras.backend.backend() == "jax":
        return True
    if asked == "on" and deterministic:
        raise UsageError("--xla on: not with --deterministic; --backend jax has both")
    return not deterministic and (asked == "on" or (asked == "auto" and capability is not None))


def make_deterministic() -> None:
    """Make operations reproducible to the last bit, also on GPUs."""
    tf.config.experimental.enable_op_determinism()
    if keras.backend.backend() == "jax":
        # JAX reads the flags when it first lists devices.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def tensorflow_gpu() -> str | None:
    """Return the name of TensorFlow's GPU; None without one, or with JAX."""
    gpus = tf.config.list_logical_devices("GPU")
    return gpus[0].name if gpus else None


def use_all_devices(batch_size: int | None) -> int:
    """Distribute batches over all of JAX's devices; return the number of devices.

    Keras distributes with JAX only; with TensorFlow, one GPU is used. A batch size of None is
    chosen later.

    Raises:
        UsageError: the batch size is not a multiple of the number of devices, or no device exists.
    """
    if keras.backend.backend() != "jax":
        return 1
    devices = jax_devices()
    if len(devices) > 1:
        if batch_size is not None and batch_size % len(devices):
            raise UsageError(
                f"--batch_size {batch_size}: must be a multiple of {len(devices)} devices"
            )
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    return len(devices)


def begin_copy(batch: Any) -> Any:
    """With JAX, begin to copy arrays to the device, or a part of each to each of several."""
    import jax

    distribution = keras.distribution.distribution()
    if distribution is None:
        return jax.device_put(batch)
    layouts = keras.tree.map_structure(
        lambda each: distribution.get_data_layout(each.shape).backend_layout, batch
    )
    return jax.device_put(batch, layouts)


def unused_gpus() -> int:
    """Return the number of idle GPUs."""
    if keras.backend.backend() == "jax":
        return 0
    return max(len(tf.config.list_physical_devices("GPU")) - 1, 0)


@contextmanager
def device_errors_reported() -> Iterator[None]:
    """Turn device errors and lack of memory into one-line errors.

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
        of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
        is_bug = isinstance(error, tf.errors.InvalidArgumentError) and "device" not in reason(error)
        of_tensorflow = isinstance(error, tf.errors.OpError) and not is_of_data(error)
        if not of_jax and (is_bug or not of_tensorflow):
            raise
        raise DeviceFailed(
            f"the device failed ({reason(error)}); --xla off, --precision float32 or another"
            " --backend may do without what failed"
        ) from None


def _is_lack_of_memory(error: Exception) -> bool:
    """Return whether an allocation failed; JAX has no specific exception."""
    specific = isinstance(error, tf.errors.ResourceExhaustedError | MemoryError)
    return specific or "RESOURCE_EXHAUSTED" in str(error)


def describe_machine() -> dict[str, Any]:
    """Describe this machine for the report, without host and user names.

    Returns:
        Time (UTC), backend, devices, CPU cores, memory (GiB) and system.
    """
    if keras.backend.backend() == "jax":
        names = [str(device.device_kind) for device in jax_devices()]
    else:  # Keras uses one GPU
        gpus = tf.config.list_physical_devices("GPU")[:1]
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        names = [str(detail.get("device_name", "GPU")) for detail in details]
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": keras.backend.backend(),
        "devices": names or ["cpu"],
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
