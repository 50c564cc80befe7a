"""Evaluation of a saved run on a labeled split; fits of calibration, smoothing and weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from headct.errors import UsageError
from headct.layout import PATIENT_ID, fold_number
from trainer.data.shards import ALL_FOLDS, ALL_LABELED
from trainer.display import next_command, number, show_figures, show_members
from trainer.evaluation import pooling
from trainer.evaluation.calibration import (
    SmoothBy,
    count_groups,
    cross_calibrate,
    cross_fit,
    fit_calibration,
)
from trainer.evaluation.fit_smoothing import (
    SmoothingFit,
    compare_smoothing,
    describe_smoothing,
)
from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import (
    Array,
    Floats,
    Ints,
    weighted_log_loss,
)
from trainer.evaluation.pooling import pool, without
from trainer.evaluation.predict import (
    compare_with_training,
    pool_predictions,
    predict_run,
    write_parquet,
)
from trainer.evaluation.predict_models import Predictions
from trainer.files import write_json
from trainer.networks.hardware import set_up_jax
from trainer.runs.ensemble import Ensemble, EnsembleRecord
from trainer.runs.evaluation_setup import EvaluationSetup
from trainer.runs.run import Calibration, write_calibration
from trainer.runs.smoothing import Smoothing, write_smoothing

# Values of calibration.figures in evaluation-NAME.json.
CROSS_FITTED, UNKNOWN = "cross-fitted by patient", "unknown"
SAME_SLICES, OTHER_SLICES = "of slices that it was fitted on", "of other slices"
OUT_OF_FOLD_NOTE = (
    "Out of fold: every slice by the network that was not trained on its fold, pooled over all"
    " networks. Their scales may differ, so that ROC AUC and average precision of the pool may be"
    " lower than the means over folds."
)
_WARNINGS = {
    SAME_SLICES: "on these slices, so the figures are too good; --fit_temperature cross-fits them",
    UNKNOWN: "on slices that temperatures.json does not name; if on these, the figures are too"
    " good",
}
# Metrics that depend on probabilities, not just on their ranking.
_OF_PROBABILITIES = {"weighted_log_loss", "log_loss", "calibration_error", "reliability"}


def evaluate(
    setup: EvaluationSetup,
    fit_temperature: bool = False,
    fit_smooth_z: bool = False,
    *,
    fit_weights: bool = False,
) -> EvaluationSetup:
    """Write evaluation-NAME.json and predictions-NAME.parquet into the run.

    Of an ensemble, also ensemble.json.

    NAME is the split with differences from training (`EvaluationSetup.name`): files from
    training are never replaced.

    Returns:
        The setup with what was fitted.

    Raises:
        UsageError: the split has no labels, or a shard is damaged.
        Diverged: the model's logits are not finite.
    """
    set_up_jax()
    run, names, display = setup.run, setup.shards.labels, setup.display
    predictions, ensemble = pool_members(setup, predict_labeled(setup), fit_weights)
    smoothing, smooth_by = None, None
    if fit_smooth_z:
        setup, predictions, smoothing, smooth_by = fit_and_cross_fit_smoothing(setup, predictions)
    elif setup.smoothing.changes:
        predictions, smoothing = smooth_and_compare(setup, predictions)
    frame = predictions.frame(setup.calibration)
    measured, calibration = measure(frame, setup), None
    if fit_temperature:
        # rank uncalibrated scores: calibration differs between groups of patients
        setup, crossed, calibration = fit_and_cross_fit(setup, predictions, smooth_by)
        frame = crossed.frame()
        measured = with_losses(measured, measure(frame, setup))
    elif setup.calibration.changes:
        fitted_on = where_fitted(setup, setup.calibration)
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
        **describe_smoothing(setup.smoothing),
        **(setup.calibration.describe(names) if changes else uncalibrated),
    }
    fits = {"calibration": calibration} | ({"smoothing": smoothing} if smoothing else {})
    figures = {"options": options, **fits, **measured}
    figures |= {"ensemble": ensemble} if ensemble else {}
    write_json(run.evaluation(setup.name), figures)
    # for the validation fold, training already wrote the predictions of a complete run
    path = run.predictions(setup.name)
    if not run.is_complete or setup.name != run.validation:
        write_parquet(path, frame)
    if (fit_temperature or fit_smooth_z) and figures["trained_on"]:
        display.say(
            "Fitted on patients of the training, they make probabilities of other patients too"
            " extreme."
        )
    if ensemble:
        show_members(display, ensemble, str(run.path))
    show_figures(display, figures, f"{run.path}: {setup.name}")
    display.print_unwrapped(f"written: {run.evaluation(setup.name)}, {path.name}")
    if not isinstance(run, Ensemble):
        display.print_unwrapped(next_command("export", run=run.path))
    return setup


def pool_members(
    setup: EvaluationSetup, predictions: Predictions, weigh: bool
) -> tuple[Predictions, dict[str, Any] | None]:
    """Fit the weights of an ensemble, if wanted, and write its record.

    Returns:
        The predictions, with cross-fitted weights if these are fitted; and the members, for the
        figures. Of a run or a single cross-validation, the same predictions, and None.

    Raises:
        UsageError: there is only one patient.
    """
    run = setup.run
    if not isinstance(run, Ensemble) or predictions.members is None:
        return predictions, None
    if len(run.members) == 1:
        setup.display.say(OUT_OF_FOLD_NOTE)
        return predictions, None
    weights = np.array(run.shares)
    if weigh:
        weights, run.ensemble = fit_and_cross_fit_weights(setup, predictions)
        predictions = pool_predictions(predictions, run.ensemble.mean, weights)
    run.write()
    return predictions, describe_members(setup, predictions, weights)


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


def describe_members(
    setup: EvaluationSetup, predictions: Predictions, weights: Array
) -> dict[str, Any]:
    """Return an ensemble's members with their figures, and what each adds, for the figures.

    Args:
        setup: of an ensemble.
        predictions: those of the ensemble and of its members.
        weights: weight per member, [M], or per member and example, [M, N].
    """
    run, members = setup.run, predictions.members
    assert isinstance(run, Ensemble)
    assert members is not None

    def measured(logits: Floats) -> Measured:
        found = replace(predictions, logits=logits, alone=None, pooled=None)
        return Measured(found.frame(), predictions.names, setup.weights)

    mean = run.ensemble.mean
    shares = np.broadcast_to(np.reshape(weights, (len(members), -1)), members.shape[:2])
    entries = []
    together = measured(predictions.logits)
    for i, (title, logits) in enumerate(zip(run.titles, members, strict=True)):
        alone = measured(logits)
        entry = {"name": title, "weight": run.shares[i]}
        entry |= {name: alone.figures[name] for name in ("weighted_log_loss", "mean_roc_auc")}
        others = {"alone": alone}
        if len(members) > 1:
            others["without"] = measured(pool(members, mean, without(shares, i)))
        for name, other in others.items():
            found = together.difference(other, "log_loss")
            entry[f"ensemble_minus_{name}"] = {"value": found.value, "ends": found.ends}
        entries.append(entry)
    how = CROSS_FITTED if weights.ndim > 1 else "equal"
    if how == "equal" and run.ensemble.weights:
        fitted_on = where_fitted(setup, run.ensemble)
        how = f"fitted, figures {fitted_on}"
        if fitted_on == SAME_SLICES:
            setup.display.say(
                "weights were fitted on these slices, so the figures are too good; --fit_weights"
                " cross-fits them"
            )
    return {"mean": mean, "weights": how, "members": entries}


def predict_labeled(setup: EvaluationSetup, trained: Any = None) -> Predictions:
    """Predict a split by `predict_run`; raise UsageError also if a slice is unlabeled."""
    predictions = predict_run(setup, setup.shards.labels, "evaluating", trained)
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
        **measure_scans(slices),
    }


def measure_scans(slices: Measured) -> dict[str, Any]:
    """Return the figures per scan of a scan model, by the maximum and as pooled; else nothing."""
    names = slices.names
    if f"pooled_{names[0]}" not in slices.frame:
        return {}
    pooled = slices.frame.assign(
        **{f"probability_{name}": slices.frame[f"pooled_{name}"] for name in names}
    )
    found = {
        "maximum": slices.by_scan(),
        "pooled": replace(slices, frame=pooled).by_scan(),
    }
    return {
        "scans": {
            name: {**scans.figures, "intervals_95": scans.intervals}
            for name, scans in found.items()
        }
    }


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
    compared = compare(setup, predictions, smoothed)
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
    description |= compare(setup, predictions, smoothed)
    say_smoothing(setup, setup.smoothing, description)
    return smoothed, description


def compare(
    setup: EvaluationSetup, predictions: Predictions, smoothed: Predictions
) -> dict[str, Any]:
    """Return the figures with and without smoothing, both without calibration."""
    without, with_it = (
        Measured(each.frame(), predictions.names, setup.weights) for each in (predictions, smoothed)
    )
    return compare_smoothing(without, with_it)


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


def where_fitted(setup: EvaluationSetup, fitted: Calibration | Smoothing | EnsembleRecord) -> str:
    """Return whether a fit was on the measured slices, if known."""
    if not fitted.split:
        return UNKNOWN
    names = {fitted.split, setup.split.name}
    of_folds = all(name == ALL_FOLDS or fold_number(name) is not None for name in names)
    overlaps = len(names) == 1 or ALL_LABELED in names or (ALL_FOLDS in names and of_folds)
    return SAME_SLICES if fitted.digest == setup.shards.digest() and overlaps else OTHER_SLICES
