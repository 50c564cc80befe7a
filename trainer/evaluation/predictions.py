"""A model's predictions for every example of a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from headct.errors import UsageError
from headct.layout import IMAGE, LABEL, POSITION, UNLABELED
from trainer.data.damage import damage_reported
from trainer.data.input_pipeline import TEXTS, evaluation_batches
from trainer.data.shards import ImageSpec, Split
from trainer.errors import Diverged
from trainer.evaluation.metrics import probabilities
from trainer.files import write_whole
from trainer.networks.hardware import device_errors_reported
from trainer.runs.calibration import Calibration


@dataclass(frozen=True)
class Predictions:
    """Rows in the order of the shards.

    Attributes:
        split: the split's name.
        logits: float32 [N, L].
        labels: int64 [N, L]; -1 where unlabeled.
        texts: image_id, patient_id, study_id and series_id, [N] each.
        position_z: mm, float32 [N].
    """

    split: str
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    texts: dict[str, npt.NDArray[np.str_]]
    position_z: npt.NDArray[np.float32]

    def calibrated(self, calibration: Calibration) -> Predictions:
        """The same predictions with calibrated logits."""
        return replace(self, logits=calibration.apply(self.logits).astype(np.float32))

    def without_labels(self) -> Predictions:
        """The same predictions, of slices whose labels are not known."""
        return replace(self, labels=np.full(self.logits.shape, UNLABELED, np.int64))

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Sigmoid of the logits, [N, L]."""
        return probabilities(self.logits)


def predict_split(
    model: Any,
    split: Split,
    image: ImageSpec,
    labels: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda _: None,
    flip: bool = False,
) -> Predictions:
    """Runs `model` over all of a split; `on_batch` hears how many examples are done.

    With `flip` the logits are the mean over each image and its mirror image.

    Raises:
        UsageError: a shard is damaged, or has more or fewer examples than the manifest says.
        Diverged: a logit is not finite.
        DeviceFailed: a GPU, its driver or its compiler failed.
    """
    columns: dict[str, list[Any]] = {}
    done = 0
    batches = evaluation_batches(split, image, labels, batch_size)
    with damage_reported((split,), image, labels), device_errors_reported():
        for batch in batches.as_numpy_iterator():
            logits = predict_batch(model, batch.pop(IMAGE), flip)
            rows = len(batch[LABEL])
            for name, values in {**batch, "logits": logits[:rows]}.items():
                columns.setdefault(name, []).append(values)
            done += rows
            on_batch(done)
    if done != split.examples:
        raise UsageError(
            f"split {split.name}: {done} examples where the manifest has {split.examples}"
        )
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    check_finite(joined["logits"], split.name)
    return Predictions(
        split=split.name,
        logits=joined["logits"],
        labels=joined[LABEL],
        texts={name: np.char.decode(joined[name].astype(bytes)) for name in TEXTS},
        position_z=joined[POSITION],
    )


def check_finite(logits: npt.NDArray[np.float32], split: str) -> None:
    """Looks for what is no number among logits, [N, L].

    Raises:
        Diverged: there is such.
    """
    if not np.isfinite(logits).all():
        raise Diverged(
            f"the model gives {np.count_nonzero(~np.isfinite(logits).all(axis=1))} of"
            f" {len(logits)} slices of {split} a logit that is no finite number; try a lower"
            " --learning_rate, --clip_norm 1 or --precision float32 in a new run directory"
        )


def predict_batch(model: Any, images: npt.NDArray[Any], flip: bool) -> npt.NDArray[np.float32]:
    """Logits of a batch, [B, L]."""
    logits = np.asarray(model.predict_on_batch(images))
    if flip:
        mirrored = np.ascontiguousarray(images[:, :, ::-1])
        logits = (logits + np.asarray(model.predict_on_batch(mirrored))) / 2
    return logits.astype(np.float32)


def to_frame(predictions: Predictions, labels: tuple[str, ...]) -> pd.DataFrame:
    """A row an example: ids, position, split, probability_<label>, label_<label>."""
    columns: dict[str, Any] = {**predictions.texts, "split": predictions.split}
    columns["position_z"] = predictions.position_z
    for i, label in enumerate(labels):
        columns[f"probability_{label}"] = predictions.probabilities[:, i]
    for i, label in enumerate(labels):
        columns[f"label_{label}"] = predictions.labels[:, i]
    return pd.DataFrame(columns)


def write_parquet(path: Path, predictions: Predictions, labels: tuple[str, ...]) -> None:
    """Writes `to_frame`, whole or not at all."""
    frame = to_frame(predictions, labels)
    write_whole(path, lambda unfinished: frame.to_parquet(unfinished, index=False))
