"""Evaluation of a saved run on a labeled split: figures by slice, study and scan, and its files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from headct.errors import UsageError
from trainer.display import next_command, show_figures, show_members
from trainer.evaluation.cross_fits import (
    CROSS_FITTED,
    SAME_SLICES,
    UNKNOWN,
    fit_and_cross_fit,
    fit_and_cross_fit_smoothing,
    fit_and_cross_fit_weights,
    smooth_and_compare,
    where_fitted,
)
from trainer.evaluation.fit_smoothing import describe_smoothing
from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import Array, Floats, weighted_log_loss
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
from trainer.runs.ensemble import Ensemble
from trainer.runs.evaluation_setup import EvaluationSetup

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
    if not slices.has("pooled"):
        return {}
    kinds = {"maximum": slices, "pooled": slices.answered(slices.values("pooled"))}
    found = {name: each.by_scan() for name, each in kinds.items()}
    return {
        "scans": {
            name: {**scans.figures, "intervals_95": scans.intervals}
            for name, scans in found.items()
        }
    }


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
