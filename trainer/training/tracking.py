"""Experiment trackers, MLflow and Weights & Biases: what `--track` sends to them, and its state.

Their own Keras callbacks do not fit the training loop: `fit` runs once per epoch, resumed epochs
begin at a step, and validation is not part of `fit`.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from headct.declarations import Mark, flags
from headct.errors import HeadctError
from headct.json_documents import read_json
from headct.printable import hide_secrets
from trainer.display import Display
from trainer.files import write_json
from trainer.option_values import parse_trackers
from trainer.options import TrainOptions, run_identity
from trainer.runs.run import Run

PROJECT = "headct"  # experiment of MLflow, project of W&B, unless the environment names another
_LONGEST_FAILURE = 200  # characters of a message
_NOT_FIGURES = ("epoch", "intervals_95", "label_weights", "overlap")
Entry = dict[str, Any]


class Tracker(Protocol):
    """A run in a tracker.

    Every method may raise any exception, since servers and clients fail in many ways.
    """

    title: str

    def begin(self, run: TrackedRun, entry: Entry) -> str:
        """Start the run, or continue the run of an earlier start; return its location.

        Args:
            run: name, group and options of the run.
            entry: the tracker's entry in tracking.json, to read and to update.
        """

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """Log the figures of an epoch, numbered from 1."""

    def end(self, figures: Mapping[str, float], epoch: int, files: Sequence[Path]) -> None:
        """Log final figures and files, and mark the run as finished."""

    def stop(self) -> None:
        """Mark the run as interrupted."""


@dataclass(frozen=True)
class TrackedRun:
    """What trackers know about a run: neither paths nor ids of the data.

    Attributes:
        name: name of the run directory.
        options: the options that identify the run; of a path, the last part alone.
        group: name of the cross-validation; empty for other runs.
        parents: entry per tracker of the cross-validation's own run.
    """

    name: str
    options: Mapping[str, Any]
    group: str = ""
    parents: Mapping[str, Entry] = field(default_factory=dict)

    @classmethod
    def of(cls, options: TrainOptions, run: Run, group: Run | None) -> TrackedRun:
        """Describe a run, of a cross-validation or not."""
        fields = flags(type(options))
        shown = {
            name: Path(value).name if value and Mark.LOCATION in fields[name].metadata else value
            for name, value in run_identity(options).items()
        }
        name = run.path.resolve().name
        if group is None:
            return cls(name, shown)
        if group.path == run.path:  # the cross-validation itself
            del shown["fold"]
        return cls(name, shown, group.path.resolve().name, _read_state(group))


class MLflow:
    """A run in MLflow; a cross-validation is a run with one nested run per fold."""

    title = "MLflow"

    def begin(self, run: TrackedRun, entry: Entry) -> str:
        """See Tracker."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # MLflow's defaults would delay training by minutes if its server is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        import mlflow
        from mlflow.entities import Param

        self.client = mlflow.MlflowClient()
        address = mlflow.get_tracking_uri()
        store = hide_secrets(address)
        if entry.get("store") != store:  # another server: a new run, with all epochs
            entry.clear()
        if "run" in entry:
            self.run = entry["run"]
            self.client.update_run(self.run, status="RUNNING")
        else:
            experiment = self._find_experiment()
            tags = {}
            parent = run.parents.get("mlflow", {})
            if parent.get("store") == store:
                tags["mlflow.parentRunId"] = parent["run"]
            made = self.client.create_run(experiment, tags=tags, run_name=run.name)
            self.run = made.info.run_id
            entry |= {"store": store, "experiment": experiment, "run": self.run}
        given = [Param(name, str(value)) for name, value in run.options.items()]
        self.client.log_batch(self.run, params=given)  # equal values may be logged again
        if address.startswith(("http://", "https://")):
            return f"{store}/#/experiments/{entry['experiment']}/runs/{self.run}"
        return f"run {self.run} in {store}"

    def _find_experiment(self) -> str:
        """Return the id of the environment's experiment, or of ours; create it if missing."""
        if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return number
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self.client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self.client.create_experiment(name))

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """See Tracker."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # MLflow refuses other characters in names, which labels may have.
        named = {re.sub(r"[^\w/ -]", "_", name): value for name, value in figures.items()}
        metrics = [Metric(name, value, now, epoch) for name, value in named.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def end(self, figures: Mapping[str, float], epoch: int, files: Sequence[Path]) -> None:
        """See Tracker."""
        self.log(figures, epoch)
        for path in files:
            self.client.log_artifact(self.run, str(path))
        self.client.set_terminated(self.run)

    def stop(self) -> None:
        """See Tracker."""
        self.client.set_terminated(self.run, status="KILLED")


class WandB:
    """A run in Weights & Biases; a cross-validation is a group with a run of its own."""

    title = "Weights & Biases"

    def begin(self, run: TrackedRun, entry: Entry) -> str:
        """See Tracker."""
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode: Any = None  # as the environment says
        if not os.environ.get("WANDB_MODE") and not wandb.login(prompt=False):
            mode = "offline"
        entry.setdefault("run", os.urandom(4).hex())
        self.run = wandb.init(
            project=None if os.environ.get("WANDB_PROJECT") else PROJECT,
            id=entry["run"],
            name=run.name,
            group=run.group or None,
            config=dict(run.options),
            mode=mode,
            resume="allow",
            reinit="create_new",  # beside a run of the caller, or of a cross-validation
            # The command line and the terminal contain paths of the data.
            settings=wandb.Settings(console="off", disable_git=True, x_disable_meta=True),
        )
        if self.run.disabled:
            return "disabled by WANDB_MODE"
        if self.run.offline:
            folder = str(Path(self.run.dir).parent)
            return f"offline in {folder}; to upload: wandb sync {shlex.quote(folder)}"
        return str(self.run.url)

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """See Tracker."""
        self.run.log(dict(figures), step=epoch)

    def end(self, figures: Mapping[str, float], epoch: int, files: Sequence[Path]) -> None:
        """See Tracker."""
        self.run.summary.update(dict(figures))
        for path in files:
            kind = "model" if path.suffix == ".keras" else "report"
            self.run.log_artifact(str(path), name=f"{self.run.id}-{kind}", type=kind)
        self.run.finish()

    def stop(self) -> None:
        """See Tracker."""
        self.run.finish(exit_code=1)


_KINDS: dict[str, Callable[[], Tracker]] = {"mlflow": MLflow, "wandb": WandB}


class Tracking:
    """The trackers of a run; the first failure of each is a warning, and training continues.

    tracking.json in the run directory has an entry per tracker: the run's id there, and the number
    of epochs that were sent. A failed tracker is tried again at the end of the run, and whenever
    the run resumes, and then gets the missing epochs.

    Args:
        options: options of the run.
        run: the run directory.
        display: to say where the run is tracked, and to warn.
        group: folder of the cross-validation that the run belongs to.
    """

    def __init__(
        self, options: TrainOptions, run: Run, display: Display, group: Run | None = None
    ) -> None:
        self.options, self.run, self.display = options, run, display
        names = parse_trackers(options.track)
        self.trackers = {name: _KINDS[name]() for name in names}
        self.begun: set[str] = set()
        self.failed: set[str] = set()
        if names:
            self.described = TrackedRun.of(options, run, group)
            self.state = _read_state(run)
            run.path.mkdir(parents=True, exist_ok=True)  # a cross-validation has no files yet
        self.log([])

    def log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Send the epochs that were not sent yet, of all completed ones."""
        for name in self.trackers:
            if name not in self.failed:
                self._try(name, history)

    def end(self, figures: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()) -> None:
        """Send missing epochs and the final figures, with report and model if asked."""
        kept = {f"final/{name}": value for name, value in numbers(figures).items()}
        wanted = (self.run.report, self.run.model) if self.options.track_files else ()
        files = [path for path in wanted if path.is_file()]
        for name, tracker in self.trackers.items():
            self._try(name, history, partial(tracker.end, kept, len(history), files))
            self.begun.discard(name)

    def stop(self) -> None:
        """Mark the run as interrupted, in trackers that work."""
        for name in self.begun - self.failed:
            with suppress(Exception):
                self.trackers[name].stop()

    def _try(
        self,
        name: str,
        history: Sequence[Mapping[str, Any]],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        tracker, entry = self.trackers[name], self.state.setdefault(name, {})
        try:
            try:
                if name not in self.begun:
                    where = tracker.begin(self.described, entry)
                    self.begun.add(name)
                    self.display.print_unwrapped(f"{tracker.title}: {where}")
                for row in history[entry.get("epochs", 0) :]:
                    tracker.log(numbers(row), row["epoch"])
                    entry["epochs"] = row["epoch"]
            finally:
                write_json(self.run.path / "tracking.json", self.state)
            then()
        except HeadctError:
            raise  # the run directory cannot be written
        except Exception as error:
            if name not in self.failed:
                self.failed.add(name)
                reason = " ".join(str(error).split())[:_LONGEST_FAILURE]
                self.display.say(
                    f"warning: {tracker.title} failed, training continues"
                    f" ({type(error).__name__}: {reason})"
                )


@contextmanager
def tracked(
    options: TrainOptions, run: Run, display: Display, group: Run | None = None
) -> Iterator[Tracking]:
    """Track a run while the block runs; see `Tracking`."""
    tracking = Tracking(options, run, display, group)
    try:
        yield tracking
    except BaseException:
        tracking.stop()
        raise


def numbers(figures: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """Return the numbers in nested figures; the name of a nested one is its path, with slashes."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if name in _NOT_FIGURES or isinstance(value, bool):
            continue
        if isinstance(value, Mapping):
            flat |= numbers(value, f"{path}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            flat[f"{path}{name}"] = float(value)
    return flat


def _read_state(run: Run) -> dict[str, Entry]:
    """Return the content of tracking.json; empty if the file is missing or damaged."""
    try:
        state = read_json(run.path / "tracking.json")
    except HeadctError:
        return {}
    entries = state.items() if isinstance(state, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict)}
