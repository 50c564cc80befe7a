"""TensorBoard logs: figures per epoch, and a report's plots."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from matplotlib.figure import Figure

from trainer.files import full_disk_reported


def log_epoch(folder: Path, row: dict[str, Any]) -> None:
    """Log the figures of an epoch, a row of history.json."""
    with _writing(folder, row["epoch"]):
        for name, value in row.items():
            nested = value if isinstance(value, dict) else {"": value}
            for label, scalar in nested.items():
                if scalar is not None and name != "epoch":
                    tf.summary.scalar(f"{name}/{label}" if label else name, scalar)


def log_picture(folder: Path, name: str, figure: Figure, step: int) -> None:
    """Log a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80, format="png")
    with _writing(folder, step):
        pixels = tf.io.decode_png(buffer.getvalue(), channels=4)
        tf.summary.image(name, pixels[None])


@contextmanager
def _writing(folder: Path, step: int) -> Iterator[None]:
    """Write the summaries of the block into a new file of `folder`."""
    with full_disk_reported(folder):
        writer = tf.summary.create_file_writer(str(folder))
        with writer.as_default(step=step):
            yield
        writer.close()
