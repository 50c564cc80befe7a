"""report.html: one self-contained page per run, without scripts or network access."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from headct.declarations import flags
from headct.json_documents import read_json
from headct.layout import CARD
from trainer.display import explain_figures, explain_weights
from trainer.evaluation.measured import Measured, measure_frame, read_predictions
from trainer.evaluation.thresholds import SENSITIVITY
from trainer.networks.catalog import BACKBONES
from trainer.options import TrainOptions
from trainer.report.page import code, decimal, plural, spread, write_page
from trainer.report.plots import plot_confusion, plot_curves, plot_history, plot_speed
from trainer.report.run_plots import (
    calibration_plots,
    precision_plots,
    roc_plots,
    training_plots,
)
from trainer.report.slices import picture_slices
from trainer.report.tables import confusion_table, loss_table, ranking_table, threshold_tables
from trainer.report.tensorboard import log_picture
from trainer.runs.evaluation_setup import EvaluationSetup
from trainer.runs.run_directory import RunDirectory, read_description

SECTIONS = {
    "discrimination": "Discrimination",
    "loss": "Log loss",
    "calibration": "Calibration",
    "thresholds": "Thresholds",
    "studies": "By study",
    "confusion": "Confusion of labels",
    "answers": "Mistakes and hits",
    "training": "Training",
    "provenance": "Provenance",
}
# Below these counts, intervals are wide and a single study changes figures visibly.
FEW_STUDIES, FEW_POSITIVES = 100, 20
UNRECORDED = "not recorded"


def write_report(job: EvaluationSetup, mistakes: int) -> None:
    """Write report.html into a complete run, and its plots into the TensorBoard logs.

    Args:
        job: the run and the split that training left out.
        mistakes: number of mistakes, and of hits, to show as images.

    Raises:
        UsageError: a file of the run or a shard is damaged.
    """
    run, names = job.run, job.shards.labels
    metrics, history = read_json(run.metrics), read_json(run.path / "history.json")
    frame = read_predictions(run.predictions(job.split.name), names)
    slices = measure_frame(frame, names, job.weights)
    studies = slices.by_study(frame["study_id"].to_numpy())
    figures = {
        "Course": plot_history(history, names),
        "Speed": plot_speed(history),
        "Curves": plot_curves(slices, metrics["labels"]),
        "Subtypes": plot_confusion(slices),
    }
    for title, figure in figures.items():
        log_picture(run.path / "tensorboard", title, figure, metrics["epochs"])
    description = read_description(run)
    errors = {name: label["calibration_error"] for name, label in metrics["labels"].items()}
    values = {
        "run": run.path.name,
        "split": job.split.name,
        **headline(slices, metrics, studies),
        "ranking": ranking_table(slices, "slices", errors),
        "loss": loss_table(slices, job.prevalence),
        "roc": roc_plots(slices),
        "precision": precision_plots(slices),
        "calibration": calibration_plots(slices, metrics["labels"]),
        "thresholds": threshold_tables(slices, "by slice"),
        "study_ranking": ranking_table(studies, "studies"),
        "study_thresholds": threshold_tables(studies, "by study"),
        "study_caution": study_caution(studies),
        "means": confusion_table(slices),
        "sensitivity": SENSITIVITY,
        **picture_values(job, slices, mistakes),
        "training": training_plots(history, names, metrics["best_epoch"]),
        "provenance": describe_origin(run, description, metrics, job.shards.path),
        "options": option_rows(description["options"]),
    }
    write_page(run.report, "report.html.jinja", **values)
    job.display.print_unwrapped(f"written: {run.report}")


def headline(slices: Measured, metrics: dict[str, Any], studies: Measured) -> dict[str, Any]:
    """Return the template values of the page's top."""
    figures, ends = slices.figures, slices.intervals
    weights = figures["label_weights"]
    # Shards from other software may have a patient in two folds.
    unseen = metrics.get("trained_on", False) is False
    alone = decimal(metrics["prevalence_log_loss"])
    rest = f"; {alone} by prevalence alone; weights: {explain_weights(weights)}"
    tiles = (
        ("Weighted log loss", slices, "weighted_log_loss", rest),
        ("Mean ROC AUC", slices, "mean_roc_auc", ", by slice"),
        ("Mean average precision", slices, "mean_average_precision", ", by slice"),
        ("Mean ROC AUC by study", studies, "mean_roc_auc", ""),
    )
    return {
        "headline": [
            (
                title,
                decimal(measured.figures[key]),
                f"{spread(measured.intervals[key]) or 'no interval'}{note}",
            )
            for title, measured, key, note in tiles
        ],
        "summary": f"{plural(metrics['examples'], 'slice', 'slices')} of"
        f" {plural(metrics['patients'], 'patient', 'patients')} in"
        f" {plural(len(studies.labels), 'study', 'studies')}"
        f"{', which the model was not trained on' if unseen else ''}.",
        "unseen": unseen,
        "meaning": " ".join(
            explain_figures(metrics | {"intervals_95": ends, "label_weights": weights})
        ),
        "samples": ends["samples"],
    }


