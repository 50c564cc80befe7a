"""Cross-validation: a run per fold, of slices or of scans, and out-of-fold predictions of all."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from headct.json_documents import read_json
from headct.layout import OUT_OF_FOLD
from headct.printable import show_line
from trainer.display import explain_weights, next_command, number
from trainer.evaluation.evaluate import OUT_OF_FOLD_NOTE, measure_scans
from trainer.evaluation.measured import Measured
from trainer.files import write_json, write_whole
from trainer.report.plots import SERIES
from trainer.runs.ensemble import CROSSVAL
from trainer.runs.run import Run
from trainer.runs.scan_setup import ScanSetup
from trainer.runs.training_setup import TrainingSetup
from trainer.training.tracking import tracked
from trainer.training.train import train
from trainer.training.train_scans import compare_with_slices, say_change, train_scans

_FIGURES = ("weighted_log_loss", "mean_roc_auc", "mean_average_precision")


Setups = Sequence[TrainingSetup] | Sequence[ScanSetup]


def crossvalidate(setups: tuple[TrainingSetup, ...]) -> None:
    """Train incomplete runs; write out_of_fold.parquet and crossval.json to their parent folder.

    Raises:
        UsageError: the weights cannot be loaded, or a shard is damaged.
        Diverged: a loss is no longer finite.
    """
    folder, display = setups[0].run.path.parent, setups[0].display
    with tracked(setups[0].options, Run(folder), display, Run(folder)) as tracking:
        for setup in setups:
            if _begins(setup):
                train(replace(setup, is_fold=True))
        shutil.rmtree(Run(folder).cache, ignore_errors=True)
        summary = conclude(setups)
        tracking.end({name: summary[name] for name in ("over_folds", "out_of_fold")})
    show_summary(setups, summary)
    # `compare` takes as many runs as there are colors
    few = len(setups) <= len(SERIES)
    hint = next_command("compare", runs=[folder]) if few else next_command("evaluate", run=folder)
    display.print_unwrapped(hint)


def crossvalidate_scans(setups: tuple[ScanSetup, ...]) -> None:
    """Train incomplete scan models of a cross-validation, and conclude as `crossvalidate` does.

    Raises:
        UsageError: a shard is damaged, or a network cannot be loaded.
        Diverged: a loss is no longer finite.
    """
    for setup in setups:
        if _begins(setup):
            train_scans(setup)
    summary = conclude(setups)
    show_summary(setups, summary)
    say_change(setups[0].display, summary["against_slices"])
    folders = [path.path.parent for path in (setups[0].slices, setups[0].run)]
    setups[0].display.print_unwrapped(next_command("compare", runs=folders))


def _begins(setup: TrainingSetup | ScanSetup) -> bool:
    """Return whether a run is incomplete; free the device memory of the fold before it."""
    if setup.run.is_complete:
        return False
    setup.display.say(f"{setup.validation.name}: {setup.run.path}")
    keras.utils.clear_session()
    gc.collect()
    return True


def conclude(setups: Setups) -> dict[str, Any]:
    """Write out_of_fold.parquet and crossval.json, and return the latter."""
    folder = setups[0].run.path.parent
    frame = pd.concat(
        [pd.read_parquet(setup.run.predictions(setup.validation.name)) for setup in setups],
        ignore_index=True,
    )
    write_whole(folder / OUT_OF_FOLD, lambda path: frame.to_parquet(path, index=False))
    summary = summarize(setups, frame)
    write_json(folder / CROSSVAL, summary)
    return summary


def show_summary(setups: Setups, summary: dict[str, Any]) -> None:
    """Print the figures of a cross-validation."""
    folder, display = setups[0].run.path.parent, setups[0].display
    display.console.print(summary_table(summary, str(folder)))
    display.say(f"Log loss: weights {explain_weights(summary['label_weights'])}.")
    display.say(OUT_OF_FOLD_NOTE)
    display.print_unwrapped(f"written: {folder}/{CROSSVAL}, {folder}/{OUT_OF_FOLD}")


def summarize(setups: Setups, frame: pd.DataFrame) -> dict[str, Any]:
    """Return figures of the pooled slices, and mean and deviation over the folds.

    Of scan models, also the figures per scan, and the paired difference from the slice networks.
    """
    names, weights = setups[0].shards.labels, setups[0].weights
    measured = Measured(frame, names, weights)
    folds = [read_json(setup.run.metrics) for setup in setups]
    of_scans = measure_scans(measured)
    against = {"against_slices": compare_with_slices(measured)} if of_scans else {}
    return {
        "label_weights": dict(zip(names, weights, strict=True)),
        "folds": {
            fold["split"]: {name: fold[name] for name in ("examples", "best_epoch", *_FIGURES)}
            for fold in folds
        },
        "over_folds": {name: mean_and_spread([fold[name] for fold in folds]) for name in _FIGURES},
        "out_of_fold": {
            "pooled_over": len(folds),
            **measured.figures,
            "intervals_95": measured.intervals,
            **of_scans,
        },
        **against,
    }


def mean_and_spread(values: list[float | None]) -> dict[str, float | None]:
    """Return mean and sample standard deviation of the defined values."""
    defined = np.array([value for value in values if value is not None])
    return {
        "mean": float(defined.mean()) if len(defined) else None,
        "deviation": float(defined.std(ddof=1)) if len(defined) > 1 else None,
    }


def summary_table(summary: dict[str, Any], title: str) -> Table:
    """Make a table: one row per fold, mean and deviation, pooled slices."""
    table = Table(title=Text(show_line(title)), title_justify="left")
    for name in ("", "examples", "log loss", "mean ROC AUC", "mean avg. precision"):
        table.add_column(name, justify="left" if not name else "right")
    for name, fold in summary["folds"].items():
        table.add_row(name, str(fold["examples"]), *(number(fold[figure]) for figure in _FIGURES))
    table.add_section()
    over = summary["over_folds"]
    table.add_row("mean", "", *(number(over[name]["mean"]) for name in _FIGURES))
    table.add_row("deviation", "", *(number(over[name]["deviation"]) for name in _FIGURES))
    every = summary["out_of_fold"]
    table.add_row(
        "out of fold, pooled", str(every["examples"]), *(number(every[name]) for name in _FIGURES)
    )
    return table
