"""Predictions of a split by networks: images are decoded once for all that see the same slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from headct.errors import UsageError
from headct.layout import IMAGE, LABEL, POSITION, SERIES_ID, UNLABELED
from headct.scans import Scans, find_scans
from trainer.data.damage import damage_reported
from trainer.data.input_pipeline import (
    TEXTS,
    evaluation_batches,
    examples_as_read,
    neighbor_batches,
)
from trainer.data.neighbors import ALONE, Neighbors
from trainer.data.shards import ShardDirectory, Split
from trainer.errors import Diverged
from trainer.evaluation.metrics import Floats, probabilities
from trainer.networks.hardware import device_errors_reported
from trainer.networks.scan_model import as_half
from trainer.runs.run import Calibration
from trainer.runs.smoothing import Smoothing

_ROW = "row"  # place of a slice in the order of `evaluation_batches`


@dataclass(frozen=True)
class Predictions:
    """Predictions for a split, in the order of `evaluation_batches`.

    Attributes:
        names: names of the model's labels, L.
        rows: image_id, patient_id, study_id, series_id, split and position_z (mm), N rows.
        labels: int64 [N, L]; -1 where unlabeled.
        logits: float [N, L].
        members: of an ensemble, the logits of each member, [M, N, L].
        features: of a model that gives them beside the logits, [N, D].
    """

    names: tuple[str, ...]
    rows: pd.DataFrame
    labels: npt.NDArray[np.int64]
    logits: Floats
    members: Floats | None = None
    features: npt.NDArray[np.float16] | None = field(default=None, repr=False)

    @cached_property
    def scans(self) -> Scans:
        """The scans of the slices.

        Raises:
            UsageError: no slice has a series, or no slice has a position.
        """
        if not self.rows[SERIES_ID].any() or self.rows[POSITION].isna().all():
            lacking = POSITION if self.rows[SERIES_ID].any() else SERIES_ID
            raise UsageError(f"no slice has a {lacking}, so z does not order the slices of a scan")
        return find_scans(self.rows, "predictions")

    def smoothed(self, smoothing: Smoothing) -> Predictions:
        """Return the predictions, smoothed along z; raises like `scans`."""
        if not smoothing.changes:
            return self
        return replace(self, logits=smoothing.apply(self.logits, self.scans))

    def frame(self, calibration: Calibration | None = None) -> pd.DataFrame:
        """Return the rows with probability_<name> and label_<name>."""
        logits = calibration.apply(self.logits) if calibration else self.logits
        predicted = pd.DataFrame(probabilities(logits), columns=[*self.names])
        labels = pd.DataFrame(self.labels, columns=[*self.names])
        tables = [self.rows, predicted.add_prefix("probability_"), labels.add_prefix("label_")]
        return pd.concat(tables, axis=1)


def predict_models(
    models: Sequence[Any],
    shards: ShardDirectory,
    split: Split,
    names: tuple[str, ...],
    batch_size: int,
    on_batch: Callable[[int], None] = lambda _: None,
    flip: bool = False,
    neighbors: Sequence[Neighbors] = (),
) -> list[Predictions]:
    """Run models over all slices of a split; images are decoded once for all that see the same.

    Args:
        models: each from stored images to logits of the labels `names`, and perhaps features.
        shards: the directory of the split; if it has other labels, slices count as unlabeled.
        split: the split.
        names: names of the model's labels.
        batch_size: images per step.
        on_batch: called after every batch with the number of finished slices.
        flip: average the logits of image and mirror image.
        neighbors: slices that each model sees with a slice; empty: none.

    Raises:
        UsageError: a shard is damaged, its number of examples is not the manifest's, or the index
            does not have the scans.
        Diverged: a logit is not finite.
        DeviceFailed: a GPU, its driver or its compiler failed.
    """
    seen = neighbors or [ALONE] * len(models)
    found: dict[int, Predictions] = {}
    for each in dict.fromkeys(seen):
        places = [i for i, other in enumerate(seen) if other == each]
        group = [models[i] for i in places]
        answers = _predict_alike(group, shards, split, names, batch_size, on_batch, flip, each)
        found |= zip(places, answers, strict=True)
    return [found[i] for i in range(len(models))]


def _predict_alike(
    models: Sequence[Any],
    shards: ShardDirectory,
    split: Split,
    names: tuple[str, ...],
    batch_size: int,
    on_batch: Callable[[int], None],
    flip: bool,
    neighbors: Neighbors,
) -> list[Predictions]:
    """Run models that see the same slices, as `predict_models`."""
    columns: dict[str, list[Any]] = {}
    done = 0
    with damage_reported(shards, (split,)), device_errors_reported():
        if neighbors.count:
            batches = _scan_by_scan(shards, split, batch_size, neighbors)
        else:
            batches = evaluation_batches(shards, split, batch_size).as_numpy_iterator()
        for batch in batches:
            images, rows = batch.pop(IMAGE), len(batch[LABEL])
            for number, model in enumerate(models):
                outputs = predict_batch(model, images, flip)[:rows]
                batch[f"logits_{number}"] = outputs[:, : len(names)]
                batch[f"features_{number}"] = as_half(outputs[:, len(names) :])
            for name, values in batch.items():
                columns.setdefault(name, []).append(values)
            done += rows
            on_batch(done)
    if done != split.examples:
        raise UsageError(
            f"split {split.name}: {done} examples where the manifest has {split.examples}"
        )
    joined = {name: np.concatenate(batches) for name, batches in columns.items()}
    if _ROW in joined:
        order = np.argsort(joined[_ROW])
        joined = {name: values[order] for name, values in joined.items()}
    texts = {name: np.char.decode(joined[name].astype(bytes)) for name in TEXTS}
    ids = pd.DataFrame({**texts, "split": split.name, POSITION: joined[POSITION]})
    known = shards.labels == names
    labels = joined[LABEL] if known else np.full((done, len(names)), UNLABELED, np.int64)
    found = []
    for number in range(len(models)):
        logits, features = (joined[f"{kind}_{number}"] for kind in ("logits", "features"))
        check_finite(logits, split.name)
        kept = features if features.size else None
        found.append(Predictions(names, ids, labels, logits, features=kept))
    return found


def _scan_by_scan(
    shards: ShardDirectory, split: Split, batch_size: int, neighbors: Neighbors
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield slices with their neighbors, most of which are of the same batch.

    Yields:
        As `evaluation_batches`, and each slice's place in the order of that function.
    """
    examples = examples_as_read(shards, (split,))
    scans, table = examples.scans(), examples.rows
    texts = table.reindex(columns=[*TEXTS]).fillna("").astype(str)
    columns: dict[str, npt.NDArray[Any]] = {
        LABEL: examples.label_values.to_numpy(np.int64),
        POSITION: table[POSITION].to_numpy(np.float32, na_value=np.nan),
        **{name: np.char.encode(texts[name].to_numpy(np.str_), "utf-8") for name in TEXTS},
        _ROW: np.arange(len(table)),
    }
    # the last batch is padded with the first slices
    order = np.resize(scans.order, (-(-len(table) // batch_size), batch_size))
    batches = neighbor_batches(examples, neighbors.rows(scans)[order]).as_numpy_iterator()
    for number, (rows, images) in enumerate(zip(order, batches, strict=True)):
        found = rows[: len(table) - number * batch_size]
        yield {IMAGE: images, **{name: values[found] for name, values in columns.items()}}


def check_finite(logits: npt.NDArray[np.float32], split: str) -> None:
    """Raise Diverged if any of the logits [N, ...] is NaN or infinite."""
    finite = np.isfinite(logits.reshape(len(logits), -1)).all(axis=1)
    if not finite.all():
        raise Diverged(
            f"the model gives {np.count_nonzero(~finite)} of"
            f" {len(logits)} slices of {split} a logit that is not finite; try a lower"
            " --learning_rate, --clip_norm 1 or --precision float32 in a new run directory"
        )


def predict_batch(model: Any, images: npt.NDArray[Any], flip: bool) -> npt.NDArray[np.float32]:
    """Return the logits of a batch, [B, L]."""
    logits = np.asarray(model.predict_on_batch(images))
    if flip:
        mirrored = np.ascontiguousarray(images[:, :, ::-1])
        logits = (logits + np.asarray(model.predict_on_batch(mirrored))) / 2
    return logits.astype(np.float32)
