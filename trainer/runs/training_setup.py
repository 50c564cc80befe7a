"""Setup of a training: checked before TensorFlow is loaded or anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct.errors import UsageError
from headct.reader import Shards
from trainer.data.sampling import balanced_rates
from trainer.data.shard_source import ShardSource, find_shards
from trainer.data.shards import ShardDirectory, Split, count
from trainer.display import Display
from trainer.networks.catalog import check_weights, find_backbone
from trainer.options import CrossvalOptions, TrainOptions, label_weights
from trainer.runs.outputs import check_writable
from trainer.runs.run_directory import (
    RunDirectory,
    check_fit,
    check_run,
    read_description,
)
from trainer.runs.trained_on import find_overlap, hash_examples, read_ids

# Options that come from the origin's saved network; the new run chooses all other options.
_NETWORK_OPTIONS = ("model", "image_size", "windows")


@dataclass(frozen=True)
class Origin:
    """The run that `--continue_from` names: its best model is the new run's start.

    Attributes:
        run: run directory.
        description: content of run.json.
        sha256: SHA-256 of the model.
    """

    run: RunDirectory
    description: dict[str, Any]
    sha256: str

    def recorded(self) -> dict[str, str]:
        """Return the entry for the new run's run.json."""
        return {"run": str(self.run.path.absolute()), "model_sha256": self.sha256}


@dataclass(frozen=True)
class TrainingSetup:
    """Constants of a training.

    Attributes:
        weights: loss weight per label.
        examples: random access to the training examples, for balanced sampling.
        trained_on: hashes of the training examples' ids, until the run has recorded them.
        origin: the continued run; None for a new network.
        builder: makes the backbone; None for one of `catalog.BACKBONES`.
        is_fold: whether the run belongs to a cross-validation; if so, prints no final hint.
    """

    options: TrainOptions
    shards: ShardDirectory
    training: tuple[Split, ...]
    validation: Split
    weights: tuple[float, ...]
    run: RunDirectory
    display: Display
    examples: Shards | None = None
    trained_on: pd.DataFrame | None = field(default=None, repr=False)
    origin: Origin | None = None
    builder: Callable[..., Any] | None = None
    is_fold: bool = False

    @property
    def prevalence(self) -> tuple[float, ...]:
        """Share of positives per label in the training data."""
        return self.shards.prevalence(self.options.fold)

    @property
    def rates(self) -> tuple[float, ...]:
        """Sampling rates, relative to natural sampling; empty without balancing."""
        if self.examples is None:
            return ()
        return balanced_rates(self.examples.label_values.to_numpy(np.float32))

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return count(self.training) // self.options.batch_size


def prepare_training(
    options: TrainOptions, builder: Callable[..., Any] | None = None
) -> TrainingSetup:
    """Check shards, options and run directory; copy remote shards to this machine.

    Args:
        options: options of the run.
        builder: makes the backbone; None for one of `catalog.BACKBONES`.

    Raises:
        UsageError: the shards, the options or the run directory cannot be used.
        StorageError: the bucket of the shards fails, or denies access.
    """
    display = Display()
    source = find_shards(options.shards, options, display)
    return _prepare(options, source, source.open(), display, builder)


def _prepare(
    options: TrainOptions,
    source: ShardSource,
    shards: ShardDirectory,
    display: Display,
    builder: Callable[..., Any] | None = None,
) -> TrainingSetup:
    """Prepare a training on shards that are already open."""
    training, validation = shards.training_and_validation(options.fold)
    origin = find_origin(options)
    if origin is not None:
        check_fit(origin.description, shards)
        options = take_network(options, origin)
    if builder is None:
        find_backbone(options.model, options.image_size)
        check_weights(options.model, options.weights)
    elif options.weights != "none":
        raise UsageError(f"--weights {options.weights}: {options.model} brings its own weights")
    weights = label_weights(options.label_weights, shards.labels)
    for name in ("windows", "window_jitter"):
        if getattr(options, name) and not shards.image.is_hounsfield:
            raise UsageError(f"--{name}: the shards hold windowed images, not Hounsfield units")
    if count(training) < options.batch_size:
        raise UsageError(
            f"--batch_size {options.batch_size}: there are {count(training)} training examples"
        )
    run = check_run(options, shards, origin.recorded() if origin else None)
    examples = trained_on = None
    if not run.is_complete:
        check_writable(run.path, f"--run {run.path}")
        if options.cache == "disk" and options.cache_dir:
            check_writable(Path(options.cache_dir), f"--cache_dir {options.cache_dir}")
        source.provide(shards, (*training, validation))
        examples = shards.examples(training) if options.sampling == "balanced" else None
        if not run.trained_on.is_file():
            trained_on = _hash_examples(shards, training, display)
        if origin is not None:
            _check_validation(origin, options, shards, validation)
    return TrainingSetup(
        options=options,
        shards=shards,
        training=training,
        validation=validation,
        weights=weights,
        run=run,
        display=display,
        examples=examples,
        trained_on=trained_on,
        origin=origin,
        builder=builder,
    )


