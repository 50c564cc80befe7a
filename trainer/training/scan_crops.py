"""Crops of scans: the steps of an epoch, changed at random, and what trains on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.files import write_whole
from trainer.networks.scan_model import SCAN, SLICES, arrange, places
from trainer.runs.run import Run
from trainer.training.scan_features import ScanFeatures, ScanSlices

_THINNED = 0.25  # share of the crops that take every second slice

Ints = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]


class Batches:
    """Crops of scans, changed at random: every second slice dropped, and reversed.

    A long scan gives several crops per epoch.

    Args:
        training: slices of the training splits.
        crop: slices of a crop, at most.
        size: crops per step.
        seed: of all draws; an epoch's depend on it and on the epoch alone.
        control: as in `control_scans`, which the scans have passed; a step has as many slices.
    """

    def __init__(
        self, training: Sequence[ScanSlices], crop: int, size: int, seed: int, control: str = "none"
    ) -> None:
        self.training, self.seed, self.shuffled = training, seed, control == "shuffled"
        self.crop, self.size = (1, crop * size) if control == "alone" else (crop, size)
        crop = self.crop
        self.scans = [
            (number, begin, end)
            for number, one in enumerate(training)
            for begin, end in one.scans.ranges()
        ]
        crops = [math.ceil((end - begin) / crop) for _, begin, end in self.scans]
        self.drawn = np.repeat(np.arange(len(self.scans)), crops)

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return math.ceil(len(self.drawn) / self.size)

    def epoch(self, number: int, skip: int = 0) -> Iterator[tuple[Arrays, Any, Any]]:
        """Yield inputs, labels and weights of each step but the first `skip` ones."""
        random = np.random.default_rng((self.seed, number))
        order = np.resize(random.permutation(self.drawn), self.steps * self.size)
        for step, chosen in enumerate(order.reshape(self.steps, self.size)):
            crops = [self.draw(self.scans[scan], random) for scan in chosen]
            if step < skip:
                continue
            parts = [self.inputs(found, rows) for found, rows in crops]
            inputs = {name: np.stack([one[name] for one in parts]) for name in parts[0]}
            labels = np.stack([self.labels(found, rows) for found, rows in crops])
            mask = inputs["mask"][..., 0]
            yield (
                self.finished(inputs),
                {SLICES: labels, SCAN: labels.max(axis=1)},
                # Keras divides by all, padding too.
                {SLICES: mask * (mask.size / mask.sum()), SCAN: np.ones(len(parts), np.float32)},
            )

    def draw(
        self, scan: tuple[int, int, int], random: np.random.Generator
    ) -> tuple[ScanSlices, Ints]:
        """Return the split of a scan, and the rows of a crop in it, in order."""
        number, begin, end = scan
        step = 2 if random.random() < _THINNED and end - begin > 2 else 1
        rows = np.arange(begin + int(random.integers(step)), end, step)
        if self.shuffled:
            random.shuffle(rows)
        first = int(random.integers(max(len(rows) - self.crop, 0) + 1))
        rows = rows[first : first + self.crop]
        return self.training[number], rows[::-1] if random.random() < 0.5 else rows

    def inputs(self, found: Any, rows: Ints) -> Arrays:
        """Return the inputs of a crop, padded, without the batch axis."""
        return dict(
            arrange(found.features[rows], found.logits[rows], found.scans.z[rows], self.crop)
        )

    def labels(self, found: ScanSlices, rows: Ints) -> npt.NDArray[np.float32]:
        """Return the labels of a crop, padded, [crop, L]."""
        labels = np.zeros((self.crop, found.labels.shape[1]), np.float32)
        labels[: len(rows)] = found.labels[rows]
        return labels

    def finished(self, inputs: Arrays) -> Arrays:
        """Return the inputs of a step."""
        return inputs


class ImageBatches(Batches):
    """Crops of images instead of features.

    Args:
        found: slices of all training splits.
        rows: of the cache, per slice.
        fetch: rows of the cache [B, crop] → samples.
    """

    def __init__(
        self,
        found: ScanSlices,
        rows: Ints,
        fetch: Callable[[Ints], npt.NDArray[Any]],
        crop: int,
        size: int,
        seed: int,
    ) -> None:
        super().__init__([found], crop, size, seed)
        self.rows, self.fetch = rows, fetch

    def inputs(self, found: ScanSlices, rows: Ints) -> Arrays:
        """Return places and rows; the last slice is repeated as padding."""
        padded = np.pad(self.rows[rows], (0, self.crop - len(rows)), mode="edge")
        return {**places(found.scans.z[rows], self.crop), "samples": padded}

    def finished(self, inputs: Arrays) -> Arrays:
        """Return the inputs of a step, with images."""
        return {**inputs, "samples": self.fetch(inputs["samples"])}


@dataclass(frozen=True)
class Training:
    """What is trained, and on what.

    Attributes:
        model: the compiled model: inputs of `batches` → slices and scan, logits.
        scan_model: the scan model in it.
        batches: of an epoch.
        validate: returns features of the validation split.
        before: validation loss before the first step.
        classifier: the slice network in the model; None if it is not trained.
    """

    model: Any
    scan_model: Any
    batches: Batches
    validate: Callable[[], ScanFeatures]
    before: float
    classifier: Any = None

    def save(self, run: Run) -> None:
        """Write the networks into their run."""
        if self.classifier is not None:
            write_whole(run.model, self.classifier.save)
        write_whole(run.scan_model, self.scan_model.save)


def ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the same items; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1) as maker:
        waiting = maker.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = maker.submit(next, items, None)
            yield item
