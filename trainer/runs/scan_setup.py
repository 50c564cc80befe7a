"""Setup of the training of a scan model: checked before TensorFlow is loaded."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headct.declarations import flags
from headct.errors import UsageError
from trainer.data.shard_source import find_shards
from trainer.data.shards import ShardDirectory, Split
from trainer.display import Display
from trainer.files import check_writable, file_sha256, remove_unfinished, write_json, write_whole
from trainer.options import TrainScansOptions, run_identity
from trainer.runs.ensemble import Ensemble, open_runs
from trainer.runs.evaluation_setup import EvaluationSetup
from trainer.runs.run import LOCK, Calibration, Run, ScanOrigin, held


@dataclass(frozen=True)
class ScanSetup:
    """Constants of the training of a scan model.

    Attributes:
        slices: run of the slice network; end to end perhaps of `train_scans`: where both networks
            start.
        run: run of the scan model.
        training: splits to train on, those of the slice network.
        validation: the split that both leave out.
        is_fold: whether the run belongs to a cross-validation; if so, prints no final hint.
    """

    options: TrainScansOptions
    slices: Run
    run: Run
    shards: ShardDirectory
    training: tuple[Split, ...]
    validation: Split
    display: Display
    is_fold: bool = False

    @property
    def weights(self) -> tuple[float, ...]:
        """Loss weight per label, as in the training of the slice network."""
        return self.slices.weights

    @property
    def of_scans(self) -> bool:
        """Whether labels are of scans: a slice need not show what it is labeled with."""
        return self.shards.manifest.label_level not in (None, "image")

    def evaluation(self) -> EvaluationSetup:
        """Return the setup of the final evaluation."""
        return EvaluationSetup(
            run=self.run,
            shards=self.shards,
            split=self.validation,
            calibration=Calibration.none(len(self.shards.labels)),
            flip=False,
            batch_size=self.options.batch_size,
            display=self.display,
            trained_on=None if self.slices.record.continued_from else False,
            xla=self.slices.record.options.get("xla", "auto"),
        )

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Lock the run directory; write what makes it a run, unless it is there.

        Raises:
            UsageError: another process holds the lock.
        """
        with held(self.run.path):
            remove_unfinished(self.run.path)
            self.run.checkpoints.mkdir(exist_ok=True)
            remove_unfinished(self.run.checkpoints)
            if not self.run.description.is_file():
                for name in ("model", "trained_on"):
                    source, target = (getattr(one, name) for one in (self.slices, self.run))
                    if source.is_file():
                        write_whole(target, partial(shutil.copyfile, source))
                described = json.loads(self.slices.description.read_bytes())
                described["scans"] = {
                    "options": run_identity(self.options),
                    "run": str(self.slices.path.absolute()),
                    "began_with": networks_sha256(self.slices),
                }
                write_json(self.run.description, described)
            yield


def prepare_scans(options: TrainScansOptions) -> tuple[ScanSetup, ...]:
    """Check the run of the slice network, its shards and the new run directory.

    Returns:
        One setup; of a cross-validation, one per fold, each in the network of that fold.

    Raises:
        UsageError: one of them cannot be used, or they do not fit each other.
        StorageError: the bucket of the shards fails, or denies access.
    """
    slices = open_runs([options.run])
    if not isinstance(slices, Ensemble):
        return (_prepare(options, is_fold=False),)
    if slices.description.is_file():
        raise UsageError(f"{options.run}: is an ensemble; want one of its runs")
    return tuple(_prepare(options.of_fold(fold.path), is_fold=True) for fold in slices.networks)


def _prepare(options: TrainScansOptions, *, is_fold: bool) -> ScanSetup:
    """Prepare the training of one scan model; raises like `prepare_scans`."""
    slices, run, display = Run(options.run), Run(options.folder), Display()
    record = slices.record
    if record.scans and not options.end_to_end:
        raise UsageError(f"{options.run}: is a run of train_scans; want the run of a slice network")
    if not slices.is_complete:
        raise UsageError(f"{options.run}: training is not complete; `train` resumes it")
    slices.check_model()
    options = with_network(options, record.scans)
    check_other_run(run, options, slices)
    source = find_shards(options.shards or record.shards.path, options, display)
    shards = source.open()
    if shards.digest() != record.shards.digest:
        raise UsageError(
            f"{shards.location}: are not the shards that {options.run} was trained on; a scan model"
            " learns from the same slices as its slice network"
        )
    training, validation = shards.training_and_validation(record.options.fold)
    source.provide(shards, (*training, validation))
    shards.examples((*training, validation)).scans()  # must be known, and of one split each
    if not run.is_complete:
        check_writable(run.path, f"--output {run.path}")
        if options.cache == "disk" and options.cache_dir:
            check_writable(Path(options.cache_dir), f"--cache_dir {options.cache_dir}")
    return ScanSetup(options, slices, run, shards, training, validation, display, is_fold)


def networks_sha256(run: Run) -> str:
    """Return a hash of the networks of a run."""
    names = (run.model, run.scan_model) if run.record.scans else (run.model,)
    return " ".join(file_sha256(path) for path in names)


def with_network(options: TrainScansOptions, start: ScanOrigin | None) -> TrainScansOptions:
    """Return the options with the scan model of a run of `train_scans`, if that is the start.

    Raises:
        UsageError: a given option contradicts that model.
    """
    if start is None:
        return options
    if start.options.get("control", "none") != "none":
        raise UsageError(f"{options.run}: is a control ({start.options['control']})")
    taken = {name: start.options[name] for name in ("kind", "units", "dropout")}
    for name, value in taken.items():
        given = getattr(options, name)
        if name in options.model_fields_set and given != value:
            raise UsageError(f"--{name} {given}: {options.run} has {value}; leave it out")
    return options.model_copy(update=taken)


def check_other_run(run: Run, options: TrainScansOptions, slices: Run) -> None:
    """Raise UsageError if the directory holds another run, or other files."""
    if run.description.is_file():
        found: ScanOrigin | None = run.record.scans
        # A run of an earlier version lacks later options, which are off by default.
        defaults = {name: field.default for name, field in flags(type(options)).items()}
        before = defaults | (found.options if found else {})
        differing = [
            f"--{name} {before.get(name)} there, {value} now"
            for name, value in run_identity(options).items()
            if before.get(name) != value
        ]
        if found and found.began_with:
            same = found.began_with == networks_sha256(slices)
        else:
            same = run.model.is_file() and filecmp.cmp(run.model, slices.model, shallow=False)
        differing += [] if same else ["another slice network"]
        if found is None or differing:
            more = "; ".join(differing) if found else "a run of `train`"
            raise UsageError(f"--output {run.path} is of other options: {more}")
    elif run.path.exists() and (
        not run.path.is_dir() or any(path.name != LOCK for path in run.path.iterdir())
    ):
        # A run that did not begin leaves what is written before run.json.
        known = {path.name for path in (run.model, run.trained_on, run.checkpoints)}
        if not run.path.is_dir() or {path.name for path in run.path.iterdir()} - known - {LOCK}:
            raise UsageError(f"--output {run.path}: exists and is no run directory")
