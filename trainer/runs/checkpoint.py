"""Checkpoints: training states, written atomically; the newest undamaged one is loaded.

A checkpoint is an uncompressed .npz: one array per variable, named by the variable's path, and the
progress as JSON. Zip's CRC per array detects damage.
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
CACHE_NAME = "image_cache"  # variable with the images on a device; not saved
GROUPS = ("weights", "optimizer", "metrics")  # of variables; metrics: running means of an epoch


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: completed epochs.
        step: completed steps of the next epoch.
        losses: sum of their losses, where no metric of the model keeps it.
        history: one row of figures per completed epoch.
        thawed: the epoch after which the whole network trains; None while only the head trains.
        best_loss: lowest validation loss so far; None before the first validation.
        phase_loss: lowest validation loss of the phase (head or whole network).
        since_best: epochs since phase_loss.
        stopped: stopped early: no improvement.
    """

    epoch: int = 0
    step: int = 0
    losses: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    thawed: int | None = None
    best_loss: float | None = None
    phase_loss: float | None = None
    since_best: int = 0
    stopped: bool = False

    def begins_phase(self) -> bool:
        """Return whether the next step is the first step of the whole network's phase."""
        return self.epoch == self.thawed and not self.step

    def end_epoch(self, row: dict[str, Any], head_epochs: int, patience: int) -> bool:
        """Record an epoch; return whether the validation loss is the lowest so far.

        When patience runs out in the head's phase, the whole network's phase begins; in that phase,
        training stops.

        Args:
            row: figures of the epoch.
            head_epochs: maximum number of epochs of the head's phase.
            patience: epochs without improvement before a phase ends; 0: unlimited.
        """
        loss = row["val_loss"]
        better = self.best_loss is None or loss < self.best_loss
        self.best_loss = loss if better else self.best_loss
        better_in_phase = self.phase_loss is None or loss < self.phase_loss
        self.phase_loss = loss if better_in_phase else self.phase_loss
        self.since_best = 0 if better_in_phase else self.since_best + 1
        self.history.append(row)
        self.epoch, self.step, self.losses = self.epoch + 1, 0, 0.0
        exhausted = bool(patience) and self.since_best >= patience
        if self.thawed is not None:
            self.stopped = exhausted
        elif exhausted or self.epoch >= head_epochs:
            self.thawed, self.phase_loss, self.since_best = self.epoch, None, 0
        return better


@dataclass(frozen=True)
class Checkpoint:
    """Progress, and the value of every variable by group and path."""

    progress: Progress
    arrays: dict[str, npt.NDArray[Any]]


def variables(model: Any, *groups: str) -> dict[str, Any]:
    """Return the variables of some groups by group and path: positions depend on trainable layers.

    Weights include statistics, averages and random states. A repeated path gets a number.
    """
    named: dict[str, Any] = {}
    times: Counter[str] = Counter()
    for group in groups:
        match group:
            case "weights":
                members = [v for v in model.variables if v.name != CACHE_NAME]
            case "optimizer":
                members = model.optimizer.variables
            case _:
                members = model.metrics_variables
        for variable in members:
            name = f"{group}/{variable.path}"
            times[name] += 1
            named[f"{name}#{times[name]}" if times[name] > 1 else name] = variable
    return named


def capture(model: Any, progress: Progress) -> Checkpoint:
    """Copy a model's state."""
    if hasattr(model, "jax_state_sync"):
        # Within an epoch, JAX keeps the state outside the model's variables.
        model.jax_state_sync()
    named = variables(model, *GROUPS).items()
    return Checkpoint(
        progress, {k: np.array(keras.ops.convert_to_numpy(v.value)) for k, v in named}
    )


def restore(model: Any, checkpoint: Checkpoint, *groups: str) -> None:
    """Restore the state, or some groups of it, of a model that is built like the saved model.

    Raises:
        UsageError: the checkpoint belongs to another model.
    """
    groups = groups or GROUPS
    named = variables(model, *groups)
    stored = {k: v for k, v in checkpoint.arrays.items() if k.partition("/")[0] in groups}
    here = {name: tuple(variable.shape) for name, variable in named.items()}
    there = {name: array.shape for name, array in stored.items()}
    differing = sorted(here.items() ^ there.items())
    if differing:
        name = differing[0][0]
        before, now = (list(side[name]) if name in side else "missing" for side in (there, here))
        raise UsageError(
            f"the checkpoint of epoch {checkpoint.progress.epoch}, step"
            f" {checkpoint.progress.step} is of another network, or of another version of the"
            f" trainer or of Keras: {name} is {before} in it, {now} in this network; train in a new"
            " run directory"
        )
    for name, variable in named.items():
        variable.assign(stored[name])


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; remove all but the newest two."""
    progress = checkpoint.progress
    path = folder / f"epoch-{progress.epoch:04d}-step-{progress.step:08d}.npz"
    text = json.dumps(asdict(progress), allow_nan=False).encode()
    named: dict[str, Any] = checkpoint.arrays | {"progress": np.frombuffer(text, np.uint8)}
    write_whole(path, lambda unfinished: np.savez(unfinished, **named))
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, newest last."""
    return sorted(folder.glob("epoch-*.npz"))


def load_newest(folder: Path) -> Checkpoint | None:
    """Load the newest undamaged checkpoint; return None if there is no checkpoint.

    Raises:
        UsageError: all checkpoints are damaged.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
                return Checkpoint(Progress(**json.loads(arrays.pop("progress").tobytes())), arrays)
        except (ValueError, OSError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
            continue
    if paths:
        raise UsageError(
            f"{folder}: no checkpoint can be read ({', '.join(path.name for path in paths)});"
            " remove them to train from the first step"
        )
    return None
