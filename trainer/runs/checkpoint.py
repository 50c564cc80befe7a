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


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: completed epochs.
        step: completed steps of the next epoch.
        history: one row of figures per completed epoch.
        thawed: the epoch after which the whole network trains; None while only the head trains.
        best_loss: lowest validation loss so far; None before the first validation.
        phase_loss: lowest validation loss of the phase (head or whole network).
        since_best: epochs since phase_loss.
        stopped: stopped early: no improvement.
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
        self.epoch, self.step = self.epoch + 1, 0
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


def weights(model: Any) -> dict[str, Any]:
    """Return weights, statistics, averages and random states by path; not cached images."""
    return _by_path("weights", [v for v in model.variables if v.name != CACHE_NAME])


def metrics(model: Any) -> dict[str, Any]:
    """Return the running means of an epoch by path."""
    return _by_path("metrics", model.metrics_variables)


def variables(model: Any) -> dict[str, Any]:
    """Return every variable that training depends on, by group and path.

    Keyed by path, because positions depend on the trainable layers.
    """
    return weights(model) | _by_path("optimizer", model.optimizer.variables) | metrics(model)


def _by_path(group: str, variables: list[Any]) -> dict[str, Any]:
    """Return variables by group and path; a repeated path gets a number."""
    named: dict[str, Any] = {}
    times: Counter[str] = Counter()
    for variable in variables:
        times[variable.path] += 1
        suffix = f"#{times[variable.path]}" if times[variable.path] > 1 else ""
        named[f"{group}/{variable.path}{suffix}"] = variable
    return named


def capture(model: Any, progress: Progress) -> Checkpoint:
    """Copy a model's state."""
    if hasattr(model, "jax_state_sync"):
        # Within an epoch, JAX keeps the state outside the model's variables.
        model.jax_state_sync()
    named = variables(model).items()
    return Checkpoint(
        progress, {k: np.array(keras.ops.convert_to_numpy(v.value)) for k, v in named}
    )


def restore(model: Any, checkpoint: Checkpoint) -> None:
    """Restore the state of a model that is built and compiled like the saved model.

    Raises:
        UsageError: the checkpoint belongs to another model.
    """
    _assign(variables(model), checkpoint, "")


def restore_weights(model: Any, checkpoint: Checkpoint) -> None:
    """Restore only the weights, for a new phase with a new optimizer.

    Raises:
        UsageError: the checkpoint belongs to another model.
    """
    _assign(weights(model), checkpoint, "weights/")


def restore_metrics(model: Any, checkpoint: Checkpoint) -> None:
    """Restore the running means; Keras resets them when an epoch begins.

    Raises:
        UsageError: the checkpoint belongs to another model.
    """
    _assign(metrics(model), checkpoint, "metrics/")


def _assign(named: dict[str, Any], checkpoint: Checkpoint, group: str) -> None:
    """Assign the values of a group to variables with the same names and shapes."""
    stored = {k: v for k, v in checkpoint.arrays.items() if k.startswith(group)}
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


def clear(folder: Path) -> None:
    """Remove all checkpoints: they are large, and a complete run needs none."""
    for path in checkpoints(folder):
        path.unlink()


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
            return load(path)
        except (ValueError, OSError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
            continue
    if paths:
        raise UsageError(
            f"{folder}: no checkpoint can be read ({', '.join(path.name for path in paths)});"
            " remove them to train from the first step"
        )
    return None


def load(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        ValueError, OSError, KeyError, EOFError, TypeError, BadZipFile: the file is damaged.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        progress = Progress(**json.loads(stored["progress"].tobytes()))
        names = (name for name in stored.files if name != "progress")
        return Checkpoint(progress, {name: stored[name] for name in names})
