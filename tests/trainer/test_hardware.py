import os
from pathlib import Path

import psutil
import pytest
import tensorflow as tf

from headct.errors import UsageError
from trainer.errors import DeviceFailed
from trainer.networks.hardware import (
    choose_precision,
    choose_xla,
    device_errors_reported,
    free_device_memory,
    jax_devices,
    memory_before_tensorflow,
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


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file for each GPU, whose content is what nvidia-smi says is free, MiB."""
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\nexec cat {tmp_path}/${{1#--id=}}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    memory_before_tensorflow.cache_clear()
    return tmp_path


@pytest.mark.parametrize(
    ("variable", "gpu"),
    [
        (None, "0"),
        ("2,0", "2"),
        (" 1 ", "1"),
        ("GPU-8932f937-d72c", "GPU-8932f937-d72c"),
        ("MIG-GPU-8932f937/1/2", None),  # a part of a GPU
    ],
)
def test_memory_is_that_of_the_first_visible_gpu(
    driver: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, gpu: str | None
) -> None:
    if variable is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    if gpu is not None:
        (driver / gpu).write_text("70000\n")
    assert free_device_memory((9, 0)) == (None if gpu is None else 70000 << 20)


def test_memory_that_tensorflow_holds_but_does_not_use_is_free(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the second fold of a cross-validation."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (driver / "0").write_text("70000\n")
    assert free_device_memory((9, 0)) == 70000 << 20
    (driver / "0").write_text("1\n")
    used = {"current": 3 << 20, "peak": 60000 << 20}
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", lambda _: used)
    assert free_device_memory((9, 0)) == 69997 << 20


def test_a_driver_that_does_not_answer_is_one_line(driver: Path) -> None:
    with pytest.raises(UsageError, match="nvidia-smi does not answer"):
        free_device_memory((9, 0))


def test_without_a_gpu_it_is_the_machines_memory() -> None:
    assert 0 < (free_device_memory(None) or 0) < psutil.virtual_memory().total


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