def _hash_examples(
    shards: ShardDirectory, training: tuple[Split, ...], display: Display
) -> pd.DataFrame | None:
    """Hash the training examples' ids; return None if the index has none."""
    try:
        return hash_examples(shards, training)
    except UsageError as error:
        display.say(f"{error}: evaluations will not know whom the run was trained on")
        return None


def prepare_crossval(options: CrossvalOptions) -> tuple[TrainingSetup, ...]:
    """Prepare one training per labeled fold, in run directories below `options.run`.

    Raises:
        UsageError: the shards, the options or a run directory cannot be used.
    """
    display = Display()
    source = find_shards(options.shards, options, display)
    shards = source.open()
    if len(shards.folds()) < 2:
        raise UsageError(
            f"{shards.location}: has {len(shards.folds())} labeled folds; it takes two or more"
        )
    values = dict(options)
    # One cache for all runs: every fold is training data of all other runs.
    values["cache_dir"] = options.cache_dir or str(RunDirectory(options.run).cache)
    changes = ({"fold": int(s.name[4:]), "run": options.run / s.name} for s in shards.folds())
    return tuple(
        _prepare(TrainOptions(**values | change), source, shards, display) for change in changes
    )


def find_origin(options: TrainOptions) -> Origin | None:
    """Open the run that `--continue_from` names; return None without that option.

    Raises:
        UsageError: the run does not exist, or has no model yet.
    """
    if not options.continue_from:
        return None
    run = RunDirectory(Path(options.continue_from))
    description = read_description(run)
    if not run.model.is_file():
        raise UsageError(f"--continue_from {run.path}: no model yet; no epoch of it is finished")
    with run.model.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Origin(run, description, sha256)


def take_network(options: TrainOptions, origin: Origin) -> TrainOptions:
    """Return the options, with the network options of the origin.

    Raises:
        UsageError: a given option contradicts the origin's.
    """
    theirs = origin.description["options"]
    taken = {name: theirs[name] for name in _NETWORK_OPTIONS if name in theirs} | {
        "weights": "none"
    }
    for name, value in taken.items():
        given = getattr(options, name)
        if name in options.model_fields_set and given != value:
            has = "brings its own" if name == "weights" else f"has {value or 'the default'}"
            raise UsageError(
                f"--{name} {given}: --continue_from {origin.run.path} {has}; leave it out"
            )
    return type(options)(**options.model_dump(exclude_unset=True) | taken)


def _check_validation(
    origin: Origin, options: TrainOptions, shards: ShardDirectory, validation: Split
) -> None:
    """Check that the origin was not trained on patients of the new validation fold.

    Raises:
        UsageError: the origin was trained on such patients.
    """
    described, path = origin.description, origin.run.path
    fold = described["options"]["fold"]
    if described["shards"]["digest"] == shards.digest() and fold != options.fold:
        raise UsageError(
            f"--fold {options.fold}: --continue_from {path} was trained on {validation.name};"
            f" want --fold {fold}, which it left out"
        )
    try:
        ids = read_ids(shards, (validation,))
    except UsageError:  # the index has no ids; `_hash_examples` reports it
        return
    texts = {str(name): ids[name].to_numpy(str) for name in ids}
    overlap = find_overlap(origin.run, shards, texts)
    if overlap is not None and overlap.patients:
        raise UsageError(
            f"--continue_from {path}: was trained on {overlap.patients} of"
            f" {overlap.all_patients} patients of {validation.name} of {shards.location};"
            " figures of that fold would say nothing of unseen patients"
        )
