"""Measures a saved run on a labelled split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

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
from trainer.progress import show_figures
from trainer.runs.job import Answer
from trainer.runs.run_directory import RunDirectory, read_description


def evaluate(answer: Answer, fit_temperature: bool) -> None:
    """Writes evaluation-NAME.json and predictions-NAME.parquet into the run.

    NAME is the split's, if nothing is done otherwise than in training; variants have their own
    (`Answer.name`), so that what training wrote stays.

    Raises:
        BadInput: the split has no labels, or a shard is damaged.
        Diverged: the model's logits are not finite.
    """
    leave_gpu_to_jax()
    run, labels, display = answer.run, answer.shards.labels, answer.display
    predictions = predict_labelled(load_classifier(run.model), answer)
    if fit_temperature:
        found = fit_temperatures(predictions.logits, predictions.labels)
        write_json(run.temperatures, dict(zip(labels, found, strict=True)))
        shown = ", ".join(f"{label} {each:.2f}" for label, each in zip(labels, found, strict=True))
        display.say(f"temperatures fitted on {answer.split.name}: {shown}")
        predictions = predictions.cooled(found)
        answer = replace(answer, temperatures=found)
    figures = describe(answer) | measure(predictions, answer)
    write_json(run.evaluation(answer.name), figures)
    written = run.predictions(answer.name)
    if answer.name != validation_of(run) or not run.is_complete:
        write_parquet(written, predictions, labels)
    if answer.trained_on:
        display.say(
            f"{answer.split.name} was trained on: these figures say nothing of unseen patients"
        )
    show_figures(display, figures, f"{run.path}: {answer.name}")
    display.say(f"written: {run.evaluation(answer.name)}, {written.name}")


def validation_of(run: RunDirectory) -> str:
    """The fold that was left out, whose predictions a complete run has from its training."""
    return f"fold{read_description(run)['options']['fold']}"


def describe(answer: Answer) -> dict[str, Any]:
    """What figures are of."""
    temperatures = dict(zip(answer.shards.labels, answer.temperatures, strict=True))
    return {
        "options": {
            "split": answer.split.name,
            "shards": answer.shards.location,
            "digest": answer.shards.digest(),
            "tta": answer.flip,
            "temperatures": temperatures if "temperature" in answer.name else None,
        },
        "trained_on": answer.trained_on,
    }


def predict_labelled(model: Any, answer: Answer) -> Predictions:
    """The answers for a labelled split.

    Raises:
        BadInput: the split has no labels, or a shard is damaged.
    """
    answer.display.begin(f"evaluating {answer.split.name}", answer.split.examples)
    predictions = predict_split(
        model,
        answer.split,
        answer.shards.image,
        len(answer.shards.labels),
        answer.batch_size,
        answer.display.update,
        answer.flip,
    ).cooled(answer.temperatures)
    answer.display.end()
    if (predictions.labels < 0).any():
        raise BadInput(f"split {answer.split.name}: has no labels; `predict` answers for it")
    return predictions


def measure(predictions: Predictions, answer: Answer) -> dict[str, Any]:
    """All figures of a labelled split, by slice and by study."""
    names, weights = answer.shards.labels, answer.weights
    labels, predicted = predictions.labels, predictions.probabilities
    patients = predictions.texts["patient_id"]
    figures = split_figures(labels, predicted, names, weights)
    for i, name in enumerate(names):
        one = labels[:, i], predicted[:, i]
        figures["labels"][name]["calibration_error"] = expected_calibration_error(*one)
        figures["labels"][name]["reliability"] = reliability_curve(*one)
    studies = by_study(predictions)
    return {
        "split": predictions.split,
        "patients": len(np.unique(patients)),
        **figures,
        "prevalence_log_loss": prevalence_baseline(labels, answer.prevalence, weights),
        "intervals_95": intervals(labels, predicted, patients, names, weights),
        "studies": split_figures(*studies, names, weights),
    }


def by_study(predictions: Predictions) -> tuple[Any, Any]:
    """Labels and probabilities of studies, [S, L]: the highest of their slices."""
    _, study = np.unique(predictions.texts["study_id"], return_inverse=True)
    shape = (study.max() + 1, predictions.labels.shape[1])
    labels, predicted = np.zeros(shape, np.int64), np.zeros(shape)
    np.maximum.at(labels, study, predictions.labels)
    np.maximum.at(predicted, study, predictions.probabilities)
    return labels, predicted
