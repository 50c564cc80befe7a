"""Several runs that answer as one: listed runs, a cross-validation, or an ensemble's own folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass

from headct.errors import UsageError
from headct.json_documents import must, read_document
from headct.layout import fold_number, fold_split
from headct.printable import shown
from trainer.data.shards import ALL_FOLDS, PREPROCESSING, ShardDirectory, Split
from trainer.files import write_json
from trainer.runs.run import Line, Run, RunRecord, Share, Text, model_inputs
from trainer.runs.trained_on import Texts, find_known

CROSSVAL = "crossval.json"
Mean = Literal["logits", "probabilities"]
# Members may differ in the names of images: they change no pixel.
_IMAGES = tuple(name for name in PREPROCESSING if name != "image_id")
_SAME_SUM = 1e-6


@dataclass
class EnsembleRecord:
    """The content of ensemble.json.

    Attributes:
        runs: paths of the members: runs, or folders of cross-validations.
        mean: what the mean is taken of.
        weights: weight per member, with the sum 1; null for equal ones.
        split: split that the weights were fitted on; empty for equal ones.
        digest: digest of its shards.
    """

    runs: Annotated[list[Line], Field(min_length=1, max_length=1000), must("a list of paths")]
    mean: Annotated[Mean, must("logits or probabilities")] = "logits"
    weights: Annotated[list[Share], must("a list of numbers from 0 to 1, or null")] | None = None
    split: Text = ""
    digest: Text = ""


class Ensemble(Run):
    """Several runs that answer as one, and the directory of their figures.

    What commands ask of a run is the first run's, where all agree, or a mean.

    Attributes:
        members: runs of each member: one, or all of a cross-validation, of which those answer that
            were not trained on a slice's patient.
        ensemble: the content of ensemble.json.
    """

    def __init__(
        self, path: Path, members: tuple[tuple[Run, ...], ...], ensemble: EnsembleRecord
    ) -> None:
        super().__init__(path)
        self.description = path / "ensemble.json"
        self.members = members
        self.ensemble = ensemble

    @property
    def networks(self) -> tuple[Run, ...]:
        """The runs of all members."""
        return tuple(run for member in self.members for run in member)

    @cached_property
    def record(self) -> RunRecord:
        """The first run's, with the mean of all prevalences."""
        records = [run.record for run in self.networks]
        prevalence = np.mean([each.shards.prevalence for each in records], axis=0).tolist()
        return replace(records[0], shards=replace(records[0].shards, prevalence=prevalence))

    @property
    def shares(self) -> tuple[float, ...]:
        """Weight per member, with the sum 1."""
        count = len(self.members)
        return tuple(self.ensemble.weights or (1 / count,) * count)

    @property
    def titles(self) -> tuple[str, ...]:
        """Short names of the members; paths from a common folder if two have the same last part."""
        paths = [Path(path).resolve() for path in self.ensemble.runs]
        names = [path.name for path in paths]
        if len(set(names)) == len(names):
            return tuple(names)
        common = Path(os.path.commonpath(paths))
        base = common.parent if common in paths else common
        return tuple(str(path.relative_to(base)) for path in paths)

    @property
    def validation(self) -> str:
        """The split that no run was trained on; all folds if a member is a cross-validation.

        Raises:
            UsageError: the runs left out different folds.
        """
        if divided := {m[0].record.shards.digest: t for m, t in self._crossvals()}:
            if len(divided) > 1:
                raise UsageError(
                    f"--run: {' and '.join(divided.values())} are cross-validations of different"
                    " shards, whose folds differ; want those of the same shards, or --split holdout"
                )
            return ALL_FOLDS
        folds = {fold_split(run.record.options.fold): run for run in reversed(self.networks)}
        if len(folds) > 1:
            named = ", ".join(f"{fold} of {run.path}" for fold, run in folds.items())
            raise UsageError(
                f"--run: left out different folds ({named}), so that each fold was trained on by"
                " a run; want runs with the same --fold, the folder of a cross-validation, or"
                " --split holdout"
            )
        return super().validation

    def _crossvals(self) -> list[tuple[tuple[Run, ...], str]]:
        """Return the members that are cross-validations, with their titles."""
        pairs = zip(self.members, self.titles, strict=True)
        return [(member, title) for member, title in pairs if len(member) > 1]

    def check_model(self) -> None:
        """Raise UsageError if a run has no model yet."""
        for run in self.networks:
            run.check_model()

    def check_fit_of_members(self) -> None:
        """Raise UsageError if the runs' labels, windows or images differ."""
        first, *others = self.networks
        theirs = _inputs(first)
        for run in others:
            for name, mine in _inputs(run).items():
                if name in theirs and mine != theirs[name]:
                    raise UsageError(
                        f"--run {run.path}: was trained on {name} {_text(mine)}, {first.path} on"
                        f" {_text(theirs[name])}; the runs of an ensemble need the same"
                    )

    def known(
        self, shards: ShardDirectory, split: Split, texts: Texts
    ) -> list[npt.NDArray[np.bool_] | None]:
        """Return for each run which examples' patients it was trained on; see `find_known`."""
        return [find_known(run, shards, split, texts) for run in self.networks]

    def answering(
        self, known: Sequence[npt.NDArray[np.bool_] | None], examples: int
    ) -> npt.NDArray[np.bool_]:
        """Return which run answers which example, [R, N].

        A run of a cross-validation answers for patients it was not trained on, unless all were.

        Args:
            known: for each run, as from `known`.
            examples: their number, N.
        """
        unseen = [~each if each is not None else np.ones(examples, np.bool_) for each in known]
        rows = []
        for own in self.by_member(unseen):
            of_member = np.stack(own)
            rows.append(of_member | ~of_member.any(axis=0))
        return np.concatenate(rows)

    def seen_by_members(
        self, shards: ShardDirectory, split: Split, texts: Texts
    ) -> dict[str, npt.NDArray[np.bool_] | None]:
        """Return by member for which examples no run is left that was not trained on the patient.

        None if that is not known of all its runs; arguments as for `find_known`.
        """
        known = self.by_member(self.known(shards, split, texts))
        return {
            title: np.all(of_member, axis=0) if all(k is not None for k in of_member) else None
            for title, of_member in zip(self.titles, known, strict=True)
        }

    def by_member(self, of_runs: Any) -> list[Any]:
        """Group what there is for each run of `networks` by member."""
        ends = np.cumsum([len(member) for member in self.members])
        return [of_runs[end - len(m) : end] for m, end in zip(self.members, ends, strict=True)]

    def of_single_runs(self) -> Ensemble:
        """Return the same ensemble with each run as a member."""
        record = replace(self.ensemble, runs=[str(run.path) for run in self.networks])
        return Ensemble(self.path, tuple((run,) for run in self.networks), record)

    def check_home(self, fit_weights: bool) -> None:
        """Check that the figures and weights can be written to the directory.

        Raises:
            UsageError: it is not empty and not of this ensemble, or has a calibration of other
                weights.
        """
        if len(self.members) == 1:
            if fit_weights:
                raise UsageError(
                    f"--fit_weights: {self.path} is one cross-validation, whose runs answer"
                    " different slices; want several runs or cross-validations"
                )
            return
        recorded = read_ensemble(self.path)
        if recorded is None and self.path.exists() and not _is_empty(self.path):
            raise UsageError(f"--output {self.path}: exists and is not an ensemble's folder")
        if recorded and (recorded.runs, recorded.mean) != (self.ensemble.runs, self.ensemble.mean):
            raise UsageError(f"--output {self.path}: is another ensemble's; choose another folder")
        if fit_weights and self.temperatures.is_file():
            raise UsageError(
                f"--fit_weights: {self.path} has a calibration for its present weights; choose"
                " another --output"
            )

    def write(self) -> None:
        """Write ensemble.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.description, self.ensemble.__dict__)


def open_runs(
    paths: Sequence[Path],
    mean: Mean | None = None,
    output: Path | None = None,
    kept: Mapping[str, bool] | None = None,
) -> Run:
    """Open one run, or several as an ensemble.

    Args:
        paths: runs and cross-validations; or one folder of an ensemble.
        mean: what the mean over runs is taken of; None: as the ensemble's folder, or logits.
        output: directory for an ensemble's figures; None: that of the only path.
        kept: by option whether something from the directory is wanted, such as a calibration.

    Raises:
        UsageError: no such run; the runs do not fit each other.
    """
    path, recorded = paths[0], None
    if len(paths) == 1:
        if (path / "run.json").is_file():
            return Run(path)
        recorded = read_ensemble(path)
        if recorded is None and not _folds(path):
            return Run(path)
        if recorded and mean not in (None, recorded.mean):
            raise UsageError(f"--ensemble_mean {mean}: {path} was written with {recorded.mean}")
    elif output is None and (option := next((n for n, v in (kept or {}).items() if v), "")):
        raise UsageError(
            f"--{option}: is kept in an ensemble's folder; want that folder, which `evaluate"
            " --output` writes, in place of its runs"
        )
    record = recorded or EnsembleRecord([str(p.absolute()) for p in paths], mean or "logits")
    if len(set(record.runs)) < len(record.runs):
        raise UsageError("--run: names a run twice")
    members = tuple(_open_member(Path(each)) for each in record.runs)
    found = Ensemble(path if len(paths) == 1 else output or Path("ensemble"), members, record)
    if record.weights and (
        len(record.weights) != len(members) or abs(sum(record.weights) - 1) > _SAME_SUM
    ):
        raise UsageError(f"{found.description}: weights: must be one per run, with the sum 1")
    found.check_fit_of_members()
    return found


def read_ensemble(path: Path) -> EnsembleRecord | None:
    """Read ensemble.json of a folder; None without one."""
    try:
        record: EnsembleRecord = read_document(path / "ensemble.json", EnsembleRecord)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return record


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _open_member(path: Path) -> tuple[Run, ...]:
    """Return a run, or those of a cross-validation.

    Raises:
        UsageError: neither, or the cross-validation is not complete.
    """
    run = Run(path)
    if run.description.is_file() or not (folds := _folds(path)):
        if (path / "ensemble.json").is_file():
            raise UsageError(f"--run {path}: is an ensemble; want its runs")
        _ = run.record  # must be there
        return (run,)
    if not (path / CROSSVAL).is_file():
        raise UsageError(
            f"--run {path}: the cross-validation is not complete; the same `crossval` resumes it"
        )
    return folds


def _folds(path: Path) -> tuple[Run, ...]:
    """Return the runs of a cross-validation's folder, by fold."""
    found = {fold_number(each.parent.name): each.parent for each in path.glob("fold*/run.json")}
    return tuple(Run(found[number]) for number in sorted(n for n in found if n is not None))


def _inputs(run: Run) -> dict[str, Any]:
    """Return what must be the same for all runs of an ensemble, as far as recorded."""
    trained = run.record.shards
    made = {name: v for name, v in trained.preprocessing.items() if name in _IMAGES}
    return {**model_inputs(trained), **{f"--{name}": value for name, value in made.items()}}


def _text(value: Any) -> str:
    """Return a value of `_inputs` in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, list):
        parts = ([*each.values()] if isinstance(each, dict) else [each] for each in value)
        return ", ".join(" ".join(map(_number, part)) for part in parts)
    return shown(value)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
