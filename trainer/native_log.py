"""Holds back what C++ libraries write to stderr while they are loaded.

TensorFlow announces its instruction sets and missing CUDA drivers then, whatever its log
level says (tensorflow/tensorflow#100442). Nothing is lost where loading fails.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2


@contextmanager
def held_back() -> Iterator[None]:
    """Sends file descriptor 2 to a temporary file, and shows it only after an exception."""
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


def load_libraries() -> None:
    """Imports TensorFlow and Keras and looks for devices, in silence; later on errors are heard."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with held_back():
        import tensorflow as tf

        tf.config.list_physical_devices()
        # It advises against several models in one process, of which there are good ones here.
        tf.get_logger().setLevel(logging.ERROR)
        import keras  # noqa: F401
