"""Setup of a training: checked before TensorFlow is loaded or anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct.errors import UsageError
from headct.layout import PATIENT_ID
from headct.reader import Shards
from trainer.data.neighbors import Neighbors
from trainer.data.sampling import balanced_rates
from trainer.data.shard_source import find_shards
from trainer.data.shards import ShardDirectory, Split, count
from trainer.display import Display
from trainer.files import check_writable, file_sha256
from trainer.networks.catalog import find_backbone
from trainer.option_values import label_weights, parse_trackers
from trainer.options import CrossvalOptions, TrainOptions
from trainer.runs.run import Origin, Run
from trainer.runs.trained_on import find_overlap, hash_examples, read_ids

# Options that come from the origin's saved network; the new run chooses all other options.
_NETWORK_OPTIONS = ("model", "image_size", "crop_head", "windows", "neighbors", "neighbors_mm")


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
    run: Run
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
    def neighbors(self) -> Neighbors:
        """The slices that the network sees with a slice."""
        return Neighbors(self.options.neighbors, self.options.neighbors_mm)

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return count(self.training) // self.options.batch_size


def prepare_crossval(options: CrossvalOptions) -> tuple[TrainingSetup, ...]:
    """Prepare one training per labeled fold, in run directories below `options.run`.

    Raises:
        UsageError, StorageError: see `prepare_training`.
    """
    shards = find_shards(options.shards, options, Display()).open()
    folds = shards.folds()
    if len(folds) < 2:
        raise UsageError(f"{shards.location}: has {len(folds)} labeled folds; it takes two or more")
    values = options.model_dump(exclude_unset=True)
    # One cache for all runs: every fold is training data of all other runs.
    values["cache_dir"] = options.cache_dir or str(Run(options.run).cache)
    changes = ({"fold": int(s.name[4:]), "run": options.run / s.name} for s in folds)
    return tuple(prepare_training(TrainOptions(**values | change)) for change in changes)


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
    shards = source.open()
    training, validation = shards.training_and_validation(options.fold)
    options, origin = continue_from(options, shards)
    if builder is None:
        find_backbone(options.model, options.image_size, options.weights)
    elif options.weights != "none":
        raise UsageError(f"--weights {options.weights}: {options.model} brings its own weights")
    weights = label_weights(options.label_weights, shards.labels)
    for name in parse_trackers(options.track):
        if find_spec(name) is None:
            remedy = f"pip install 'headct-shards[{name}]'"
            raise UsageError(f"--track {name}: {name} is not installed; {remedy}")
    for name in ("windows", "window_jitter"):
        if getattr(options, name) and not shards.image.is_hounsfield:
            raise UsageError(f"--{name}: the shards hold windowed images, not Hounsfield units")
    if count(training) < options.batch_size:
        raise UsageError(
            f"--batch_size {options.batch_size}: there are {count(training)} training examples"
        )
    if options.neighbors and options.cache == "none":
        raise UsageError(
            f"--neighbors {options.neighbors}: reads slices in any order; want --cache ram, disk or"
            " device, which keep the images"
        )
    run, examples, trained_on = Run(options.run), None, None
    if "batch_size" not in options.model_fields_set and run.description.is_file():
        # A GPU of another size would choose another one.
        before = {"batch_size": run.record.options.get("batch_size", options.batch_size)}
        options = type(options)(**options.model_dump(exclude_unset=True) | before)
    run.check(options, shards, origin)
    if not run.is_complete:
        check_writable(run.path, f"--run {run.path}")
        if options.cache == "disk" and options.cache_dir:
            check_writable(Path(options.cache_dir), f"--cache_dir {options.cache_dir}")
        source.provide(shards, (*training, validation))
        examples = shards.examples(training) if options.sampling == "balanced" else None
        if options.neighbors:  # also checks that no scan crosses the border of a fold
            shards.examples((*training, validation)).scans()
        if not run.trained_on.is_file():
            try:
                trained_on = hash_examples(shards, training)
            except UsageError as error:  # the index has no ids
                display.say(f"{error}: evaluations will not know whom the run was trained on")
        if origin is not None:
            _check_validation(Run(Path(origin.run)), options, shards, validation)
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


def continue_from(
    options: TrainOptions, shards: ShardDirectory
) -> tuple[TrainOptions, Origin | None]:
    """Return the options with the network of `--continue_from`, if given, and that run.

    Raises:
        UsageError: the run has no model yet or does not fit the shards, or a given option
            contradicts its network.
    """
    if not options.continue_from:
        return options, None
    run = Run(Path(options.continue_from))
    theirs = run.record.options
    if not run.model.is_file():
        raise UsageError(f"--continue_from {run.path}: no model yet; no epoch of it is finished")
    run.check_fit(shards)
    taken = {name: value for name, value in theirs if name in _NETWORK_OPTIONS}
    taken["weights"] = "none"
    for name, value in taken.items():
        given = getattr(options, name)
        if name in options.model_fields_set and given != value:
            has = "brings its own" if name == "weights" else f"has {value or 'the default'}"
            raise UsageError(f"--{name} {given}: --continue_from {run.path} {has}; leave it out")
    origin = Origin(str(run.path.absolute()), file_sha256(run.model))
    return type(options)(**options.model_dump(exclude_unset=True) | taken), origin


def _check_validation(
    origin: Run, options: TrainOptions, shards: ShardDirectory, validation: Split
) -> None:
    """Raise UsageError if the origin was trained on patients of the new validation fold."""
    fold = origin.record.options.fold
    if origin.record.shards.digest == shards.digest() and fold != options.fold:
        raise UsageError(
            f"--fold {options.fold}: --continue_from {origin.path} was trained on"
            f" {validation.name}; want --fold {fold}, which it left out"
        )
    try:
        ids = read_ids(shards, (validation,))
    except UsageError:  # the index has no ids; `prepare_training` has said so
        return
    texts = {str(name): ids[name].to_numpy(str) for name in ids}
    overlap = find_overlap(origin, shards, texts)["overlap"]
    if overlap and overlap["patients"]:
        raise UsageError(
            f"--continue_from {origin.path}: was trained on {overlap['patients']} of"
            f" {ids[PATIENT_ID].nunique()} patients of {validation.name} of {shards.location};"
            " figures of that fold would say nothing of unseen patients"
        )
