"""Training states on disk: whole or not at all, the newest good one used.

A checkpoint is one uncompressed .npz: an array per variable, named by the variable's path, and
the position as JSON. Zip keeps a CRC of each array, so a damaged file is known as such.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from headct.errors import UsageError
from trainer.files import write_whole

KEPT = 2
CACHE_NAME = "image_cache"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: epochs that are behind it.
        step: steps of the next epoch that are behind it too.
        history: a row of figures for each of those epochs.
        thawed: the epoch after which the whole network is trained; None while the head alone is.
        best_loss: the lowest validation loss so far; None before the first.
        phase_loss: the lowest since the phase began: the head's, or the whole network's.
        since_best: epochs since then.
        stopped: whether it stopped for want of a better loss.
    """

    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    thawed: int | None = None
    best_loss: float | None = None
    phase_loss: float | None = None
    since_best: int = 0
    stopped: bool = False

    def begins_phase(self) -> bool:
        """Whether the next step is the first that trains the whole network."""
        return self.epoch == self.thawed and not self.step

    def end_epoch(self, row: dict[str, Any], head_epochs: int, patience: int) -> bool:
        """Takes note of an epoch; whether its validation loss is the lowest so far.

        The epochs without a better loss count within a phase. Where they are at an end, the
        head's phase gives way to the whole network's, which else might never be trained; in the
        latter, training stops.

        Args:
            row: its figures.
            head_epochs: epochs that train the head alone, at most.
            patience: epochs to go on for without a better loss; 0: for ever.
        """
        loss = row["val_loss"]
        better = self.best_loss is None or loss < self.best_loss
        self.best_loss = loss if better else self.best_loss
        better_in_phase = self.phase_loss is None or loss < self.phase_loss
        self.phase_loss = loss if better_in_phase else self.phase_loss
        self.since_best = 0 if better_in_phase else self.since_best + 1
        self.history.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        exhausted = bool(patience) and self.since_best >= patience
        if self.thawed is not None:
            self.stopped = exhausted
        elif exhausted or self.epoch >= head_epochs:
            self.thawed, self.phase_loss, self.since_best = self.epoch, None, 0
        return better


@dataclass(frozen=True)
class Checkpoint:
    """A position, and the value of every variable there by its group and path."""

    progress: Progress
    arrays: dict[str, npt.NDArray[Any]]


def weights(model: Any) -> dict[str, Any]:
    """A model's weights, statistics, averages and generators by path.

    Not the images that a cache keeps on the device.
    """
    return _by_path("weights", [each for each in model.variables if each.name != CACHE_NAME])


def metrics(model: Any) -> dict[str, Any]:
    """The running means of an epoch by path."""
    return _by_path("metrics", model.metrics_variables)


def variables(model: Any) -> dict[str, Any]:
    """All that a compiled model's training depends on, by group and path.

    Not by position: that changes with what is trainable.
    """
    return weights(model) | _by_path("optimizer", model.optimizer.variables) | metrics(model)


def _by_path(group: str, variables: list[Any]) -> dict[str, Any]:
    """Variables by group and path; those that share a path are numbered."""
    found: dict[str, Any] = {}
    times: Counter[str] = Counter()
    for each in variables:
        times[each.path] += 1
        repeated = f"#{times[each.path]}" if times[each.path] > 1 else ""
        found[f"{group}/{each.path}{repeated}"] = each
    return found


def capture(model: Any, progress: Progress) -> Checkpoint:
    """Copies a model's state."""
    if hasattr(model, "jax_state_sync"):
        # Within an epoch, JAX's state lives outside the model's variables.
        model.jax_state_sync()
    found = variables(model).items()
    return Checkpoint(
        progress, {k: np.array(keras.ops.convert_to_numpy(v.value)) for k, v in found}
    )


def restore(model: Any, checkpoint: Checkpoint) -> None:
    """Gives a model, built and compiled as it was, its state back.

    Raises:
        UsageError: the checkpoint is of another model.
    """
    _assign(variables(model), checkpoint, "")


def restore_weights(model: Any, checkpoint: Checkpoint) -> None:
    """Gives a model its weights alone, where another optimizer takes over.

    Raises:
        UsageError: the checkpoint is of another model.
    """
    _assign(weights(model), checkpoint, "weights/")


def restore_metrics(model: Any, checkpoint: Checkpoint) -> None:
    """Gives back the running means of an epoch, which Keras resets as it enters one.

    Raises:
        UsageError: the checkpoint is of another model.
    """
    _assign(metrics(model), checkpoint, "metrics/")


def _assign(found: dict[str, Any], checkpoint: Checkpoint, group: str) -> None:
    """Gives variables the values of a group, if names and shapes are the same."""
    stored = {k: v for k, v in checkpoint.arrays.items() if k.startswith(group)}
    here = {name: tuple(each.shape) for name, each in found.items()}
    there = {name: each.shape for name, each in stored.items()}
    differing = sorted(here.items() ^ there.items())
    if differing:
        name = differing[0][0]
        shapes = (list(each[name]) if name in each else "not there" for each in (there, here))
        raise UsageError(
            "the checkpoint of epoch {}, step {} is of another network, or of another version of"
            " the trainer or of Keras: {} is {} in it, {} in this network; train in a new run"
            " directory".format(checkpoint.progress.epoch, checkpoint.progress.step, name, *shapes)
        )
    for name, variable in found.items():
        variable.assign(stored[name])


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint and removes all but the newest two."""
    where = checkpoint.progress
    path = folder / f"epoch-{where.epoch:04d}-step-{where.step:08d}.npz"
    text = json.dumps(asdict(where), allow_nan=False).encode()
    named: dict[str, Any] = checkpoint.arrays | {"progress": np.frombuffer(text, np.uint8)}
    write_whole(path, lambda unfinished: np.savez(unfinished, **named))
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Removes all checkpoints: a complete run needs none, and they are large."""
    for path in checkpoints(folder):
        path.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest last."""
    return sorted(folder.glob("epoch-*.npz"))


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none at all.

    Raises:
        UsageError: all of them are damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return load(path)
        except (ValueError, OSError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
            continue
    if found:
        raise UsageError(
            f"{folder}: no checkpoint can be read ({', '.join(path.name for path in found)});"
            " remove them to train from the first step"
        )
    return None


def load(path: Path) -> Checkpoint:
    """Reads one checkpoint.

    Raises:
        ValueError, OSError, KeyError, EOFError, TypeError, BadZipFile: the file is damaged.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        progress = Progress(**json.loads(stored["progress"].tobytes()))
        names = (name for name in stored.files if name != "progress")
        return Checkpoint(progress, {name: stored[name] for name in names})
