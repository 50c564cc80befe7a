from pathlib import Path
from typing import Any

import tensorflow as tf
from matplotlib.figure import Figure

from tests.trainer.test_plots import HISTORY
from trainer.report.tensorboard import log_epoch, log_picture


def events(folder: Path) -> list[tuple[int, str, Any]]:
    """Step, name and tensor of what was logged."""
    (path,) = folder.glob("events.*")
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    logged = (tf.compat.v1.Event.FromString(each) for each in records)
    return [
        (event.step, value.tag, tf.make_ndarray(value.tensor))
        for event in logged
        for value in event.summary.value
    ]


def test_an_epoch_in_tensorboard(tmp_path: Path) -> None:
    log_epoch(tmp_path, HISTORY[2])
    assert [(step, name, float(value)) for step, name, value in events(tmp_path)] == [
        (3, "loss", 0.125),
        (3, "val_loss", 0.25),
        (3, "val_mean_roc_auc", 0.5),
        (3, "val_roc_auc/a", 0.5),
    ]


def test_a_picture_in_tensorboard(tmp_path: Path) -> None:
    figure = Figure(figsize=(1, 0.5))
    figure.patch.set_facecolor((1, 0, 0, 0.5))
    log_picture(tmp_path, "curves", figure, 7)
    ((step, name, (width, height, png)),) = events(tmp_path)
    assert (step, name, width, height) == (7, "curves", b"80", b"40")
    assert tf.io.decode_png(png)[0, 0].numpy().tolist() == [255, 0, 0, 128]
