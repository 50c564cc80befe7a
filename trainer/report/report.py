"""One page with everything one looks at after a run: no other file, no script, no network."""

from __future__ import annotations

from typing import Any

from headct.json_documents import read_json
from trainer.evaluation.measured import Measured, measure_frame, read_predictions
from trainer.evaluation.thresholds import SENSITIVITY
from trainer.progress import explain_figures, explain_weights
from trainer.report import curves
from trainer.report.figures import plot_confusion, plot_curves, plot_speed
from trainer.report.page import decimal, plural, spread, write_page
from trainer.report.plots import (
    calibration_drawings,
    precision_drawings,
    roc_drawings,
    training_drawings,
)
from trainer.report.provenance import describe_origin, option_rows
from trainer.report.slices import Picture, best_hits, picture_answers, worst_mistakes
from trainer.report.tables import loss_table, mean_table, ranking_table, threshold_tables
from trainer.runs.job import EvaluationJob
from trainer.runs.run_directory import read_description

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
# Below it an interval is wide, and one study moves a figure visibly.
FEW_STUDIES, FEW_POSITIVES = 100, 20


def write_report(job: EvaluationJob, mistakes: int) -> None:
    """Writes report.html into a run that is complete, and its pictures to TensorBoard.

    Raises:
        UsageError: a file of the run is damaged, or a shard is.
    """
    run, names = job.run, job.shards.labels
    metrics, history = read_json(run.metrics), read_json(run.path / "history.json")
    frame = read_predictions(run.predictions(job.split.name), names)
    slices = measure_frame(frame, names, job.weights)
    studies = slices.by_study(frame["study_id"].to_numpy())
    log_pictures(job, slices, metrics, history)
    values = (
        headline(slices, metrics, studies)
        | tables_and_plots(job, slices, studies, metrics)
        | pictures(job, slices, mistakes)
        | describe(job, metrics)
    )
    values["training"] = training_drawings(history, names, metrics["best_epoch"])
    path = run.report
    write_page(path, "report.html.jinja", **values)
    job.display.point_out(f"written: {path}")


def log_pictures(
    job: EvaluationJob, slices: Measured, metrics: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    """TensorBoard's plots."""
    names = slices.names
    figures = {
        "Course": curves.plot_history(history, names),
        "Speed": plot_speed(history),
        "Curves": plot_curves(slices.labels, slices.predicted, names, metrics),
        "Subtypes": plot_confusion(slices.labels, slices.predicted, names),
    }
    for title, figure in figures.items():
        curves.log_picture(job.run.path / "tensorboard", title, figure, metrics["epochs"])


def headline(slices: Measured, metrics: dict[str, Any], studies: Measured) -> dict[str, Any]:
    """What stands at the top of the page."""
    figures, ends = slices.figures, slices.intervals
    known = metrics | {"intervals_95": ends, "label_weights": figures["label_weights"]}
    loss, auc = figures["weighted_log_loss"], figures["mean_roc_auc"]
    precision = figures["mean_average_precision"]
    # Where one patient is in two folds, as in shards of others, some were trained on.
    unseen = metrics.get("trained_on", False) is False
    between = {
        key: spread(ends[key]) or "no interval"
        for key in ("weighted_log_loss", "mean_roc_auc", "mean_average_precision")
    }
    alone = decimal(metrics["prevalence_log_loss"])
    return {
        "headline": [
            (
                "Weighted log loss",
                decimal(loss),
                f"{between['weighted_log_loss']}; {alone} by prevalence alone; weights:"
                f" {explain_weights(figures['label_weights'])}",
            ),
            ("Mean ROC AUC", decimal(auc), f"{between['mean_roc_auc']}, by slice"),
            (
                "Mean average precision",
                decimal(precision),
                f"{between['mean_average_precision']}, by slice",
            ),
            (
                "Mean ROC AUC by study",
                decimal(studies.figures["mean_roc_auc"]),
                spread(studies.intervals["mean_roc_auc"]) or "no interval",
            ),
        ],
        "summary": f"{plural(metrics['examples'], 'slice', 'slices')} of"
        f" {plural(metrics['patients'], 'patient', 'patients')} in"
        f" {plural(len(studies.labels), 'study', 'studies')}"
        f"{', which the model was not trained on' if unseen else ''}.",
        "unseen": unseen,
        "meaning": " ".join(explain_figures(known)),
        "samples": ends["samples"],
    }


def tables_and_plots(
    job: EvaluationJob, slices: Measured, studies: Measured, metrics: dict[str, Any]
) -> dict[str, Any]:
    """The figures by slice and by study."""
    errors = {name: each["calibration_error"] for name, each in metrics["labels"].items()}
    return {
        "ranking": ranking_table(slices, "slices", errors),
        "loss": loss_table(slices, job.prevalence),
        "roc": roc_drawings(slices),
        "precision": precision_drawings(slices),
        "calibration": calibration_drawings(slices, metrics["labels"]),
        "thresholds": threshold_tables(slices, "by slice"),
        "study_ranking": ranking_table(studies, "studies", None),
        "study_thresholds": threshold_tables(studies, "by study"),
        "study_caution": study_caution(studies),
        "means": mean_table(slices.labels, slices.predicted, slices.names),
        "sensitivity": SENSITIVITY,
    }


def study_caution(studies: Measured) -> str:
    """What there is too little of for figures by study to say much."""
    found = []
    count = len(studies.labels)
    if count < FEW_STUDIES:
        found.append(
            f"Only {plural(count, 'study', 'studies')}: one more or less moves these figures."
        )
    positives = studies.labels.sum(axis=0)
    few = [
        f"{name} ({number})"
        for name, number in zip(studies.names, positives, strict=True)
        if number < FEW_POSITIVES
    ]
    if few:
        found.append(f"Fewer than {FEW_POSITIVES} positive studies: {', '.join(few)}.")
    return " ".join(found)


def pictures(job: EvaluationJob, slices: Measured, wanted: int) -> dict[str, Any]:
    """The worst mistakes and as many hits; other shards than the run's have other slices."""
    shown: dict[str, list[Picture]] = {"mistakes": [], "hits": []}
    sections = {key: title for key, title in SECTIONS.items() if wanted or key != "answers"}
    missing = "" if job.same_shards else "no slices: the shards are not those of the run"
    if wanted and not missing:
        bad = worst_mistakes(slices.labels, slices.predicted, wanted)
        good = best_hits(slices.labels, slices.predicted, wanted)
        both = picture_answers(job, slices.labels, slices.predicted, [*bad, *good])
        shown = {"mistakes": both[: len(bad)], "hits": both[len(bad) :]}
    return {**shown, "pictures_missing": missing, "sections": sections}


def describe(job: EvaluationJob, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the page is of."""
    description = read_description(job.run)
    return {
        "run": job.run.path.name,
        "split": job.split.name,
        "provenance": describe_origin(job.run, description, metrics, job.shards.path),
        "options": option_rows(description["options"]),
    }
