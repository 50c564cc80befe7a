"""Comparison page of several runs: figures, and differences with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from headct.errors import UsageError
from headct.json_documents import read_json
from headct.layout import OUT_OF_FOLD
from headct.page import Table, page_templates
from trainer.data.shards import ALL_FOLDS
from trainer.display import Display, explain_weights
from trainer.evaluation.bootstrap import SAMPLES
from trainer.evaluation.measured import Measured, read_predictions
from trainer.files import check_output, write_whole
from trainer.report import plots
from trainer.report.plots import Picture
from trainer.report.strips import ScanCurves, choose_scans, draw_strips, find_curves
from trainer.runs.ensemble import Ensemble, open_runs
from trainer.runs.run import Run

# Titles of metrics.
TITLES = {
    "log_loss": "Log loss (nats), lower is better",
    "roc_auc": "ROC AUC, higher is better",
    "average_precision": "Average precision, higher is better",
}


@dataclass(frozen=True)
class ComparedRun:
    """A complete run.

    Attributes:
        title: short name on the page.
        run: the run directory.
        metrics: content of metrics.json.
        history: figures by epoch; None for an ensemble.
        measured: predictions sorted by image id, with the label weights of the first run.
    """

    title: str
    run: Run
    metrics: dict[str, Any]
    history: pd.DataFrame | None
    measured: Measured

    @property
    def models(self) -> str:
        """The backbone, or those of several runs."""
        names = [str(each.record.options.get("model", "")) for each in self.run.networks]
        return ", ".join(dict.fromkeys(names))

    @property
    def epochs(self) -> str:
        """The best epoch, or those of several runs; empty for an ensemble."""
        metrics = self.metrics
        return "" if self.history is None else f"{metrics['best_epoch']} of {metrics['epochs']}"

    @property
    def options(self) -> dict[str, Any]:
        """Options and versions of the training; of an ensemble, its members."""
        if isinstance(self.run, Ensemble) and self.history is None:
            return {"members": ", ".join(self.run.titles)}
        return {**dict(self.run.record.options), **self.run.record.versions}

    @property
    def weights(self) -> str:
        """Label weights in the losses of the run's history, in words."""
        return explain_weights(dict(zip(self.run.labels, self.run.weights, strict=True)))

    def has_slices_of(self, other: ComparedRun) -> bool:
        """Return whether both runs have the same shards, split, slices and labels."""
        keys = ["image_id", "patient_id"] + [f"label_{name}" for name in self.measured.names]
        return (
            self.run.record.shards.digest == other.run.record.shards.digest
            and self.metrics["split"] == other.metrics["split"]
            and self.measured.frame[keys].equals(other.measured.frame[keys])
        )


def write_comparison(paths: Sequence[Path], output: Path) -> None:
    """Write a page that compares runs with the first run; raises like `read_runs`.

    A cross-validation is compared with others by its out-of-fold predictions; alone, its runs are
    compared.
    """
    if len(paths) == 1:  # a cross-validation alone: its runs
        paths = [run.path for run in open_runs(paths).networks]
    if not 2 <= len(paths) <= len(plots.SERIES):
        raise UsageError(
            f"--runs: must be 2 to {len(plots.SERIES)} run directories, here: {len(paths)}"
        )
    check_output(output)
    runs = read_runs(paths)
    first, others = runs[0], runs[1:]
    paired = [run for run in others if run.has_slices_of(first)]
    groups: dict[str, list[ComparedRun]] = {}
    trained = [run for run in runs if run.history is not None]
    for run in trained:
        groups.setdefault(run.weights, []).append(run)
    if trained:
        auc = plot_course(trained, "val_mean_roc_auc", "Mean ROC AUC", (None, 1))
    courses = [
        plot_course(group, "val_loss", f"Validation loss, weights: {weights}", (0, None))
        for weights, group in groups.items()
    ]
    template = page_templates(Path(__file__).parent).get_template("compare.html.jinja")
    page = template.render(
        title=" and ".join(run.title for run in runs) if len(runs) == 2 else f"{len(runs)} runs",
        first=first.title,
        runs=run_table(runs),
        figures=[figure_table(runs, metric) for metric in TITLES],
        unpaired=[run.title for run in others if run not in paired],
        differences=[difference_table(first, paired, metric) for metric in TITLES if paired],
        samples=SAMPLES,
        course=[*courses, auc] if trained else [],
        roc=plot_labels(runs, "roc_auc", "ROC curves", plots.ROC, plots.roc_line),
        precision=plot_labels(
            runs,
            "average_precision",
            "Precision-recall curves",
            plots.PRECISION,
            plots.precision_line,
        ),
        **draw_scans(first, paired),
        options=option_table(runs),
    )
    write_whole(output, lambda path: path.write_text(page, encoding="utf-8"))
    Display().print_unwrapped(f"written: {output}")


