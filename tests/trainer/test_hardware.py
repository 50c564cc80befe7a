import pytest
import tensorflow as tf

from trainer.errors import BadInput
from trainer.hardware import choose_precision, choose_xla, lack_of_memory_reported


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


def test_xla_is_for_gpus() -> None:
    assert choose_xla("auto", (8, 0))
    assert not choose_xla("auto", None)
    assert choose_xla("on", None)
    assert not choose_xla("off", (8, 0))


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_one_line(error: Exception) -> None:
    with pytest.raises(BadInput, match="too little memory"), lack_of_memory_reported():
        raise error


def test_any_other_error_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="bug"), lack_of_memory_reported():
        raise RuntimeError("bug")
