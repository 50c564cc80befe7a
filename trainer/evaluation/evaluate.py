"""Measures a saved run on a labeled split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from trainer.data.contract import fold_split
from trainer.errors import BadInput
from trainer.evaluation.bootstrap import intervals
from trainer.evaluation.calibration import (
    expected_calibration_error,
    fit_temperatures,
    reliability_curve,
)
from trainer.evaluation.metrics import prevalence_baseline, split_figures
from trainer.evaluation.predictions import Predictions, predict_split, write_parquet
from trainer.files import write_json
from trainer.networks.hardware import leave_gpu_to_jax
from trainer.networks.model import load_classifier
from trainer.progress import make_command, show_figures
from trainer.runs.job import EvaluationJob
from trainer.runs.run_directory import RunDirectory, read_description
from trainer.runs.trained_on import describe_overlap, find_overlap


def evaluate(job: EvaluationJob, fit_temperature: bool) -> None:
    """Writes evaluation-NAME.json and predictions-NAME.parquet into the run.

    NAME is the split's, if nothing is done otherwise than in training; variants have their own
    (`EvaluationJob.name`), so that what training wrote stays.

    Raises:
        BadInput: the split has no labels, or a shard is damaged.
        Diverged: the model's logits are not finite.
    """
    leave_gpu_to_jax()
    run, labels, display = job.run, job.shards.labels, job.display
    predictions = predict_labeled(load_classifier(run.model, job.xla), job)
    if fit_temperature:
        found = fit_temperatures(predictions.logits, predictions.labels)
        write_json(run.temperatures, dict(zip(labels, found, strict=True)))
        shown = ", ".join(f"{label} {each:.2f}" for label, each in zip(labels, found, strict=True))
        display.say(f"temperatures fitted on {job.split.name}: {shown}")
        predictions = predictions.with_temperatures(found)
        job = replace(job, temperatures=found)
    figures = describe(job) | measure(predictions, job)
    write_json(run.evaluation(job.name), figures)
    written = run.predictions(job.name)
    if job.name != _validation_of(run) or not run.is_complete:
        write_parquet(written, predictions, labels)
    show_figures(display, figures, f"{run.path}: {job.name}")
    display.point_out(f"written: {run.evaluation(job.name)}, {written.name}")
    display.point_out(f"Next: {make_command('export', RUN=run.path)}")


def _validation_of(run: RunDirectory) -> str:
    """The fold that was left out, whose predictions a complete run has from its training."""
    return fold_split(int(read_description(run)["options"]["fold"]))


def describe(job: EvaluationJob) -> dict[str, Any]:
    """What figures are of."""
    temperatures = dict(zip(job.shards.labels, job.temperatures, strict=True))
    return {
        "options": {
            "split": job.split.name,
            "shards": job.shards.location,
            "digest": job.shards.digest(),
            "tta": job.flip,
            "temperatures": temperatures if "temperature" in job.name else None,
        },
    }


def predict_labeled(model: Any, job: EvaluationJob) -> Predictions:
    """The predictions for a labeled split.

    Raises:
        BadInput: the split has no labels, or a shard is damaged.
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
    ).with_temperatures(job.temperatures)
    job.display.end()
    if (predictions.labels < 0).any():
        raise BadInput(f"split {job.split.name}: has no labels; `predict` is for such")
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
