"""Evaluation of a saved run on a labeled split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from headct.errors import UsageError
from headct.layout import fold_split
from trainer.data.shards import ALL_LABELED
from trainer.display import next_command, show_figures
from trainer.evaluation.fit_calibration import (
    count_groups,
    cross_calibrate,
    explain_fit,
    fit_calibration,
)
from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import (
    expected_calibration_error,
    prevalence_baseline,
    reliability_curve,
    weighted_log_loss,
)
from trainer.evaluation.predict import Predictions, predict_job, write_parquet
from trainer.files import write_json
from trainer.networks.hardware import leave_gpu_to_jax
from trainer.networks.saved_models import load_classifier
from trainer.runs.evaluation_setup import EvaluationSetup, write_calibration
from trainer.runs.run_directory import read_description
from trainer.runs.trained_on import describe_overlap, find_overlap

# Values of calibration.figures in evaluation-NAME.json.
CROSS_FITTED, UNKNOWN = "cross-fitted by patient", "unknown"
SAME_SLICES, OTHER_SLICES = "of slices that it was fitted on", "of other slices"
_WARNINGS = {
    SAME_SLICES: "on these slices, so the figures are too good; --fit_temperature cross-fits them",
    UNKNOWN: "on slices that temperatures.json does not name; if on these, the figures are too"
    " good",
}

# Metrics that depend on probabilities, not just on their ranking.
_OF_PROBABILITIES = {"weighted_log_loss", "log_loss", "calibration_error", "reliability"}


def evaluate(job: EvaluationSetup, fit_temperature: bool) -> None:
    """Write evaluation-NAME.json and predictions-NAME.parquet into the run.

    NAME is the split with differences from training (`EvaluationSetup.name`): files from
    training are never replaced.

    Raises:
        UsageError: the split has no labels, or a shard is damaged.
        Diverged: the model's logits are not finite.
    """
    leave_gpu_to_jax()
    run, labels, display = job.run, job.shards.labels, job.display
    classifier = load_classifier(run.model, job.xla, job.shards.image, len(labels))
    predictions = predict_labeled(classifier, job)
    calibration = None
    if fit_temperature:
        ranked = measure(predictions, job)
        job, predictions, calibration = fit_and_cross_fit(job, predictions)
        # rank uncalibrated scores: calibration differs between groups of patients
        measured = with_losses(ranked, measure(predictions, job))
    else:
        measured = measure(predictions, job)
        if job.calibration.changes:
            fitted_on = where_fitted(job)
            calibration = {"figures": fitted_on}
            if fitted_on in _WARNINGS:
                display.say(f"temperatures and biases were fitted {_WARNINGS[fitted_on]}")
    uncalibrated = {"temperatures": None, "biases": None}
    changes = job.calibration.changes
    options = {
        "split": job.split.name,
        "shards": job.shards.location,
        "digest": job.shards.digest(),
        "tta": job.flip,
        **(job.calibration.describe(labels) if changes else uncalibrated),
    }
    figures = {"options": options, "calibration": calibration, **measured}
    write_json(run.evaluation(job.name), figures)
    # for the validation fold, training already wrote the predictions of a complete run
    validation = fold_split(int(read_description(run)["options"]["fold"]))
    path = run.predictions(job.name)
    if job.name != validation or not run.is_complete:
        write_parquet(path, predictions, labels)
    if fit_temperature and figures["trained_on"]:
        display.say(
            "Fitted on patients of the training, they make probabilities of other patients too"
            " extreme."
        )
    show_figures(display, figures, f"{run.path}: {job.name}")
    display.print_unwrapped(f"written: {run.evaluation(job.name)}, {path.name}")
    display.print_unwrapped(next_command("export", run=run.path))


def fit_and_cross_fit(
    job: EvaluationSetup, predictions: Predictions
) -> tuple[EvaluationSetup, Predictions, dict[str, Any]]:
    """Fit temperatures and biases, write them into the run, and show the change of the loss.

    Returns:
        The job with the fitted calibration; the predictions, calibrated per patient by fits on
        other patients; and their description for evaluation-NAME.json.

    Raises:
        UsageError: there is only one patient.
    """
    logits, labels, names = predictions.logits, predictions.labels, job.shards.labels
    patients, display, split = predictions.texts["patient_id"], job.display, job.split.name
    count = len(np.unique(patients))
    if count < 2:
        raise UsageError(f"--fit_temperature: {split} has one patient; it takes two or more")
    fitted = replace(fit_calibration(logits, labels), split=split, digest=job.shards.digest())
    calibrated = cross_calibrate(logits, labels, patients).astype(np.float32)
    crossed = replace(predictions, logits=calibrated)
    before, after_fit, after = (
        weighted_log_loss(labels, version.probabilities, job.weights)
        for version in (predictions, predictions.calibrated(fitted), crossed)
    )
    write_calibration(job.run, names, fitted)
    values = zip(names, fitted.temperatures, fitted.biases, strict=True)
    shown = ", ".join(
        f"{label} {temperature:.2f} {bias:+.2f}" for label, temperature, bias in values
    )
    display.say(f"temperatures and biases fitted on {split}: {shown}")
    for line in explain_fit(logits, labels, names, fitted):
        display.say(line)
    groups = count_groups(patients)
    display.say(
        f"log loss {before:.4f} without them, {after_fit:.4f} on the slices that they were fitted"
        f" on; {after:.4f} cross-fitted, each of {groups} groups of patients by the others. The"
        " losses and calibration errors here are cross-fitted."
    )
    if after > before:
        display.say(
            f"{count} patients are too few to fit them by: on others, the loss"
            " is lower without --temperature"
        )
    description = {
        "figures": CROSS_FITTED,
        "parts": groups,
        "log_loss_without": before,
        "log_loss_on_fitted_slices": after_fit,
    }
    return replace(job, calibration=fitted), crossed, description


def with_losses(figures: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics with losses and calibration errors of another result of `measure`."""
    return {
        key: other[key]
        if key in _OF_PROBABILITIES
        else with_losses(value, other[key])
        if isinstance(value, dict)
        else value
        for key, value in figures.items()
    }


