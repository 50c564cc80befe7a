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

from headct.declarations import quoted
from headct.errors import UsageError

_STDERR = 2


@contextmanager
def held_back() -> Iterator[None]:
    """Redirect file descriptor 2 to a temporary file; show its content after an exception."""
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), _STDERR)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(kept, file.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, _STDERR)
            os.close(kept)


def check_backend(name: str) -> None:
    """Check that Keras can use a backend in this process.

    Raises:
        UsageError: the backend is not installed, or Keras uses another one.
    """
    if name != "tensorflow" and find_spec(name) is None:
        raise UsageError(f"--backend {name}: not installed; `make train BACKEND={name}` brings it")
    # Keras chooses the backend once, on import; TensorFlow imports Keras.
    keras, wanted = sys.modules.get("keras"), os.environ.get("KERAS_BACKEND") or name
    if keras is not None and (loaded := keras.backend.backend()) != name:
        raise UsageError(
            f"--backend {name}: Keras was loaded with {loaded} in this process; choose {loaded}, or"
            f" begin a new process with KERAS_BACKEND={name}"
        )
    if keras is None and wanted != name:
        raise UsageError(
            f"--backend {name}: KERAS_BACKEND={quoted(wanted)} is in the environment; make both the"
            " same, or unset it"
        )


def load_libraries(backend: str | None = None) -> None:
    """Import TensorFlow and Keras and list devices; print messages only on failure.

    Args:
        backend: Keras's backend; None: Keras reads KERAS_BACKEND and its configuration file.

    Raises:
        UsageError: Keras already uses another backend.
        ModuleNotFoundError: a library is not installed.
    """
    if backend is not None:
        check_backend(backend)
    for name in ("tensorflow", "keras"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with held_back(), _keras_computes_with(backend):
        import tensorflow as tf

        tf.config.list_physical_devices()
        # TensorFlow warns about several models in one process, which are intended.
        tf.get_logger().setLevel(logging.ERROR)
        import keras  # noqa: F401


@contextmanager
def _keras_computes_with(backend: str | None) -> Iterator[None]:
    """Set the backend for an import of Keras within the block."""
    before = os.environ.get("KERAS_BACKEND")
    if backend is not None:
        os.environ["KERAS_BACKEND"] = backend
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("KERAS_BACKEND", None)
