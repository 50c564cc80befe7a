"""The runs that a comparison is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from headct.errors import UsageError
from headct.json_documents import read_json
from trainer.evaluation.bootstrap import SAMPLES, ResampledFigures, resample_figures
from trainer.evaluation.measured import Measured, measure_frame, read_predictions
from trainer.options import label_weights
from trainer.runs.run_directory import RunDirectory, read_description


@dataclass(frozen=True)
class ComparedRun:
    """A run that is complete, and its predictions in the order of the image ids.

    Attributes:
        measured: with the weights of the first run's labels.
    """

    title: str
    path: Path
    description: dict[str, Any]
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    frame: pd.DataFrame
    measured: Measured

    @property
    def own_weights(self) -> dict[str, float]:
        """The weights of labels in the losses of its history."""
        text, names = self.description["options"]["label_weights"], self.measured.names
        return dict(zip(names, label_weights(text, names, saved=True), strict=True))

    @cached_property
    def resampled(self) -> ResampledFigures:
        """Figures of the same resamples of patients for each run of the same slices."""
        one = self.measured
        return resample_figures(one.labels, one.predicted, one.patients, samples=SAMPLES)

    def measured_as(self, other: ComparedRun) -> bool:
        """Whether both were measured on the same slices, with the same labels, of the same data."""
        mine, theirs = self.description["shards"], other.description["shards"]
        keys = ["image_id", "patient_id"] + [f"label_{name}" for name in self.measured.names]
        return (
            mine["digest"] == theirs["digest"]
            and self.metrics["split"] == other.metrics["split"]
            and self.frame[keys].equals(other.frame[keys])
        )


def read_runs(paths: Sequence[Path]) -> list[ComparedRun]:
    """Reads what is compared; the weights of the first run's labels count for all.

    Raises:
        UsageError: a run is not complete or damaged, or the runs have different labels.
    """
    described = [read_description(RunDirectory(path)) for path in paths]
    names = tuple(described[0]["shards"]["labels"])
    weights = label_weights(described[0]["options"]["label_weights"], names, saved=True)
    titles = short_titles(paths)
    runs = []
    for path, title, description in zip(paths, titles, described, strict=True):
        run, labels = RunDirectory(path), tuple(description["shards"]["labels"])
        if labels != names:
            raise UsageError(
                f"{path}: has labels {', '.join(labels)}; {paths[0]}: {', '.join(names)}"
            )
        if not run.is_complete:
            raise UsageError(f"{path}: training is not complete, so there is nothing to compare")
        metrics = read_json(run.metrics)
        frame = read_predictions(run.predictions(metrics["split"]), names)
        frame = frame.sort_values("image_id", ignore_index=True)
        measured = measure_frame(frame, names, weights)
        history = read_json(path / "history.json")
        runs.append(ComparedRun(title, path, description, metrics, history, frame, measured))
    return runs


def short_titles(paths: Sequence[Path]) -> list[str]:
    """The names of the run directories; with their parents' where two are the same."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) == len(names):
        return names
    longer = [f"{path.resolve().parent.name}/{path.resolve().name}" for path in paths]
    return longer if len(set(longer)) == len(longer) else [str(path) for path in paths]