def where_fitted(job: EvaluationSetup) -> str:
    """Return whether the calibration was fitted on the measured slices, if known."""
    fitted = job.calibration
    if not fitted.split:
        return UNKNOWN
    overlaps = ALL_LABELED in (fitted.split, job.split.name) or fitted.split == job.split.name
    return SAME_SLICES if fitted.digest == job.shards.digest() and overlaps else OTHER_SLICES


def predict_labeled(model: Any, job: EvaluationSetup) -> Predictions:
    """Predict a labeled split.

    Raises:
        UsageError: the split has no labels, or a shard is damaged.
    """
    predictions = predict_job(model, job, "evaluating")
    if (predictions.labels < 0).any():
        raise UsageError(f"split {job.split.name}: has no labels to measure by; use `predict`")
    return predictions


def measure(predictions: Predictions, job: EvaluationSetup) -> dict[str, Any]:
    """Return all metrics of a labeled split, by slice and by study."""
    texts = predictions.texts
    slices = Measured(
        job.shards.labels,
        job.weights,
        predictions.labels,
        predictions.probabilities,
        texts["patient_id"],
    )
    figures = slices.figures
    for i, label in enumerate(figures["labels"].values()):
        one = slices.labels[:, i], slices.predicted[:, i]
        label["calibration_error"] = expected_calibration_error(*one)
        label["reliability"] = reliability_curve(*one)
    overlap = find_overlap(job.run, job.shards, texts)
    return {
        "split": predictions.split,
        "patients": slices.intervals["patients"],
        **describe_overlap(overlap, job.trained_on),
        **figures,
        "prevalence_log_loss": prevalence_baseline(slices.labels, job.prevalence, job.weights),
        "intervals_95": slices.intervals,
        "studies": slices.by_study(texts["study_id"]).figures,
    }