def study_caution(studies: Measured) -> str:
    """Warn of too few studies, or too few positive ones; empty if there are enough."""
    warnings = []
    count = len(studies.labels)
    if count < FEW_STUDIES:
        warnings.append(
            f"Only {plural(count, 'study', 'studies')}: one more or less moves these figures."
        )
    positives = studies.labels.sum(axis=0)
    few = [
        f"{name} ({number})"
        for name, number in zip(studies.names, positives, strict=True)
        if number < FEW_POSITIVES
    ]
    if few:
        warnings.append(f"Fewer than {FEW_POSITIVES} positive studies: {', '.join(few)}.")
    return " ".join(warnings)


def picture_values(job: EvaluationSetup, slices: Measured, wanted: int) -> dict[str, Any]:
    """Return the template values of mistakes and hits; only the run's own shards have slices."""
    missing = "" if job.same_shards else "no slices: the shards are not those of the run"
    sections = {key: title for key, title in SECTIONS.items() if wanted or key != "answers"}
    mistakes, hits = picture_slices(job, slices, 0 if missing else wanted)
    return {
        "mistakes": mistakes,
        "hits": hits,
        "pictures_missing": missing,
        "sections": sections,
    }


def describe_origin(
    run: RunDirectory, description: Mapping[str, Any], metrics: Mapping[str, Any], shards: Path
) -> list[tuple[str, Any]]:
    """Return names and values of the section on provenance.

    Args:
        run: the run.
        description: content of run.json.
        metrics: content of metrics.json.
        shards: local folder of the shards.
    """
    machine = read_json(run.machine) if run.machine.is_file() else {}
    data, options = description["shards"], description["options"]
    start = []
    if origin := description.get("continued_from"):
        digest = code(f"sha256 {origin['model_sha256'][:12]}")
        start = [
            ("Starts from the model of", Markup("{} ({})").format(code(origin["run"]), digest))
        ]
    epochs = f"epoch {metrics['best_epoch']} of {metrics['epochs']}"
    return [
        ("Run", run.path.name),
        ("Trained", format_time(machine["finished"]) if "finished" in machine else UNRECORDED),
        ("Report written", format_time(datetime.now(UTC).isoformat())),
        ("Command", code(training_command(run.path, description))),
        ("Shards", code(data["path"])),
        ("Digest of the shards", code(data["digest"])),
        ("Data card", link_data_card(run.path, data["path"], shards)),
        ("Model", f"{options.get('model', UNRECORDED)}, {epochs}"),
        *start,
        ("Backend", machine.get("backend") or options.get("backend", UNRECORDED)),
        ("Devices", ", ".join(machine.get("devices", [])) or UNRECORDED),
        (
            "Machine",
            f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"
            if machine
            else UNRECORDED,
        ),
        ("Versions", ", ".join(f"{k} {v}" for k, v in description["versions"].items())),
    ]


def training_command(run: Path, description: Mapping[str, Any]) -> str:
    """Return the command that repeats this run, without options at their defaults."""
    usual = default_options()
    given = {"shards": description["shards"]["path"], "run": str(run)}
    origin = description.get("continued_from")
    given |= {"continue_from": origin["run"]} if origin else {}
    given |= {
        name: value
        for name, value in description["options"].items()
        if name not in usual or usual[name] != value
    }
    if given.get("model", "resnet50") not in BACKBONES:  # a Python function
        values = {name: repr(value) for name, value in given.items()}
        values["model"] = str(given["model"])
        return f"trainer.train_run({', '.join(f'{k}={v}' for k, v in values.items())})"
    words = ["python", "-m", "trainer", "train"]
    for name, value in given.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def default_options() -> dict[str, Any]:
    """Return the default of every optional training option."""
    return {
        name: field.default
        for name, field in flags(TrainOptions).items()
        if not field.is_required()
    }


def format_time(text: str) -> str:
    """Format an ISO time to the minute."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def link_data_card(run: Path, location: str, shards: Path) -> Markup | str:
    """Return a relative link from the run to the data card of the shards, if there is one."""
    card = shards / CARD
    if "://" in location:
        return f"report.html in {location}"
    if not card.is_file():
        return "none in the shard directory"
    relative = os.path.relpath(card.resolve(), run.resolve())
    return Markup('<a href="{}">report.html of the shard directory</a>').format(
        quote(Path(relative).as_posix())
    )


def option_rows(options: Mapping[str, Any]) -> list[list[str]]:
    """Return name, value and default of every option; non-default options come first."""
    usual = default_options()
    rows = [[name, str(value), str(usual.get(name, ""))] for name, value in options.items()]
    return sorted(rows, key=lambda row: row[1] == row[2])