def read_runs(paths: Sequence[Path]) -> list[ComparedRun]:
    """Read the runs; the label weights of the first run apply to all runs.

    Raises:
        UsageError: a run is incomplete or damaged, or the runs have different labels.
    """
    opened = [open_runs([path]) for path in paths]
    names, weights = opened[0].labels, opened[0].weights
    runs = []
    titles = [path.resolve().name for path in paths]
    if len(set(titles)) < len(titles):
        titles = [str(path) for path in paths]
    for run, title in zip(opened, titles, strict=True):
        if run.labels != names:
            raise UsageError(
                f"{run.path}: has labels {', '.join(run.labels)}; {paths[0]}: {', '.join(names)}"
            )
        if isinstance(run, Ensemble) and run.description.is_file():
            runs.append(read_ensemble(run, title, weights))
            continue
        metrics = [_read_metrics(each) for each in run.networks]
        is_one = not isinstance(run, Ensemble)
        path = run.predictions(metrics[0]["split"]) if is_one else run.path / OUT_OF_FOLD
        frame = read_predictions(path, names).sort_values("image_id", ignore_index=True)
        histories = [plots.history_table(read_json(each.history)) for each in run.networks]
        history = histories[0] if is_one else pd.concat(histories).groupby(level=0).mean()
        measured = Measured(frame, names, weights)
        described = metrics[0] if is_one else _of_all_folds(metrics, measured)
        runs.append(ComparedRun(title, run, described, history, measured))
    return runs


def read_ensemble(run: Ensemble, title: str, weights: tuple[float, ...]) -> ComparedRun:
    """Read an ensemble's figures for the split that no member was trained on.

    Raises:
        UsageError: it was not evaluated, or a file is damaged.
    """
    path = run.evaluation(run.validation)
    if not path.is_file():
        raise UsageError(
            f"{run.path}: has no figures of {run.validation}; `evaluate --run {run.path}` writes"
            " them"
        )
    metrics = read_json(path)
    frame = read_predictions(run.predictions(run.validation), run.labels)
    measured = Measured(frame.sort_values("image_id", ignore_index=True), run.labels, weights)
    return ComparedRun(title, run, metrics, None, measured)


def _read_metrics(run: Run) -> dict[str, Any]:
    """Read the figures of a run; raise UsageError if its training is not complete."""
    if not run.is_complete:
        raise UsageError(f"{run.path}: training is not complete, so there is nothing to compare")
    metrics: dict[str, Any] = read_json(run.metrics)
    return metrics


def _of_all_folds(metrics: Sequence[dict[str, Any]], measured: Measured) -> dict[str, Any]:
    """Return what the table of runs says of a cross-validation."""
    return {
        "split": ALL_FOLDS,
        "examples": len(measured.frame),
        "patients": measured.intervals["patients"],
        "best_epoch": ", ".join(str(each["best_epoch"]) for each in metrics),
        "epochs": metrics[0]["epochs"],
    }


def draw_scans(first: ComparedRun, others: Sequence[ComparedRun]) -> dict[str, Any]:
    """Return the section with scans as strips, for the template: without images of patients."""
    models = {run.title: run.measured.predicted for run in (first, *others)}
    curves = find_curves(first.measured, models)
    if not others or not isinstance(curves, ScanCurves):
        return {"strips": [], "models": []}
    strips = [(each, draw_strips(curves, each)) for each in choose_scans(curves)]
    return {"strips": strips, "models": [*models]}


def run_table(runs: Sequence[ComparedRun]) -> Table:
    """Make a table with one row per run."""
    texts = ("Run", "Directory", "Model", "Split", "Shards")
    numbers = ("Slices", "Patients", "Best epoch")
    columns = [*((text, "text") for text in texts), *((number, "number") for number in numbers)]
    rows = [
        [
            run.title,
            plots.CODE.format(run.run.path),
            run.models,
            run.metrics["split"],
            plots.CODE.format(run.run.record.shards.digest[:12]),
            run.metrics["examples"],
            run.metrics["patients"],
            f"{run.metrics['best_epoch']} of {run.metrics['epochs']}"
            if run.history is not None
            else "",
        ]
        for run in runs
    ]
    return Table("The runs", columns, rows)


