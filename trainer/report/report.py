"""report.html: one self-contained page per run, without scripts or network access."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from markupsafe import Markup
from scipy.special import logit

from headct.declarations import flags
from headct.json_documents import read_json
from headct.layout import CARD, PATIENT_ID, POSITION
from headct.page import page_templates
from trainer.display import explain_figures, explain_members
from trainer.evaluation.calibration import cross_fit
from trainer.evaluation.cross_fits import OTHER_SLICES, where_fitted
from trainer.evaluation.evaluate import OUT_OF_FOLD_NOTE
from trainer.evaluation.fit_smoothing import SmoothingFit
from trainer.evaluation.measured import SENSITIVITY, Estimate, Measured, read_predictions
from trainer.evaluation.metrics import CLIP, Array, probabilities
from trainer.evaluation.predict_models import Predictions
from trainer.files import write_whole
from trainer.networks.catalog import BACKBONES
from trainer.options import TrainOptions
from trainer.report import plots
from trainer.report.plots import Picture
from trainer.report.slices import picture_slices, sheet_maker
from trainer.report.strips import (
    ENSEMBLE,
    SCAN,
    SLICE,
    SMOOTHED,
    ScanCurves,
    change_table,
    choose_scans,
    draw_strips,
    find_curves,
    scan_table,
)
from trainer.report.tables import (
    confusion_table,
    headline,
    loss_table,
    member_table,
    ranking_table,
    threshold_tables,
)
from trainer.runs.ensemble import Ensemble
from trainer.runs.evaluation_setup import EvaluationSetup
from trainer.runs.run import Run
from trainer.runs.smoothing import Smoothing, choose_smoothing

# Beginnings of their descriptions, by marker.
POINTS = {"o": "At the highest Youden index", "s": "At the fixed sensitivity"}
UNRECORDED = "not recorded"


def write_report(setup: EvaluationSetup, mistakes: int) -> None:
    """Write report.html into a complete run, with as many pictures of mistakes, and of hits.

    Curves and the confusion of labels go to the TensorBoard logs, too.

    Raises:
        UsageError: a file of the run or a shard is damaged.
    """
    run, names, split = setup.run, setup.shards.labels, setup.split.name
    metrics, history = read_json(run.metrics), plots.history_table(read_json(run.history))
    slices = Measured(read_predictions(run.predictions(split), names), names, setup.weights)
    missing = "" if setup.same_shards else "no slices: the shards are not those of the run"
    worst, hits = picture_slices(setup, slices, 0 if missing else mistakes)
    pictures = {"Curves": plots.plot_curves(slices), "Subtypes": plots.plot_means(slices.means)}
    plots.log_pictures(run.path / "tensorboard", pictures, metrics["epochs"])
    _write_page(
        setup,
        slices,
        metrics,
        **draw_scans(setup, slices, mistakes > 0 and not missing),
        answers={"Worst mistakes": worst, "Best hits": hits} if mistakes else {},
        answers_missing=missing,
        training=plot_training(history, metrics["best_epoch"]),
        provenance=describe_origin(run, metrics, setup.shards.path),
        options=option_rows(dict(run.record.options)),
    )


def write_ensemble_report(setup: EvaluationSetup) -> None:
    """Write report.html into the folder of an ensemble, from its last evaluation.

    Raises:
        UsageError: a file of the folder is damaged.
    """
    run, names = setup.run, setup.run.labels
    figures = read_json(run.evaluation(setup.name))
    slices = Measured(read_predictions(run.predictions(setup.name), names), names, setup.weights)
    ensemble = figures.get("ensemble")
    models = Counter(each.record.options.get("model", UNRECORDED) for each in run.networks)
    described = [f"{number} x {name}" for name, number in models.items()]
    _write_page(
        setup,
        slices,
        figures,
        **draw_scans(setup, slices, has_images=True),
        members=member_table(ensemble) if ensemble else None,
        members_note=" ".join(explain_members(ensemble)) if ensemble else OUT_OF_FOLD_NOTE,
        provenance=[
            ("Runs", Markup(", ").join(plots.CODE.format(each.path) for each in run.networks)),
            ("Report written", format_time(datetime.now(UTC).isoformat())),
            ("Shards", plots.CODE.format(setup.shards.location)),
            ("Digest of the shards", plots.CODE.format(setup.shards.digest())),
            ("Models", ", ".join(described)),
        ],
    )


def draw_scans(setup: EvaluationSetup, slices: Measured, has_images: bool) -> dict[str, Any]:
    """Return the section with scans as strips, for the template; raises like `sheet_maker`."""
    curves = find_curves(slices, models_of(setup, slices))
    if not isinstance(curves, ScanCurves):
        return {"scans_missing": curves}
    make_sheet = sheet_maker(setup) if has_images else None
    several = len(curves.models) > 1
    return {
        "models": [*curves.models],
        "strips": [(each, draw_strips(curves, each, make_sheet)) for each in choose_scans(curves)],
        "scan_tables": [change_table(curves), scan_table(curves)] if several else [],
    }


def models_of(setup: EvaluationSetup, slices: Measured) -> dict[str, Array]:
    """Return the probabilities of the networks in a run by title, [N, L], the slice network first.

    Smoothed ones follow where a smoothing was fitted, to the run or to the run of its slice
    network. If it was fitted on these slices, each patient is smoothed by a fit to the others.
    """
    run = setup.run
    own = {SLICE: (slices.predicted, run)}
    if (scans := run.record.scans) and slices.has("alone"):
        own = {SLICE: (slices.values("alone"), Run(Path(scans.run))), SCAN: (slices.predicted, run)}
    if isinstance(run, Ensemble):
        own = {ENSEMBLE: (slices.predicted, run)}
    models = {}
    for title, (predicted, of_run) in own.items():
        models[title] = predicted
        if setup.smoothing.changes or not of_run.smoothing.is_file():
            continue
        smoothing = choose_smoothing(of_run.smoothing, wanted=True)
        if smoothing.changes and POSITION in slices.frame:
            smoothed = smooth(setup, slices, predicted, smoothing)
            models[SMOOTHED.format(title)] = smoothed
    return models


def smooth(
    setup: EvaluationSetup, slices: Measured, predicted: Array, smoothing: Smoothing
) -> Array:
    """Return probabilities, smoothed along z as `models_of` describes."""
    logits = logit(np.clip(predicted, CLIP, 1 - CLIP))
    predictions = Predictions(slices.names, slices.frame, slices.labels, logits)
    patients = slices.frame[PATIENT_ID].to_numpy()
    if where_fitted(setup, smoothing) == OTHER_SLICES or len(np.unique(patients)) < 2:
        return probabilities(predictions.smoothed(smoothing).logits)
    fit = SmoothingFit(predictions, setup.weights)
    return probabilities(cross_fit(patients, lambda rest, group: fit.smooth_by(rest)[group]))


def _write_page(
    setup: EvaluationSetup,
    slices: Measured,
    metrics: dict[str, Any],
    *,
    provenance: Sequence[tuple[str, Any]],
    **others: Any,
) -> None:
    """Write the page of some predictions and their figures; `others` are parts of one kind."""
    run, split, studies = setup.run, setup.split.name, slices.by_study()
    weights = slices.figures["label_weights"]
    measured = metrics | {"intervals_95": slices.intervals, "label_weights": weights}
    left_out = {each.validation for each in run.networks}
    absent: dict[str, Any] = {"members": None, "members_note": "", "training": [], "options": []}
    absent |= {"answers": {}, "answers_missing": "", "of_scans": bool(run.record.scans)}
    absent |= {"models": [], "strips": [], "scan_tables": [], "scans_missing": ""}
    template = page_templates(Path(__file__).parent).get_template("report.html.jinja")
    page = template.render(
        run=run.path.resolve().name,
        split=split,
        slices=slices,
        studies=studies,
        metrics=metrics,
        # Shards from other software may have a patient in two folds.
        unseen=metrics.get("trained_on", False) is False,
        meaning=" ".join(explain_figures(measured)),
        headline=headline(slices, studies, metrics),
        ranking=ranking_table(slices, "slices", calibration=True),
        loss=loss_table(slices, setup.prevalence),
        **plot_labels(slices),
        thresholds=threshold_tables(slices, "by slice"),
        study_ranking=ranking_table(studies, "studies"),
        study_thresholds=threshold_tables(studies, "by study"),
        means=confusion_table(slices),
        sensitivity=SENSITIVITY,
        chose_epoch=any(part.name in left_out for part in setup.shards.parts(setup.split)),
        provenance=provenance,
        **absent | others,
    )
    write_whole(run.report, lambda path: path.write_text(page, encoding="utf-8"))
    setup.display.print_unwrapped(f"written: {run.report}")


def plot_labels(measured: Measured) -> dict[str, list[Picture]]:
    """Plot curves per label; ROC and precision-recall need positives and negatives."""
    pictures: dict[str, list[Picture]] = {"roc": [], "precision": [], "calibration": []}
    for i, name in measured.defined:
        labels, predicted = measured.labels[:, i], measured.predicted[:, i]
        area = measured.estimate("roc_auc", name)
        # Sensitivity and specificity of the operating points.
        rates = [[rate.value or 0 for rate in point.rates[:2]] for point in measured.points[name]]
        marks = [(1 - b, a, marker) for (a, b), marker in zip(rates, POINTS, strict=True)]
        line = plots.roc_line(labels, predicted)
        svg = plots.svg_in_unit_square(f"roc {name}", {name: line}, plots.ROC, marks)
        alt = f"ROC curve of {name}: area {area}." + "".join(
            f" {title}, sensitivity {a:.3f} and specificity {b:.3f}."
            for title, (a, b) in zip(POINTS.values(), rates, strict=True)
        )
        pictures["roc"].append(Picture(svg, alt, name, f"AUC {area}"))

        average, share = measured.estimate("average_precision", name), float(labels.mean())
        line = plots.precision_line(labels, predicted)
        kind = plots.PRECISION._replace(chance=pd.Series((share, share), (0, 1)))
        svg = plots.svg_in_unit_square(f"precision {name}", {name: line}, kind)
        alt = (
            f"Precision-recall curve of {name}: average precision {average}, where guessing has"
            f" {share:.3f}. At a recall of 0.5 or more, precision reaches"
            f" {line[line.index >= 0.5].max():.3f}."
        )
        pictures["precision"].append(Picture(svg, alt, name, f"AP {average}"))
    for i, (name, label) in enumerate(measured.figures["labels"].items()):
        bins, error = label["reliability"], label["calibration_error"]
        mean, share = measured.predicted[:, i].mean(), measured.labels[:, i].mean()
        curve = {name: plots.reliability_line(bins)}
        svg = plots.svg_in_unit_square(f"calibration {name}", curve, plots.RELIABILITY)
        alt = (
            f"Calibration of {name} in {len(bins)} bins: calibration error {error:.3f}, mean"
            f" probability {mean:.3f}, share of positives {share:.3f}."
        ) + "".join(
            f" Of {point['examples']} with a mean probability of {point['predicted']:.3f},"
            f" {point['observed']:.1%} are positive."
            for point in (bins[0], *bins[1:][-1:])
        )
        text = f"error {error:.3f}; mean {mean:.3f}, observed {share:.3f}"
        pictures["calibration"].append(Picture(svg, alt, name, text))
    return pictures


def plot_training(history: pd.DataFrame, best: int) -> list[Picture]:
    """Plot the course of training: loss, ROC AUC, learning rate and speed."""
    losses, mean = plots.loss_lines(history), history["val_mean_roc_auc"]
    training, validation = (losses[name].to_list() for name in ("training", "validation"))
    labels = [curve for name, curve in history.items() if str(name).startswith("val_roc_auc/")]
    first, last = (Estimate(None if np.isnan(mean.iloc[i]) else mean.iloc[i]) for i in (0, -1))
    rate, speed = history["learning_rate"], history["images_per_second"]
    wait = history["input_wait"].mean()
    return [
        Picture(
            plots.svg_by_epoch("loss", losses, "weighted log loss (nats)", best=best),
            f"Weighted log loss by epoch. Training: {training[0]:.4f} after the first,"
            f" {training[-1]:.4f} after the last of {len(history)}. Validation:"
            f" {validation[0]:.4f}, {validation[-1]:.4f}; lowest {min(validation):.4f} in"
            f" epoch {best}.",
            "Log loss",
            f"by epoch; the dotted line is epoch {best}, whose model was kept",
        ),
        Picture(
            plots.svg_by_epoch("auc", {"": mean}, "ROC AUC, validation", (None, 1), best, labels),
            f"Mean ROC AUC on the validation fold by epoch: {first} after the first,"
            f" {last} after the last of {len(history)}.",
            "ROC AUC",
            "mean of all labels; each label in gray",
        ),
        Picture(
            plots.svg_by_epoch("rate", {"": rate}, "learning rate"),
            f"Learning rate after each epoch: {rate.iloc[0]:.2g} first, {rate.max():.2g} at most,"
            f" {rate.iloc[-1]:.2g} last.",
            "Learning rate",
            "after each epoch",
        ),
        Picture(
            plots.svg_by_epoch("speed", {"": speed}, "images a second"),
            f"Images a second by epoch: {speed.mean():.1f} on average, from {speed.min():.1f}"
            f" to {speed.max():.1f}.",
            "Speed",
            f"images a second; {wait:.0%} of the time waiting for input",
        ),
    ]


def describe_origin(run: Run, metrics: Mapping[str, Any], shards: Path) -> list[tuple[str, Any]]:
    """Return names and values of the section on provenance; `shards` is a local folder."""
    machine = read_json(run.machine) if run.machine.is_file() else {}
    data, options = run.record.shards, run.record.options
    start = []
    if origin := run.record.continued_from:
        digest = plots.CODE.format(f"sha256 {origin.model_sha256[:12]}")
        source = Markup("{} ({})").format(plots.CODE.format(origin.run), digest)
        start = [("Starts from the model of", source)]
    epochs = f"epoch {metrics['best_epoch']} of {metrics['epochs']}"
    hardware = "{cores} cores, {memory_gib} GiB, {system}".format(**machine) if machine else ""
    return [
        ("Run", run.path.name),
        ("Trained", format_time(machine["finished"]) if "finished" in machine else UNRECORDED),
        ("Report written", format_time(datetime.now(UTC).isoformat())),
        ("Command", plots.CODE.format(training_command(run))),
        ("Shards", plots.CODE.format(data.path)),
        ("Digest of the shards", plots.CODE.format(data.digest)),
        ("Data card", link_data_card(run.path, data.path, shards)),
        ("Model", f"{options.get('model', UNRECORDED)}, {epochs}"),
        *start,
        ("Backend", machine.get("backend") or options.get("backend", UNRECORDED)),
        ("Devices", ", ".join(machine.get("devices", [])) or UNRECORDED),
        ("Machine", hardware or UNRECORDED),
        ("Versions", ", ".join(f"{k} {v}" for k, v in run.record.versions.items())),
    ]


def training_command(run: Run) -> str:
    """Return the command that repeats this run, without options at their defaults."""
    given: dict[str, Any] = {"shards": run.record.shards.path, "run": str(run.path)}
    if origin := run.record.continued_from:
        given["continue_from"] = origin.run
    options = dict(run.record.options)
    given |= {name: options[name] for name, value, usual in option_rows(options) if value != usual}
    if given.get("model", "resnet50") not in BACKBONES:  # a Python function
        values = {name: repr(value) for name, value in given.items()} | {"model": given["model"]}
        return (
            f"trainer.train_run({', '.join(f'{name}={value}' for name, value in values.items())})"
        )
    words = ["python", "-m", "trainer", "train"]
    for name, value in given.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


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
    fields = flags(TrainOptions)
    rows = []
    for name, value in options.items():
        usual = "" if name not in fields or fields[name].is_required() else fields[name].default
        rows.append([name, str(value), str(usual)])
    return sorted(rows, key=lambda row: row[1] == row[2])
