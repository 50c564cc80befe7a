"""Measures a saved run on a labeled split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from headct.errors import UsageError
from headct.layout import fold_split
from trainer.data.shards import ALL_LABELED
from trainer.evaluation.bootstrap import intervals
from trainer.evaluation.calibration import (
    cross_calibrate,
    expected_calibration_error,
    explain_fit,
    fit_calibration,
    parts_of,
    reliability_curve,
)
from trainer.evaluation.metrics import prevalence_baseline, split_figures, weighted_log_loss
from trainer.evaluation.predictions import Predictions, predict_split, write_parquet
from trainer.files import write_json
from trainer.networks.hardware import leave_gpu_to_jax
from trainer.networks.model import load_classifier
from trainer.progress import make_command, show_figures
from trainer.runs.calibration import write_calibration
from trainer.runs.job import EvaluationJob
from trainer.runs.run_directory import RunDirectory, read_description
from trainer.runs.trained_on import describe_overlap, find_overlap

# What figures of calibrated probabilities are, in evaluation-NAME.json.
CROSS_FITTED, UNKNOWN = "cross-fitted by patient", "unknown"
SAME_SLICES, OTHER_SLICES = "of slices that it was fitted on", "of other slices"
_WHERE = {
    SAME_SLICES: "these slices, which flatters the figures; --fit_temperature cross-fits them",
    UNKNOWN: "slices that temperatures.json does not name; if on these, the figures flatter",
}

# Figures that a monotone change of probabilities changes.
_OF_PROBABILITIES = {"weighted_log_loss", "log_loss", "calibration_error", "reliability"}


def evaluate(job: EvaluationJob, fit_temperature: bool) -> None:
    """Writes evaluation-NAME.json and predictions-NAME.parquet into the run.

    NAME is the split's, if nothing is done otherwise than in training; variants have their own
    (`EvaluationJob.name`), so that what training wrote stays.

    Raises:
        UsageError: the split has no labels, or a shard is damaged.
        Diverged: the model's logits are not finite.
    """
    leave_gpu_to_jax()
    run, labels, display = job.run, job.shards.labels, job.display
    classifier = load_classifier(run.model, job.xla, job.shards.image, len(labels))
    predictions = predict_labeled(classifier, job)
    ranked, how = predictions, None
    if fit_temperature:
        job, predictions, how = fit_and_cross_fit(job, predictions)
    elif job.calibration.changes:
        how = {"figures": fitted_where(job)}
        if how["figures"] != OTHER_SLICES:
            display.say(f"temperatures and biases were fitted on {_WHERE[how['figures']]}")
    measured = measure(predictions, job)
    if fit_temperature:
        # No calibration changes a ranking, but each part has its own.
        measured = with_losses(measure(ranked, job), measured)
    figures = describe(job) | {"calibration": how} | measured
    write_json(run.evaluation(job.name), figures)
    written = run.predictions(job.name)
    if job.name != _validation_of(run) or not run.is_complete:
        write_parquet(written, predictions, labels)
    if fit_temperature and figures["trained_on"]:
        display.say(
            "Fitted on patients that were trained on, they make other patients' too certain."
        )
    show_figures(display, figures, f"{run.path}: {job.name}")
    display.point_out(f"written: {run.evaluation(job.name)}, {written.name}")
    display.point_out(f"Next: {make_command('export', RUN=run.path)}")


def _validation_of(run: RunDirectory) -> str:
    """The fold that was left out, whose predictions a complete run has from its training."""
    return fold_split(int(read_description(run)["options"]["fold"]))


def fit_and_cross_fit(
    job: EvaluationJob, predictions: Predictions
) -> tuple[EvaluationJob, Predictions, dict[str, Any]]:
    """Fits temperatures and biases, keeps them in the run, and says what became of the loss.

    Returns:
        The job with what was fitted; predictions whose figures are those of slices that it was not
        fitted on; and what files say of them.

    Raises:
        UsageError: there is one patient alone.
    """
    logits, labels, names = predictions.logits, predictions.labels, job.shards.labels
    patients, display, where = predictions.texts["patient_id"], job.display, job.split.name
    if len(np.unique(patients)) < 2:
        raise UsageError(f"--fit_temperature: {where} has one patient; it takes two or more")
    found = replace(fit_calibration(logits, labels), split=where, digest=job.shards.digest())
    calibrated = cross_calibrate(logits, labels, patients).astype(np.float32)
    crossed = replace(predictions, logits=calibrated)
    before, fitted, after = (
        weighted_log_loss(labels, each.probabilities, job.weights)
        for each in (predictions, predictions.calibrated(found), crossed)
    )
    write_calibration(job.run, names, found)
    pairs = zip(names, found.temperatures, found.biases, strict=True)
    shown = ", ".join(f"{label} {each:.2f} {bias:+.2f}" for label, each, bias in pairs)
    display.say(f"temperatures and biases fitted on {where}: {shown}")
    for line in explain_fit(logits, labels, names, found):
        display.say(line)
    parts = parts_of(patients)
    display.say(
        f"log loss {before:.4f} without them, {fitted:.4f} on the slices that they were fitted on;"
        f" {after:.4f} cross-fitted, each of {parts} parts of the patients by the others. The"
        " losses and calibration errors here are cross-fitted."
    )
    if after > before:
        display.say(
            f"{len(np.unique(patients))} patients are too few to fit them by: on others, the loss"
            " is lower without --temperature"
        )
    how = {
        "figures": CROSS_FITTED,
        "parts": parts,
        "log_loss_without": before,
        "log_loss_on_fitted_slices": fitted,
    }
    return replace(job, calibration=found), crossed, how


def with_losses(figures: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Figures as `measure` gives them, with the losses and calibration of others."""
    return {
        key: other[key]
        if key in _OF_PROBABILITIES
        else with_losses(value, other[key])
        if isinstance(value, dict)
        else value
        for key, value in figures.items()
    }