def figure_table(runs: Sequence[ComparedRun], metric: str) -> Table:
    """Make a table of a metric and its intervals: one row per label, one column per run."""
    spec = ".4f" if metric == "log_loss" else ".3f"
    rows = [
        [title, *(run.measured.estimate(metric, name, spec) for run in runs)]
        for name, title in label_titles(runs[0], metric).items()
    ]
    columns = [("Label", "text"), *((run.title, "number") for run in runs)]
    return Table(TITLES[metric], columns, rows[:-1], rows[-1:])


def difference_table(first: ComparedRun, others: Sequence[ComparedRun], metric: str) -> Table:
    """Make a table of differences from the first run, with intervals from paired resamples."""
    spec = "+.4f" if metric == "log_loss" else "+.3f"
    columns = [("Label", "text")]
    rows: list[list[Any]] = [[title] for title in label_titles(first, metric).values()]
    for run in others:
        columns += [(f"{run.title} - {first.title}", "number"), (f"Verdict on {run.title}", "text")]
        for row, name in zip(rows, label_titles(first, metric), strict=True):
            difference = run.measured.difference(first.measured, metric, name, spec)
            row += [difference, verdict(difference.ends, metric == "log_loss")]
    return Table(f"Difference: {TITLES[metric]}", columns, rows[:-1], rows[-1:])


def label_titles(run: ComparedRun, metric: str) -> dict[str, str]:
    """Return the heading of each label's row by its name, and at last that of the mean."""
    weights = explain_weights(run.measured.figures["label_weights"])
    mean = f"Mean, weights: {weights}" if metric == "log_loss" else "Mean"
    return {name: name for name in run.measured.names} | {"": mean}


def verdict(ends: list[float] | None, lower_is_better: bool) -> str:
    """Return which run an interval of differences favors."""
    if ends is None:
        return "no interval"
    if ends[0] <= 0 <= ends[1]:
        return "undecided"
    return "better" if (ends[1] < 0) == lower_is_better else "worse"


def option_table(runs: Sequence[ComparedRun]) -> Table | None:
    """Make a table of the options and versions that differ between runs; None if none differ."""
    columns = [("Option", "text"), *((run.title, "text") for run in runs)]
    recorded = [run.options for run in runs]
    rows = []
    for name in dict.fromkeys(name for options in recorded for name in options):
        values = [str(options.get(name, "")) for options in recorded]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return Table("Options and versions that differ", columns, rows) if rows else None


def plot_course(
    runs: Sequence[ComparedRun], key: str, title: str, ylim: tuple[float | None, float | None]
) -> Picture:
    """Plot a figure by epoch, one curve per run."""
    curves = {run.title: run.history[key] for run in runs if run.history is not None}
    svg = plots.svg_by_epoch(f"{key} {title}", curves, title.partition(",")[0], ylim)
    last = "; ".join(f"{name}: {curve.iloc[-1]:.4f}" for name, curve in curves.items())
    alt = f"{title}, by epoch; after the last epoch, {last}."
    # A plot of one curve has no legend.
    whose = "on the fold left out" if len(runs) > 1 else runs[0].title
    return Picture(svg, alt, title, f"by epoch, {whose}")


def plot_labels(
    runs: Sequence[ComparedRun],
    metric: str,
    title: str,
    kind: plots.Kind,
    make_line: Callable[[Any, Any], pd.Series],
) -> list[Picture]:
    """Plot one curve per run, one plot per label with positives and negatives in all runs."""
    pictures = []
    for i, name in runs[0].measured.defined:
        if not all((i, name) in run.measured.defined for run in runs):
            continue
        curves = {
            run.title: make_line(run.measured.labels[:, i], run.measured.predicted[:, i])
            for run in runs
        }
        svg = plots.svg_in_unit_square(f"{title} {name}", curves, kind)
        areas = [f"{run.title} {run.measured.estimate(metric, name).number}" for run in runs]
        values = "; ".join(areas)
        alt = f"{title} of {name}. {TITLES[metric].split(',')[0]}: {values}."
        pictures.append(Picture(svg, alt, name, values))
    return pictures
