"""Evaluation of a saved run on a labeled split, and the fit of its calibration (Platt scaling)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.model_selection import GroupKFold

from headct.errors import UsageError
from headct.layout import fold_split
from trainer.data.shards import ALL_LABELED
from trainer.display import next_command, show_figures
from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import Array, Floats, Ints, weighted_log_loss
from trainer.evaluation.predict import (
    Predictions,
    compare_with_training,
    predict_run,
    write_parquet,
)
from trainer.files import write_json
from trainer.networks.hardware import leave_gpu_to_jax
from trainer.runs.evaluation_setup import EvaluationSetup
from trainer.runs.run import Calibration, write_calibration

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
_HIGHEST_TEMPERATURE = 20.0
_GROUPS = 10  # of patients, in cross-fitting


def evaluate(setup: EvaluationSetup, fit_temperature: bool) -> None:
    """Write evaluation-NAME.json and predictions-NAME.parquet into the run.

    NAME is the split with differences from training (`EvaluationSetup.name`): files from
    training are never replaced.

    Raises:
        UsageError: the split has no labels, or a shard is damaged.
        Diverged: the model's logits are not finite.
    """
    leave_gpu_to_jax()
    run, names, display = setup.run, setup.shards.labels, setup.display
    predictions = predict_labeled(setup)
    frame = predictions.frame(setup.calibration)
    measured, calibration = measure(frame, setup), None
    if fit_temperature:
        # rank uncalibrated scores: calibration differs between groups of patients
        setup, crossed, calibration = fit_and_cross_fit(setup, predictions)
        frame = crossed.frame()
        measured = with_losses(measured, measure(frame, setup))
    elif setup.calibration.changes:
        fitted_on = where_fitted(setup)
        calibration = {"figures": fitted_on}
        if fitted_on in _WARNINGS:
            display.say(f"temperatures and biases were fitted {_WARNINGS[fitted_on]}")
    changes = setup.calibration.changes
    uncalibrated = {"temperatures": None, "biases": None}
    options = {
        "split": setup.split.name,
        "shards": setup.shards.location,
        "digest": setup.shards.digest(),
        "tta": setup.flip,
        **(setup.calibration.describe(names) if changes else uncalibrated),
    }
    figures = {"options": options, "calibration": calibration, **measured}
    write_json(run.evaluation(setup.name), figures)
    # for the validation fold, training already wrote the predictions of a complete run
    validation = fold_split(run.record.options.fold)
    path = run.predictions(setup.name)
    if setup.name != validation or not run.is_complete:
        write_parquet(path, frame)
    if fit_temperature and figures["trained_on"]:
        display.say(
            "Fitted on patients of the training, they make probabilities of other patients too"
            " extreme."
        )
    show_figures(display, figures, f"{run.path}: {setup.name}")
    display.print_unwrapped(f"written: {run.evaluation(setup.name)}, {path.name}")
    display.print_unwrapped(next_command("export", run=run.path))


def predict_labeled(setup: EvaluationSetup) -> Predictions:
    """Predict a split; raise UsageError if a slice is unlabeled, and like `predict_split`."""
    predictions = predict_run(setup, setup.shards.labels, "evaluating")
    if (predictions.labels < 0).any():
        raise UsageError(f"split {setup.split.name}: has no labels to measure by; use `predict`")
    return predictions


def measure(frame: pd.DataFrame, setup: EvaluationSetup) -> dict[str, Any]:
    """Return all metrics of a labeled split, by slice and by study."""
    slices = Measured(frame, setup.shards.labels, setup.weights)
    prevalence = np.array(setup.prevalence)
    return {
        "split": setup.split.name,
        "patients": slices.intervals["patients"],
        "label_level": setup.shards.manifest.label_level,
        **compare_with_training(setup, frame),
        **slices.figures,
        "prevalence_log_loss": weighted_log_loss(slices.labels, prevalence, setup.weights),
        "intervals_95": slices.intervals,
        "studies": slices.by_study().figures,
    }


def fit_and_cross_fit(
    setup: EvaluationSetup, predictions: Predictions
) -> tuple[EvaluationSetup, Predictions, dict[str, Any]]:
    """Fit temperatures and biases, write them into the run, and show the change of the loss.

    Returns:
        The setup with the fitted calibration; the predictions, calibrated per patient by fits on
        other patients; and their description for evaluation-NAME.json.

    Raises:
        UsageError: there is only one patient.
    """
    logits, labels, names = predictions.logits, predictions.labels, setup.shards.labels
    display, split = setup.display, setup.split.name
    patients = predictions.rows["patient_id"].to_numpy()
    count = len(np.unique(patients))
    if count < 2:
        raise UsageError(f"--fit_temperature: {split} has one patient; it takes two or more")
    fitted = replace(fit_calibration(logits, labels), split=split, digest=setup.shards.digest())
    crossed = cross_calibrate(logits, labels, patients)
    before, after_fit, after = (
        weighted_log_loss(labels, expit(version.astype(np.float64)), setup.weights)
        for version in (logits, fitted.apply(logits), crossed)
    )
    write_calibration(setup.run, names, fitted)
    values = zip(names, fitted.temperatures, fitted.biases, strict=True)
    shown = ", ".join(
        f"{label} {temperature:.2f} {bias:+.2f}" for label, temperature, bias in values
    )
    display.say(f"temperatures and biases fitted on {split}: {shown}")
    groups = min(_GROUPS, count)
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
    return replace(setup, calibration=fitted), replace(predictions, logits=crossed), description


def fit_calibration(logits: Floats, labels: Ints) -> Calibration:
    """Fit a temperature and a bias per label, from logits and labels [N, L]."""
    fitted = [fit_label(logits[:, i], labels[:, i]) for i in range(labels.shape[1])]
    temperatures, biases = zip(*fitted, strict=True)
    return Calibration(temperatures, biases)


def fit_label(logits: Floats, labels: Ints) -> tuple[float, float]:
    """Fit temperature and bias of one label: a logistic regression on its logits, [N].

    The targets are slightly smoothed (Platt 1999, section 2.2): the fit stays finite for separable
    labels. The temperature is 1/20 to 20; positive temperatures keep the ranking.
    A label without positives, or without negatives, keeps its logits.
    """
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if not positives or not negatives:
        return 1.0, 0.0
    x = logits.astype(np.float64)
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss_and_gradient(parameters: Array) -> tuple[float, Array]:
        z = parameters[0] * x + parameters[1]
        error = expit(z) - target
        loss = float((np.logaddexp(0, z) - target * z).mean())
        return loss, np.array([(error * x).mean(), error.mean()])

    fit = minimize(
        loss_and_gradient,
        (1.0, 0.0),
        jac=True,
        method="L-BFGS-B",
        bounds=[(1 / _HIGHEST_TEMPERATURE, _HIGHEST_TEMPERATURE), (None, None)],
        options={"ftol": 1e-12, "gtol": 1e-8},
    )
    scale, bias = fit.x.tolist()
    return 1 / scale, bias


def cross_calibrate(logits: Floats, labels: Ints, patients: npt.NDArray[Any]) -> Array:
    """Calibrate logits [N, L] per patient by fits on other patients, of whom there must be some."""
    calibrated = np.empty(logits.shape)
    folds = GroupKFold(min(_GROUPS, len(np.unique(patients))))
    for rest, group in folds.split(logits, groups=patients):
        calibrated[group] = fit_calibration(logits[rest], labels[rest]).apply(logits[group])
    return calibrated


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


def where_fitted(setup: EvaluationSetup) -> str:
    """Return whether the calibration was fitted on the measured slices, if known."""
    fitted, split = setup.calibration, setup.split.name
    if not fitted.split:
        return UNKNOWN
    overlaps = ALL_LABELED in (fitted.split, split) or fitted.split == split
    return SAME_SLICES if fitted.digest == setup.shards.digest() and overlaps else OTHER_SLICES
