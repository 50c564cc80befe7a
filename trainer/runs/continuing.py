"""A run that starts from the whole best model of another one, head and all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headct.errors import UsageError
from trainer.data.index import read_ids
from trainer.data.shards import ShardDirectory, Split
from trainer.options import TrainOptions
from trainer.runs.run_directory import RunDirectory, read_description
from trainer.runs.trained_on import find_overlap

# What the saved network is made for; all else is the new run's own.
_TAKEN = ("model", "image_size", "windows")


@dataclass(frozen=True)
class Origin:
    """The run whose best model another one starts from.

    Attributes:
        run: its directory.
        description: its run.json.
        sha256: of its model.
    """

    run: RunDirectory
    description: dict[str, Any]
    sha256: str

    def recorded(self) -> dict[str, str]:
        """What run.json of the new run says of it."""
        return {"run": str(self.run.path.absolute()), "model_sha256": self.sha256}


def find_origin(options: TrainOptions) -> Origin | None:
    """The run that `--continue_from` names; None where it names none.

    Raises:
        UsageError: there is no such run, or it has no model yet.
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
    """The options of a run that has the network of its origin.

    Raises:
        UsageError: an option that was given says otherwise.
    """
    theirs = origin.description["options"]
    taken = {name: theirs[name] for name in _TAKEN if name in theirs} | {"weights": "none"}
    for name, value in taken.items():
        given = getattr(options, name)
        if name in options.model_fields_set and given != value:
            has = "brings its own" if name == "weights" else f"has {value or 'the default'}"
            raise UsageError(
                f"--{name} {given}: --continue_from {origin.run.path} {has}; leave it out"
            )
    return type(options)(**options.model_dump(exclude_unset=True) | taken)


def check_validation(
    origin: Origin, options: TrainOptions, shards: ShardDirectory, validation: Split
) -> None:
    """Compares whom the origin was trained on with whom the new run is validated on.

    Raises:
        UsageError: the origin was trained on some of them.
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
    except UsageError:  # where training says so, too
        return
    texts = {str(name): ids[name].to_numpy(str) for name in ids}
    overlap = find_overlap(origin.run, shards, texts)
    if overlap is not None and overlap.patients:
        raise UsageError(
            f"--continue_from {path}: was trained on {overlap.patients} of"
            f" {overlap.all_patients} patients of {validation.name} of {shards.location};"
            " figures of that fold would say nothing of unseen patients"
        )
