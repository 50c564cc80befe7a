"""Fits of calibration, smoothing and weights, kept in the run; figures cross-fitted by patient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import expit

from headct.errors import UsageError
from headct.layout import PATIENT_ID, fold_number
from trainer.data.shards import ALL_FOLDS, ALL_LABELED
from trainer.display import number
from trainer.evaluation import pooling
from trainer.evaluation.calibration import (
    SmoothBy,
    count_groups,
    cross_calibrate,
    cross_fit,
    fit_calibration,
)
from trainer.evaluation.fit_smoothing import SmoothingFit, compare_smoothing, describe_smoothing
from trainer.evaluation.metrics import Array, Ints, weighted_log_loss
from trainer.evaluation.predict_models import Predictions
from trainer.runs.ensemble import Ensemble, EnsembleRecord
from trainer.runs.evaluation_setup import EvaluationSetup
from trainer.runs.run import Calibration, write_calibration
from trainer.runs.smoothing import Smoothing, write_smoothing

# Values of calibration.figures in evaluation-NAME.json.
CROSS_FITTED, UNKNOWN = "cross-fitted by patient", "unknown"
SAME_SLICES, OTHER_SLICES = "of slices that it was fitted on", "of other slices"


def fit_and_cross_fit_weights(
    setup: EvaluationSetup, predictions: Predictions
) -> tuple[Array, EnsembleRecord]:
    """Fit weights of an ensemble's members.

    Returns:
        Weights per member and example by fits on other patients, [M, N]; and the ensemble's record
        with the weights that all patients fit.

    Raises:
        UsageError: there is only one patient.
    """
    run, members, labels = setup.run, predictions.members, predictions.labels
    assert isinstance(run, Ensemble)
    assert members is not None
    check_patients(setup, predictions, "fit_weights")

    def fit(rows: Ints) -> Array:
        return pooling.fit_weights(members[:, rows], labels[rows], run.ensemble.mean, setup.weights)

    crossed = cross_fit(
        predictions.rows[PATIENT_ID].to_numpy(),
        lambda rest, group: np.tile(fit(rest), (len(group), 1)),
    ).T
    fitted = fit(np.arange(len(labels)))
    record = replace(run.ensemble, weights=fitted.tolist())
    return crossed, replace(record, split=setup.split.name, digest=setup.shards.digest())


def check_patients(setup: EvaluationSetup, predictions: Predictions, option: str) -> None:
    """Raise UsageError if there is only one patient."""
    if predictions.rows[PATIENT_ID].nunique() < 2:
        raise UsageError(f"--{option}: {setup.split.name} has one patient; it takes two or more")


def fit_and_cross_fit_smoothing(
    setup: EvaluationSetup, predictions: Predictions
) -> tuple[EvaluationSetup, Predictions, dict[str, Any], SmoothBy | None]:
    """Fit the smoothing along z, write it into the run, and show what it changes.

    A smoothing that does not clearly help is written with an amount of 0: off.

    Returns:
        The setup with the fitted smoothing; the predictions, smoothed per patient by fits on other
        patients, or as they were if that does not help; the comparison for evaluation-NAME.json;
        and the smoothing by any patients, None if it does not help.

    Raises:
        UsageError: there is only one patient, or slices have no series or position.
    """
    check_patients(setup, predictions, "fit_smooth_z")
    fit = SmoothingFit(predictions, setup.weights)
    patients = predictions.rows[PATIENT_ID].to_numpy()
    crossed = cross_fit(patients, lambda rest, group: fit.smooth_by(rest)[group])
    smoothed = replace(predictions, logits=crossed)
    found = fit.fit(np.arange(len(patients)))
    compared = compare_smoothing(predictions, smoothed, setup.weights)
    kept = found if compared["helps"] else replace(found, amount=0.0)
    kept = replace(kept, split=setup.split.name, digest=setup.shards.digest())
    write_smoothing(setup.run.smoothing, kept)
    description = {
        "figures": CROSS_FITTED,
        "parts": count_groups(patients),
        **describe_smoothing(found),
    }
    description |= compared
    say_smoothing(setup, found, description)
    setup = replace(setup, smoothing=kept)
    if not compared["helps"]:
        return setup, predictions, description, None
    return setup, smoothed, description, fit.smooth_by


def smooth_and_compare(
    setup: EvaluationSetup, predictions: Predictions
) -> tuple[Predictions, dict[str, Any]]:
    """Smooth predictions as the run does; return them, and the comparison for the figures."""
    smoothed = predictions.smoothed(setup.smoothing)
    description = {"figures": where_fitted(setup, setup.smoothing)}
    description |= compare_smoothing(predictions, smoothed, setup.weights)
    say_smoothing(setup, setup.smoothing, description)
    return smoothed, description


def say_smoothing(setup: EvaluationSetup, smoothing: Smoothing, compared: dict[str, Any]) -> None:
    """Print a smoothing, its effect, and whether to use it."""
    display, patients = setup.display, compared["patients"]
    display.say(
        f"smoothing along z: {smoothing.amount:.0%} of the mean over a width of"
        f" {smoothing.width_mm:.1f} mm, {compared['figures']}"
    )
    ends = compared["difference_intervals_95"]["weighted_log_loss"]
    interval = f" (95 % interval {ends[0]:+.4f} to {ends[1]:+.4f})" if ends else ""
    before, after = compared["without"], compared["with"]
    display.say(
        f"log loss {before['weighted_log_loss']:.4f} without it, {after['weighted_log_loss']:.4f}"
        f" with it: {compared['difference']['weighted_log_loss']:+.4f}{interval}; mean ROC AUC"
        f" {number(before['mean_roc_auc'])} and {number(after['mean_roc_auc'])}"
    )
    if compared["helps"]:
        display.say("It helps: use --smooth_z to evaluate and predict.")
    else:
        display.say(f"No clear gain on {patients} patients: leave --smooth_z off.")


def fit_and_cross_fit(
    setup: EvaluationSetup, predictions: Predictions, smooth_by: SmoothBy | None = None
) -> tuple[EvaluationSetup, Predictions, dict[str, Any]]:
    """Fit temperatures and biases, write them into the run, and show the change of the loss.

    Args:
        setup: the run and the split.
        predictions: smoothed, if they shall be.
        smooth_by: smoothing that is fitted again without the patients to calibrate.

    Returns:
        The setup with the fitted calibration; the predictions, calibrated per patient by fits on
        other patients; and their description for evaluation-NAME.json.

    Raises:
        UsageError: there is only one patient.
    """
    logits, labels, names = predictions.logits, predictions.labels, setup.shards.labels
    display, split = setup.display, setup.split.name
    check_patients(setup, predictions, "fit_temperature")
    patients = predictions.rows[PATIENT_ID].to_numpy()
    every = logits if smooth_by is None else smooth_by(np.arange(len(logits)))
    fitted = replace(
        fit_calibration(every, labels),
        split=split,
        digest=setup.shards.digest(),
        smoothing=setup.smoothing.kernel,
    )
    crossed = cross_calibrate(logits, labels, patients, smooth_by)
    before, after_fit, after = (
        weighted_log_loss(labels, expit(version.astype(np.float64)), setup.weights)
        for version in (logits, fitted.apply(every), crossed)
    )
    write_calibration(setup.run, names, fitted)
    values = zip(names, fitted.temperatures, fitted.biases, strict=True)
    shown = ", ".join(
        f"{label} {temperature:.2f} {bias:+.2f}" for label, temperature, bias in values
    )
    display.say(f"temperatures and biases fitted on {split}: {shown}")
    groups = count_groups(patients)
    display.say(
        f"log loss {before:.4f} without them, {after_fit:.4f} on the slices that they were fitted"
        f" on; {after:.4f} cross-fitted, each of {groups} groups of patients by the others. The"
        " losses and calibration errors here are cross-fitted."
    )
    if after > before:
        display.say(
            f"{len(np.unique(patients))} patients are too few to fit them by: on others, the loss"
            " is lower without --temperature"
        )
    description = {
        "figures": CROSS_FITTED,
        "parts": groups,
        "log_loss_without": before,
        "log_loss_on_fitted_slices": after_fit,
    }
    return replace(setup, calibration=fitted), replace(predictions, logits=crossed), description


def where_fitted(setup: EvaluationSetup, fitted: Calibration | Smoothing | EnsembleRecord) -> str:
    """Return whether a fit was on the measured slices, if known."""
    if not fitted.split:
        return UNKNOWN
    names = {fitted.split, setup.split.name}
    of_folds = all(name == ALL_FOLDS or fold_number(name) is not None for name in names)
    overlaps = len(names) == 1 or ALL_LABELED in names or (ALL_FOLDS in names and of_folds)
    return SAME_SLICES if fitted.digest == setup.shards.digest() and overlaps else OTHER_SLICES
