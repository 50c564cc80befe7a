"""Features and logits of a run's own network, kept in the run: one row per slice, scan by scan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headct.reader import Shards
from headct.scans import Scans
from trainer.data.neighbors import Neighbors, stacked_images
from trainer.data.shards import ShardDirectory, Split
from trainer.display import Display
from trainer.evaluation.predict_models import check_finite, predict_batch
from trainer.files import write_json
from trainer.networks.scan_model import as_half

_BATCHES_A_RECORD = 20  # after as many batches the file of progress is written


@dataclass(frozen=True)
class ScanSlices:
    """The slices of some splits, scan by scan.

    Attributes:
        labels: [N, L], 0 or 1.
        scans: of these rows.
    """

    labels: npt.NDArray[np.int64]
    scans: Scans


@dataclass(frozen=True)
class ScanFeatures(ScanSlices):
    """The slices of a split, with what the slice network makes of them.

    Attributes:
        logits: float32 [N, L], mapped.
        features: float16 [N, D], mapped.
    """

    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float16]


def extract_features(
    model: Any,
    shards: ShardDirectory,
    split: Split,
    folder: Path,
    model_sha256: str,
    neighbors: Neighbors,
    batch_size: int,
    mirrored: bool,
    display: Display,
) -> ScanFeatures:
    """Return the features of a split; compute those that the folder does not have yet.

    Args:
        model: stored images → logits and features, from `features_model`.
        shards: the directory of the split.
        split: the split.
        folder: of SPLIT-logits.npy, SPLIT-features.npy and SPLIT.json, the progress.
        model_sha256: of the network's file; features of another one are computed again.
        neighbors: slices that the network sees with a slice.
        batch_size: images per step.
        mirrored: whether the model takes the mean over each image and its mirror image.
        display: shows the progress.

    Raises:
        UsageError: a shard is damaged, or the index lacks series or positions.
        Diverged: a logit is not finite.
    """
    every = shards.examples((split,))
    found = every.scans()
    rows = neighbors.rows(found)[found.order]
    labels = every.select(found.order).label_values.to_numpy(np.int64)
    count, number = labels.shape
    size = model.output_shape[-1] - number
    identity = {
        "model_sha256": model_sha256,
        "shards": shards.digest(),
        "mirrored": mirrored,
        "slices": count,
    }
    folder.mkdir(exist_ok=True)
    progress = folder / f"{split.name}.json"
    files = {
        folder / f"{split.name}-logits.npy": (np.float32, (count, number)),
        folder / f"{split.name}-features.npy": (np.float16, (count, size)),
    }
    done = _done(progress, identity) if all(path.is_file() for path in files) else 0
    mapped = np.lib.format.open_memmap
    logits, features = (
        mapped(path, "r+") if done else mapped(path, "w+", *kind) for path, kind in files.items()
    )
    if done < count:
        display.begin(f"features of {split.name}", count, done)
        for batches, (begin, images) in enumerate(_batches(every, rows, done, batch_size), 1):
            outputs = predict_batch(model, images, flip=False)
            done = begin + len(outputs)
            check_finite(outputs, split.name)
            logits[begin:done] = outputs[:, :number]
            features[begin:done] = as_half(outputs[:, number:])
            if batches % _BATCHES_A_RECORD == 0 or done == count:
                for array in (logits, features):
                    array.flush()
                write_json(progress, {**identity, "done": done})
            display.update(done)
        display.end()
    return ScanFeatures(labels, found.in_order, logits, features)


def _done(progress: Path, identity: dict[str, Any]) -> int:
    """Return the number of finished slices; 0 if the files are of something else."""
    try:
        known = json.loads(progress.read_bytes())
        return int(known.pop("done")) if {**known, "done": 0} == {**identity, "done": 0} else 0
    except (OSError, ValueError, AttributeError, KeyError):
        return 0


def _batches(
    every: Shards, rows: npt.NDArray[np.int64], done: int, size: int
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield place and images of the remaining batches, the next one read meanwhile."""

    def read(begin: int) -> npt.NDArray[Any]:
        return stacked_images(every, rows[begin : begin + size])

    begins = range(done, len(rows), size)
    with ThreadPoolExecutor(1) as reader:
        waiting = [reader.submit(read, begin) for begin in begins[:1]]
        for begin in begins:
            images = waiting.pop().result()
            waiting += [reader.submit(read, begin + size)] if begin + size < len(rows) else []
            yield begin, images
