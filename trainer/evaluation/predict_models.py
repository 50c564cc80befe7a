"""Predictions of a split by networks: images are decoded once for all that see the same slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from headct.errors import UsageError
from headct.layout import IMAGE, LABEL, POSITION, SERIES_ID, UNLABELED
from headct.reader import Shards
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
from trainer.networks.answers import in_flight, send
from trainer.networks.hardware import device_errors_reported
from trainer.networks.scan_model import Corrections, ScanNetwork, as_half, control_scans
from trainer.runs.run import Calibration
from trainer.runs.smoothing import Smoothing


@dataclass(frozen=True)
class Predictions:
    """Predictions for a split, in the order of `evaluation_batches`.

    Attributes:
        names: names of the model's labels, L.
        rows: image_id, patient_id, study_id, series_id, split and position_z (mm), N rows.
        labels: int64 [N, L]; -1 where unlabeled.
        logits: float [N, L].
        members: of an ensemble, the logits of each member, [M, N, L].
        alone: of a scan model, the logits of its slice network, [N, L].
        pooled: of a scan model, the logits of the scan of each slice, [N, L]; of an ensemble, if
            all its runs are scan models.
        pooled_members: of such an ensemble, those of each member, [M, N, L].
    """

    names: tuple[str, ...]
    rows: pd.DataFrame
    labels: npt.NDArray[np.int64]
    logits: Floats
    members: Floats | None = None
    alone: Floats | None = None
    pooled: Floats | None = None
    pooled_members: Floats | None = None

    @cached_property
    def scans(self) -> Scans:
        """The scans of the slices.

        Raises:
            UsageError: no slice has a series, or no slice has a position.
        """
        return find_ordered_scans(self.rows)

    def smoothed(self, smoothing: Smoothing) -> Predictions:
        """Return the predictions, smoothed along z; raises like `scans`."""
        if not smoothing.changes:
            return self
        return replace(self, logits=smoothing.apply(self.logits, self.scans))

    def frame(self, calibration: Calibration | None = None) -> pd.DataFrame:
        """Return the rows with probability_<name> and label_<name>.

        Of a scan model, also with alone_<name> and pooled_<name>, uncalibrated probabilities of the
        slice network, and of the scan as a whole.
        """
        logits = calibration.apply(self.logits) if calibration else self.logits
        kinds = {"alone": self.alone, "pooled": self.pooled, "probability": logits}
        values: dict[str, npt.NDArray[Any]] = {
            kind: probabilities(each) for kind, each in kinds.items() if each is not None
        }
        values["label"] = self.labels
        tables = [
            pd.DataFrame(each, columns=[f"{kind}_{name}" for name in self.names])
            for kind, each in values.items()
        ]
        return pd.concat([self.rows, *tables], axis=1)


def find_ordered_scans(rows: pd.DataFrame) -> Scans:
    """Return the scans of some slices.

    Raises:
        UsageError: no slice has a series, or no slice has a position.
    """
    has_series = rows[SERIES_ID].fillna("").astype(str).any()
    if not has_series or rows[POSITION].isna().all():
        lacking = POSITION if has_series else SERIES_ID
        raise UsageError(f"no slice has a {lacking}, so z does not order the slices of a scan")
    return find_scans(rows, "predictions")


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
        models: each from stored images to logits of the labels `names`, or a ScanNetwork, which
            keeps only the features of scans that are not complete.
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
        alike = [models[i] for i in places]
        by_scan = each.count or any(isinstance(model, ScanNetwork) for model in alike)
        with damage_reported(shards, (split,)), device_errors_reported():
            rows, labels, logits = (
                _predict_by_scan(alike, shards, split, len(names), batch_size, on_batch, flip, each)
                if by_scan
                else _predict_stream(alike, shards, split, batch_size, on_batch, flip)
            )
        if len(rows) != split.examples:
            raise UsageError(
                f"split {split.name}: {len(rows)} examples where the manifest has {split.examples}"
            )
        if shards.labels != names:
            labels = np.full((len(rows), len(names)), UNLABELED, np.int64)
        for place, kinds in zip(places, logits, strict=True):
            for values in kinds.values():
                check_finite(values, split.name)
            found[place] = Predictions(names, rows, labels, **kinds)
    return [found[i] for i in range(len(models))]


_Logits = dict[str, npt.NDArray[np.float32]]  # of a model, by attribute of Predictions, [N, L]
_Found = tuple[pd.DataFrame, npt.NDArray[np.int64], list[_Logits]]  # rows, labels, and by model


def _predict_stream(
    models: Sequence[Any],
    shards: ShardDirectory,
    split: Split,
    batch_size: int,
    on_batch: Callable[[int], None],
    flip: bool,
) -> _Found:
    """Run classifiers over a split as it is stored."""
    batches = evaluation_batches(shards, split, batch_size).as_numpy_iterator()
    parted = ((batch, batch.pop(IMAGE)) for batch in batches)
    columns, answers = [], []
    done = 0
    for batch, outputs in _answer(models, parted, flip):
        columns.append(batch)
        answers.append([each[: len(batch[LABEL])] for each in outputs])
        done += len(batch[LABEL])
        on_batch(done)
    joined = {name: np.concatenate([batch[name] for batch in columns]) for name in columns[0]}
    texts = {name: np.char.decode(joined[name].astype(bytes)) for name in TEXTS}
    rows = pd.DataFrame({**texts, "split": split.name, POSITION: joined[POSITION]})
    logits = [{"logits": np.concatenate(each)} for each in zip(*answers, strict=True)]
    return rows, joined[LABEL], logits


def _predict_by_scan(
    models: Sequence[Any],
    shards: ShardDirectory,
    split: Split,
    labels: int,
    batch_size: int,
    on_batch: Callable[[int], None],
    flip: bool,
    neighbors: Neighbors,
) -> _Found:
    """Run models over a split scan by scan: most neighbors of a slice are of the same batch."""
    examples = examples_as_read(shards, (split,))
    scans, count = examples.scans(), len(examples)
    rows, truth = describe_slices(examples, split)
    if any(isinstance(each, ScanNetwork) for each in models):
        find_ordered_scans(rows)
    networks = [each.features if isinstance(each, ScanNetwork) else each for each in models]
    scan_answers = {
        i: _ScanAnswers(each, scans, labels)
        for i, each in enumerate(models)
        if isinstance(each, ScanNetwork)
    }
    found = np.empty((len(models), count, labels), np.float32)
    # the last batch is padded with the first slices
    order = np.resize(scans.order, (-(-count // batch_size), batch_size))
    images = neighbor_batches(examples, neighbors.rows(scans)[order]).as_numpy_iterator()
    done = 0
    for of_batch, outputs in _answer(networks, zip(order, images, strict=True), flip):
        placed = of_batch[: count - done]
        for i, each in enumerate(outputs):
            found[i, placed] = each[: len(placed), :labels]
            if i in scan_answers:
                scan_answers[i].add(each[: len(placed)])
        done += len(placed)
        on_batch(done)
    logits: list[_Logits] = [{"logits": each} for each in found]
    for i, answers in scan_answers.items():
        logits[i] = {"alone": found[i], **answers.end()}
    return rows, truth, logits


def _answer(
    networks: Sequence[Any], batches: Iterable[tuple[Any, npt.NDArray[Any]]], flip: bool
) -> Iterator[tuple[Any, list[npt.NDArray[np.float32]]]]:
    """Yield what comes with each batch of images, and each network's outputs.

    A network that several scan models share answers once.
    """
    different = {id(network): network for network in networks}

    def start(images: npt.NDArray[Any]) -> dict[int, Any]:
        return {key: send(network, images, flip) for key, network in different.items()}

    for rest, answers in in_flight(batches, start):
        read = {key: np.asarray(answer) for key, answer in answers.items()}
        yield rest, [read[id(network)] for network in networks]


def describe_slices(examples: Shards, split: Split) -> tuple[pd.DataFrame, npt.NDArray[np.int64]]:
    """Return the rows and labels of `Predictions` from the index."""
    table = examples.rows
    rows = table.reindex(columns=[*TEXTS]).fillna("").astype(str)
    rows["split"] = split.name
    rows[POSITION] = table[POSITION].to_numpy(np.float32, na_value=np.nan)
    return rows, examples.label_values.to_numpy(np.int64)


class _ScanAnswers:
    """Corrects the logits of scans as soon as all their slices are predicted.

    Args:
        network: whose outputs `add` gets.
        scans: the slices come in this order.
        labels: number of labels, L.
    """

    def __init__(self, network: ScanNetwork, scans: Scans, labels: int) -> None:
        self.order, self.labels = scans.order, labels
        self.scans = control_scans(scans.in_order, network.control)
        self.ranges = self.scans.ranges()
        self.next = next(self.ranges, None)
        shape = (len(scans.order), labels)
        self.found = Corrections(network.model, network.both_directions, shape)
        self.begin = 0  # place of the first of the outputs that wait
        self.waiting: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]] = []

    def add(self, outputs: npt.NDArray[np.float32]) -> None:
        """Take the logits and features of the next slices, [B, L + D]."""
        self.waiting.append((outputs[:, : self.labels], as_half(outputs[:, self.labels :])))
        logits, features = (np.concatenate(each) for each in zip(*self.waiting, strict=True))
        while self.next and self.next[1] <= self.begin + len(logits):
            begin, end = self.next
            rows = self.scans.order[begin:end]
            own = rows - self.begin
            self.found.add(rows, features[own], logits[own], self.scans.z[begin:end])
            self.next = next(self.ranges, None)
        kept = self.next[0] - self.begin if self.next else len(logits)
        self.waiting = [(logits[kept:], features[kept:])]
        self.begin += kept

    def end(self) -> _Logits:
        """Return the logits of slices, and of the scan of each, by attribute of `Predictions`."""
        self.found.end()
        back = np.argsort(self.order)
        return {"logits": self.found.of_slices[back], "pooled": self.found.of_scan[back]}


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
    return np.asarray(send(model, images, flip))
