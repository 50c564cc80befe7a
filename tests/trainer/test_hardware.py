from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

from headct.errors import UsageError
from trainer.errors import DeviceFailed
from trainer.networks import hardware
from trainer.networks.hardware import (
    check_device_memory,
    choose_batch_size,
    choose_precision,
    choose_xla,
    device_errors_reported,
    gpu_memory,
    jax_devices,
)


@pytest.mark.parametrize(
    ("asked", "capability", "policy"),
    [
        ("auto", None, "float32"),
        ("auto", (6, 1), "float32"),
        ("auto", (7, 5), "mixed_float16"),
        ("auto", (8, 0), "mixed_bfloat16"),
        ("auto", (9, 0), "mixed_bfloat16"),
        ("float32", (9, 0), "float32"),
        ("bfloat16", None, "mixed_bfloat16"),
        ("float16", (8, 0), "mixed_float16"),
    ],
)
def test_precision(asked: str, capability: tuple[int, int] | None, policy: str) -> None:
    assert choose_precision(asked, capability) == policy


@pytest.mark.parametrize("deterministic", [False, True])
def test_xla_is_for_gpus(deterministic: bool) -> None:
    assert choose_xla("auto", (8, 0), deterministic) == (not deterministic)
    assert not choose_xla("auto", None, deterministic)
    assert not choose_xla("off", (8, 0), deterministic)


def test_keras_compiles_no_deterministic_operations() -> None:
    assert choose_xla("on", None, False)
    with pytest.raises(UsageError, match="--xla on: not with --deterministic"):
        choose_xla("on", (8, 0), True)


def test_a_cache_must_fit_into_the_memory_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    check_device_memory(1 << 20)
    with pytest.raises(
        UsageError, match=r"--cache device: needs 10000\.0 GB of .*; use --cache ram"
    ):
        check_device_memory(10**13)
    # On a GPU, by trying.
    monkeypatch.setattr(hardware, "compute_capability", lambda: (9, 0))
    check_device_memory(1 << 20)

    def full(shape: tuple[int, int], dtype: str) -> None:
        assert shape[0] * shape[1] * 4 >= 9e9 / 0.8
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    monkeypatch.setattr(keras.ops, "zeros", full)
    with pytest.raises(UsageError, match=r"--cache device: needs 9\.0 GB, and the device has less"):
        check_device_memory(9 * 10**9)


class Network:
    """A layer of 32 values in half precision, within another model, and one in float32."""

    def __init__(self) -> None:
        inputs = keras.Input((4, 4, 1))
        policy = keras.DTypePolicy("mixed_bfloat16")
        inner = keras.Model(inputs, keras.layers.Conv2D(2, 1, dtype=policy)(inputs))
        outputs = keras.layers.Flatten(dtype="float32")(inner(inputs))
        self.layers = keras.Model(inputs, outputs).layers

    def count_params(self) -> int:
        return 10**6


@pytest.mark.parametrize(
    ("memory", "devices", "examples", "batch"),
    [
        # Of each image, 32 values of 2 bytes and 32 of 4, and their gradients: 384 bytes. Of the
        # weights 20 MB. 0.6 of the memory is used.
        (1 << 30, 1, 10**6, 256),
        ((20_000_000 + 384 * 100) / 0.6, 1, 10**6, 64),
        ((20_000_000 + 384 * 100) / 0.6, 2, 10**6, 128),
        (1000, 1, 10**6, 1),
        (1 << 30, 3, 10**6, 192),
        (1 << 30, 1, 1300, 64),
        (1 << 30, 1, 50, 32),
    ],
)
def test_a_batch_fills_the_memory_of_a_gpu(
    memory: int, devices: int, examples: int, batch: int
) -> None:
    assert choose_batch_size(Network(), memory, devices, examples) == batch


def test_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_memory() is None
    monkeypatch.setattr(hardware, "compute_capability", lambda: (9, 0))
    told = SimpleNamespace(stdout="143771\n81559\n")
    monkeypatch.setattr(hardware.subprocess, "run", lambda *_, **__: told)
    assert gpu_memory() == 81559 << 20
    told.stdout = "[N/A]\n"
    assert gpu_memory() is None


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_one_line(error: Exception) -> None:
    with pytest.raises(UsageError, match="too little memory"), device_errors_reported():
        raise error


class JaxRuntimeError(RuntimeError):
    """Named as JAX's."""


IN_A_GRAPH = """Graph execution error:

Detected at node model/conv defined at (most recent call last):
  File "train.py", line 22, in <module>

DNN library initialization failed.
\t [[{{node model/conv}}]] [Op:__inference_multi_step_on_iterator_3594]"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (tf.errors.UnknownError(None, None, IN_A_GRAPH), "DNN library initialization failed."),
        (
            tf.errors.NotFoundError(None, None, "libdevice not found [Op:Conv]"),
            "libdevice not found",
        ),
        (
            tf.errors.InvalidArgumentError(None, None, "unknown device GPU:7"),
            "unknown device GPU:7",
        ),
        (JaxRuntimeError("INTERNAL: ptxas exited\nmore"), "INTERNAL: ptxas exited"),
    ],
)
def test_a_device_that_fails_is_one_line(error: Exception, said: str) -> None:
    with pytest.raises(DeviceFailed) as raised, device_errors_reported():
        raise error
    assert str(raised.value).startswith(f"the device failed ({said}); --xla off")
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("bug"),
        tf.errors.InvalidArgumentError(None, None, "a bug: shapes differ"),
        tf.errors.UnknownError(None, None, "TypeError: a bug [[IteratorGetNext]]"),
    ],
)
def test_any_other_error_is_a_bug(error: Exception) -> None:
    with pytest.raises(type(error), match="bug"), device_errors_reported():
        raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Unable to initialize 'foo'"), " .Unable to initialize 'foo'."),
        (AssertionError(), ""),
    ],
)
def test_a_platform_that_jax_does_not_find_is_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jax = pytest.importorskip("jax")

    def devices() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "foo")
    with pytest.raises(UsageError, match=f"^--backend jax: .* with JAX_PLATFORMS=foo{said}$"):
        jax_devices()
