"""The course of training as a picture and as TensorBoard logs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from matplotlib.figure import Figure

from trainer.files import full_disk_reported, write_whole
from trainer.report.figures import MOST_NAMES, new_figure, plain_text

History = list[dict[str, Any]]


@plain_text
def plot_history(history: History, labels: tuple[str, ...]) -> Figure:
    """Loss and ROC AUC by epoch, side by side."""
    figure = new_figure(12, 4.5)
    loss, auc = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    loss.plot(epochs, [row["loss"] for row in history], "o-", label="training")
    loss.plot(epochs, [row["val_loss"] for row in history], "o-", label="validation")
    loss.set(title="Weighted log loss", xlabel="epoch", ylabel="nats", ylim=(0, None))
    for label in labels:
        auc.plot(epochs, values(history, label), "o-", markersize=3, label=label)
    mean = [undefined_as_gap(row["val_mean_roc_auc"]) for row in history]
    auc.plot(epochs, mean, "k--", label="mean")
    auc.set(title="ROC AUC, validation", xlabel="epoch", ylim=(0, 1.02))
    loss.legend(handles=[*loss.lines], fontsize="small")
    named = auc.lines if len(labels) <= MOST_NAMES else auc.lines[-1:]
    auc.legend(handles=[*named], fontsize="small")
    for axes in (loss, auc):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def values(history: History, label: str) -> list[float]:
    """The ROC AUC of a label by epoch."""
    return [undefined_as_gap(row["val_roc_auc"][label]) for row in history]


def undefined_as_gap(value: float | None) -> float:
    """A plot leaves a gap at NaN."""
    return float("nan") if value is None else value


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    write_whole(path, lambda unfinished: figure.savefig(unfinished, dpi=100))


def log_epoch(folder: Path, row: dict[str, Any]) -> None:
    """Adds an epoch's figures to the TensorBoard logs."""
    with full_disk_reported(folder), opened(folder, row["epoch"]):
        for name, value in row.items():
            nested = value if isinstance(value, dict) else {"": value}
            for part, scalar in nested.items():
                if scalar is not None and name != "epoch":
                    tf.summary.scalar(f"{name}/{part}" if part else name, scalar)


@contextmanager
def opened(folder: Path, step: int) -> Iterator[None]:
    """Sends what is logged within to a new file of the TensorBoard logs."""
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(step=step):
        yield
    writer.close()


def log_picture(folder: Path, name: str, figure: Figure, step: int) -> None:
    """Adds a picture to the TensorBoard logs."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80, format="png")
    with full_disk_reported(folder), opened(folder, step):
        pixels = tf.io.decode_png(buffer.getvalue(), channels=4)
        tf.summary.image(name, pixels[None])