def fitted_where(job: EvaluationJob) -> str:
    """Whether what calibrates was fitted on the slices that are measured, as far as is known."""
    fitted = job.calibration
    if not fitted.split:
        return UNKNOWN
    together = ALL_LABELED in (fitted.split, job.split.name) or fitted.split == job.split.name
    return SAME_SLICES if fitted.digest == job.shards.digest() and together else OTHER_SLICES


def describe(job: EvaluationJob) -> dict[str, Any]:
    """What figures are of."""
    nothing = {"temperatures": None, "biases": None}
    changes = job.calibration.changes
    return {
        "options": {
            "split": job.split.name,
            "shards": job.shards.location,
            "digest": job.shards.digest(),
            "tta": job.flip,
            **(job.calibration.describe(job.shards.labels) if changes else nothing),
        },
    }


def predict_labeled(model: Any, job: EvaluationJob) -> Predictions:
    """The predictions for a labeled split.

    Raises:
        UsageError: the split has no labels, or a shard is damaged.
    """
    job.display.begin(f"evaluating {job.split.name}", job.split.examples)
    predictions = predict_split(
        model,
        job.split,
        job.shards.image,
        len(job.shards.labels),
        job.batch_size,
        job.display.update,
        job.flip,
    ).calibrated(job.calibration)
    job.display.end()
    if (predictions.labels < 0).any():
        raise UsageError(f"split {job.split.name}: has no labels; `predict` is for such")
    return predictions


def measure(predictions: Predictions, job: EvaluationJob) -> dict[str, Any]:
    """All figures of a labeled split, by slice and by study."""
    names, weights = job.shards.labels, job.weights
    labels, predicted = predictions.labels, predictions.probabilities
    patients = predictions.texts["patient_id"]
    figures = split_figures(labels, predicted, names, weights)
    for i, name in enumerate(names):
        one = labels[:, i], predicted[:, i]
        figures["labels"][name]["calibration_error"] = expected_calibration_error(*one)
        figures["labels"][name]["reliability"] = reliability_curve(*one)
    studies = _by_study(predictions)
    overlap = find_overlap(job.run, job.shards, predictions.texts)
    return {
        "split": predictions.split,
        "patients": len(np.unique(patients)),
        **describe_overlap(overlap, job.trained_on),
        **figures,
        "prevalence_log_loss": prevalence_baseline(labels, job.prevalence, weights),
        "intervals_95": intervals(labels, predicted, patients, names, weights),
        "studies": split_figures(*studies, names, weights),
    }


def _by_study(predictions: Predictions) -> tuple[Any, Any]:
    """Labels and probabilities of studies, [S, L]: the highest of their slices."""
    _, study = np.unique(predictions.texts["study_id"], return_inverse=True)
    shape = (study.max() + 1, predictions.labels.shape[1])
    labels, predicted = np.zeros(shape, np.int64), np.zeros(shape)
    np.maximum.at(labels, study, predictions.labels)
    np.maximum.at(predicted, study, predictions.probabilities)
    return labels, predicted
