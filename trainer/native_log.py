"""Load TensorFlow and Keras without the messages of their C++ libraries.

TensorFlow reports instruction sets and missing CUDA drivers at any log level
(tensorflow/tensorflow#100442). If loading fails, the messages are shown.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from headct.commands import installation
from headct.errors import UsageError

_STDERR = 2


@contextmanager
def held_back() -> Iterator[None]:
    """Redirect file descriptor 2 to a temporary file; show its content if the block fails."""
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), _STDERR)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(kept, _STDERR)
            os.close(kept)
            if failed:
                file.seek(0)
                os.write(_STDERR, file.read())


def check_backend(name: str) -> None:
    """Raise UsageError if a backend is not installed, or Keras already uses another one."""
    if name != "tensorflow" and find_spec(name) is None:
        remedy = installation(f"train BACKEND={name}", name)
        raise UsageError(f"--backend {name}: not installed; {remedy}")
    # Keras chooses the backend once, on import; TensorFlow imports Keras.
    keras = sys.modules.get("keras")
    if keras is not None and (loaded := keras.backend.backend()) != name:
        raise UsageError(
            f"--backend {name}: Keras was loaded with {loaded} in this process; choose {loaded}, or"
            f" begin a new process with KERAS_BACKEND={name}"
        )


def load_libraries(backend: str | None = None) -> None:
    """Import TensorFlow and Keras and list devices; print messages only on failure.

    Args:
        backend: Keras's backend; None: Keras reads KERAS_BACKEND and its configuration file.

    Raises:
        UsageError: Keras already uses another backend.
        ModuleNotFoundError: a library is not installed.
    """
    for name in ("tensorflow", "keras"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    before = os.environ.get("KERAS_BACKEND")
    if backend is not None:
        check_backend(backend)
        os.environ["KERAS_BACKEND"] = backend
    try:
        with held_back():
            import tensorflow as tf

            tf.config.list_physical_devices()
            # TensorFlow warns about several models in one process, which are intended.
            tf.get_logger().setLevel(logging.ERROR)
            import keras  # noqa: F401
    finally:
        if before is None:
            os.environ.pop("KERAS_BACKEND", None)
