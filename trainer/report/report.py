"""report.html: one self-contained page per run, without scripts or network access."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from markupsafe import Markup

from headct.declarations import flags
from headct.json_documents import read_json
from headct.layout import CARD
from headct.page import Table, page_templates
from trainer.display import explain_figures, explain_weights
from trainer.evaluation.measured import SENSITIVITY, Estimate, Measured, read_predictions
from trainer.evaluation.metrics import example_losses
from trainer.files import write_whole
from trainer.networks.catalog import BACKBONES
from trainer.options import TrainOptions
from trainer.report.plots import (
    CODE,
    DIAGONAL,
    PRECISION_AXES,
    RELIABILITY_AXES,
    ROC_AXES,
    Picture,
    draw_by_epoch,
    draw_in_unit_square,
    draw_svg,
    history_table,
    loss_lines,
    precision_line,
    roc_line,
)
from trainer.report.slices import picture_slices
from trainer.runs.evaluation_setup import EvaluationSetup
from trainer.runs.run import Run

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
# Rules of the operating points: titles of their tables, and beginnings of their descriptions.
RULES = (
    "Threshold with the highest Youden index (sensitivity + specificity - 1)",
    f"Highest threshold with a sensitivity of at least {SENSITIVITY}",
)
POINTS = ("At the highest Youden index", "At the fixed sensitivity")
MARKERS = ("o", "s")
# Below these counts, intervals are wide and a single study changes figures visibly.
FEW_STUDIES, FEW_POSITIVES = 100, 20
UNRECORDED = "not recorded"


def write_report(setup: EvaluationSetup, mistakes: int) -> None:
    """Write report.html into a complete run.

    Args:
        setup: the run and the split that training left out.
        mistakes: number of mistakes, and of hits, to show as images.

    Raises:
        UsageError: a file of the run or a shard is damaged.
    """
    run, names, split = setup.run, setup.shards.labels, setup.split.name
    metrics, history = read_json(run.metrics), history_table(read_json(run.history))
    slices = Measured(read_predictions(run.predictions(split), names), names, setup.weights)
    studies = slices.by_study()
    missing = "" if setup.same_shards else "no slices: the shards are not those of the run"
    worst, hits = picture_slices(setup, slices, 0 if missing else mistakes)
    template = page_templates(Path(__file__).parent).get_template("report.html.jinja")
    page = template.render(
        run=run.path.name,
        split=split,
        sections={key: title for key, title in SECTIONS.items() if mistakes or key != "answers"},
        **headline(slices, studies, metrics),
        ranking=ranking_table(slices, "slices", with_calibration=True),
        loss=loss_table(slices, setup.prevalence),
        **plot_labels(slices),
        thresholds=threshold_tables(slices, "by slice"),
        study_ranking=ranking_table(studies, "studies"),
        study_thresholds=threshold_tables(studies, "by study"),
        study_caution=study_caution(studies),
        means=confusion_table(slices),
        sensitivity=SENSITIVITY,
        mistakes=worst,
        hits=hits,
        pictures_missing=missing,
        training=plot_training(history, metrics["best_epoch"]),
        provenance=describe_origin(run, metrics, setup.shards.path),
        options=option_rows(dict(run.record.options)),
    )
    write_whole(run.report, lambda path: path.write_text(page, encoding="utf-8"))
    setup.display.print_unwrapped(f"written: {run.report}")


def headline(slices: Measured, studies: Measured, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the template values of the page's top."""
    ends, weights = slices.intervals, slices.figures["label_weights"]
    # Shards from other software may have a patient in two folds.
    unseen = metrics.get("trained_on", False) is False
    alone = f"{metrics['prevalence_log_loss']:.3f}"
    rest = f"; {alone} by prevalence alone; weights: {explain_weights(weights)}"
    tiles = {
        "Weighted log loss": (slices.estimate("log_loss"), rest),
        "Mean ROC AUC": (slices.estimate("roc_auc"), ", by slice"),
        "Mean average precision": (slices.estimate("average_precision"), ", by slice"),
        "Mean ROC AUC by study": (studies.estimate("roc_auc"), ""),
    }
    counts = (
        plural(metrics["examples"], "slice", "slices"),
        plural(metrics["patients"], "patient", "patients"),
        plural(len(studies.frame), "study", "studies"),
    )
    return {
        "headline": [
            (title, estimate.number, (estimate.spread or "no interval") + note)
            for title, (estimate, note) in tiles.items()
        ],
        "summary": "{} of {} in {}".format(*counts)
        + f"{', which the model was not trained on' if unseen else ''}.",
        "unseen": unseen,
        "meaning": " ".join(
            explain_figures(metrics | {"intervals_95": ends, "label_weights": weights})
        ),
        "samples": ends["samples"],
    }


def plural(count: int, one: str, many: str) -> str:
    """Format a count with its noun."""
    return f"{count} {one if count == 1 else many}"


def numeric_columns(first: str, *others: str) -> list[tuple[str, str]]:
    """Return the columns of a table with numbers behind the first column."""
    return [(first, "text"), *((title, "number") for title in others)]


def ranking_table(measured: Measured, what: str, with_calibration: bool = False) -> Table:
    """Make a table of ROC AUC, average precision and, if wanted, calibration errors."""
    count, metrics = len(measured.frame), ("roc_auc", "average_precision")
    rows, headings = [], ["Positives", "Share", "ROC AUC", "Average precision"]
    for name, label in measured.figures["labels"].items():
        share = f"{100 * label['positives'] / count:.1f} %"
        estimates = [measured.estimate(metric, name) for metric in metrics]
        rows.append([name, label["positives"], share, *estimates])
    total = ["Mean", "", "", *(measured.estimate(metric) for metric in metrics)]
    if with_calibration:
        headings.append("Calibration error")
        total.append("")
        for row, label in zip(rows, measured.figures["labels"].values(), strict=True):
            row.append(f"{label['calibration_error']:.3f}")
    return Table(
        f"ROC AUC and average precision by label ({what}: {count})",
        numeric_columns("Label", *headings),
        rows,
        [total],
        "95 % intervals beside the figures. Guessing has a ROC AUC of 0.5, and an average precision"
        " of the share of positives.",
    )


def loss_table(measured: Measured, prevalence: tuple[float, ...]) -> Table:
    """Make a table of the log loss per label, and its share of the weighted mean."""
    weights = np.array(measured.weights)
    alone = example_losses(measured.labels, np.array(prevalence)).mean(axis=0)
    losses = [label["log_loss"] for label in measured.figures["labels"].values()]
    parts = weights / weights.sum() * losses
    rows = [
        [
            name,
            measured.estimate("log_loss", name, ".4f"),
            f"{alone[i]:.4f}",
            f"{weights[i]:g}",
            f"{parts[i]:.4f}",
            f"{100 * parts[i] / parts.sum():.1f} %" if parts.any() else "n/a",
        ]
        for i, name in enumerate(measured.names)
    ]
    total = [
        "Weighted mean",
        measured.estimate("log_loss", spec=".4f"),
        f"{np.average(alone, weights=weights):.4f}",
        f"{weights.sum():g}",
        f"{parts.sum():.4f}",
        "100.0 %",
    ]
    headings = ("Log loss", "Prevalence alone", "Weight", "Part of the mean", "Share of it")
    return Table(
        "Log loss by label (nats), and its part of the weighted mean",
        numeric_columns("Label", *headings),
        rows,
        [total],
        "Prevalence alone: the loss of answering each slice with the share of positives in the"
        " training data.",
    )


def threshold_tables(measured: Measured, what: str) -> list[Table]:
    """Make one table per rule, with the labels that have positives and negatives."""
    headings = ("Threshold", "TP", "FN", "TN", "FP", "Sensitivity", "Specificity", "PPV", "NPV")
    tables = []
    for number, title in enumerate(RULES if measured.defined else ()):
        rows: list[list[Any]] = []
        for name, points in measured.points.items():
            point = points[number]
            threshold = f"{point.threshold:{'.4f' if point.threshold >= 0.001 else '.2e'}}"
            rows.append([name, threshold, *point.counts, *point.rates])
        tables.append(Table(f"{title}, {what}", numeric_columns("Label", *headings), rows))
    return tables


def study_caution(studies: Measured) -> str:
    """Warn of too few studies, or too few positive ones; empty if there are enough."""
    warnings, count = [], len(studies.frame)
    if count < FEW_STUDIES:
        warnings.append(
            f"Only {plural(count, 'study', 'studies')}: one more or less moves these figures."
        )
    positives = zip(studies.names, studies.labels.sum(axis=0), strict=True)
    if few := [f"{name} ({number})" for name, number in positives if number < FEW_POSITIVES]:
        warnings.append(f"Fewer than {FEW_POSITIVES} positive studies: {', '.join(few)}.")
    return " ".join(warnings)


def confusion_table(measured: Measured) -> Table:
    """Make a table of the mean probability of each label among the positives of each label.

    It replaces a confusion matrix, because labels are not mutually exclusive.
    """
    rows = [
        [name, *(f"{mean:.2f}" for mean in measured.predicted[positive].mean(axis=0))]
        if positive.any()
        else [name, *["n/a"] * len(measured.names)]
        for name, positive in zip(measured.names, measured.labels.T == 1, strict=True)
    ]
    return Table(
        "Mean probability of the label at the top where the label at the left is present",
        numeric_columns("Present", *measured.names),
        rows,
    )


def plot_labels(measured: Measured) -> dict[str, list[Picture]]:
    """Plot curves per label; ROC and precision-recall need positives and negatives."""
    roc, precision, calibration = [], [], []
    for i, name in measured.defined:
        labels, predicted = measured.labels[:, i], measured.predicted[:, i]
        points = measured.points[name]
        # Sensitivity and specificity of the operating points.
        rates = [[rate.value or 0 for rate in point.rates[:2]] for point in points]
        marks = [(1 - b, a, marker) for (a, b), marker in zip(rates, MARKERS, strict=True)]
        curve = {name: roc_line(labels, predicted)}
        svg = draw_svg(f"roc {name}", draw_in_unit_square, curve, ROC_AXES, DIAGONAL, marks)
        area = measured.estimate("roc_auc", name)
        described = " ".join(
            f"{title}, sensitivity {a:.3f} and specificity {b:.3f}."
            for title, (a, b) in zip(POINTS, rates, strict=True)
        )
        alt = f"ROC curve of {name}: area {area}. {described}"
        roc.append(Picture(svg, alt, name, f"AUC {area}"))

        line, share = precision_line(labels, predicted), float(labels.mean())
        chance = pd.Series((share, share), (0, 1))
        svg = draw_svg(
            f"precision {name}", draw_in_unit_square, {name: line}, PRECISION_AXES, chance
        )
        average = measured.estimate("average_precision", name)
        alt = (
            f"Precision-recall curve of {name}: average precision {average}, where guessing has"
            f" {share:.3f}. At a recall of 0.5 or more, precision reaches"
            f" {line[line.index >= 0.5].max():.3f}."
        )
        precision.append(Picture(svg, alt, name, f"AP {average}"))
    for i, (name, label) in enumerate(measured.figures["labels"].items()):
        bins, error = label["reliability"], label["calibration_error"]
        curve = {name: pd.DataFrame(bins).set_index("predicted")["observed"]}
        options: Any = {"chance": DIAGONAL, "marker": "o"}
        salt = f"calibration {name}"
        svg = draw_svg(salt, draw_in_unit_square, curve, RELIABILITY_AXES, **options)
        mean, share = measured.predicted[:, i].mean(), measured.labels[:, i].mean()
        described = " ".join(
            f"Of {point['examples']} with a mean probability of {point['predicted']:.3f},"
            f" {point['observed']:.1%} are positive."
            for point in (bins[0], *bins[1:][-1:])
        )
        alt = (
            f"Calibration of {name} in {len(bins)} bins: calibration error {error:.3f}, mean"
            f" probability {mean:.3f}, share of positives {share:.3f}. {described}"
        )
        text = f"error {error:.3f}; mean {mean:.3f}, observed {share:.3f}"
        calibration.append(Picture(svg, alt, name, text))
    return {"roc": roc, "precision": precision, "calibration": calibration}


def plot_training(history: pd.DataFrame, best: int) -> list[Picture]:
    """Plot the course of training: loss, ROC AUC, learning rate and speed."""
    losses, mean = loss_lines(history), history["val_mean_roc_auc"]
    training, validation = (losses[name].to_list() for name in ("training", "validation"))
    labels = [curve for name, curve in history.items() if str(name).startswith("val_roc_auc/")]
    first, last = (Estimate(None if np.isnan(mean.iloc[i]) else mean.iloc[i]) for i in (0, -1))
    rate, speed = history["learning_rate"], history["images_per_second"]
    wait = history["input_wait"].mean()
    return [
        Picture(
            draw_svg("loss", draw_by_epoch, losses, "weighted log loss (nats)", best=best),
            f"Weighted log loss by epoch. Training: {training[0]:.4f} after the first,"
            f" {training[-1]:.4f} after the last of {len(history)}. Validation:"
            f" {validation[0]:.4f}, {validation[-1]:.4f}; lowest {min(validation):.4f} in"
            f" epoch {best}.",
            "Log loss",
            f"by epoch; the dotted line is epoch {best}, whose model was kept",
        ),
        Picture(
            draw_svg(
                "auc", draw_by_epoch, {"": mean}, "ROC AUC, validation", (None, 1), best, labels
            ),
            f"Mean ROC AUC on the validation fold by epoch: {first} after the first,"
            f" {last} after the last of {len(history)}.",
            "ROC AUC",
            "mean of all labels; each label in gray",
        ),
        Picture(
            draw_svg("rate", draw_by_epoch, {"": rate}, "learning rate"),
            f"Learning rate after each epoch: {rate.iloc[0]:.2g} first, {rate.max():.2g} at most,"
            f" {rate.iloc[-1]:.2g} last.",
            "Learning rate",
            "after each epoch",
        ),
        Picture(
            draw_svg("speed", draw_by_epoch, {"": speed}, "images a second"),
            f"Images a second by epoch: {speed.mean():.1f} on average, from {speed.min():.1f}"
            f" to {speed.max():.1f}.",
            "Speed",
            f"images a second; {wait:.0%} of the time waiting for input",
        ),
    ]


def describe_origin(run: Run, metrics: Mapping[str, Any], shards: Path) -> list[tuple[str, Any]]:
    """Return names and values of the section on provenance.

    Args:
        run: the run.
        metrics: content of metrics.json.
        shards: local folder of the shards.
    """
    machine = read_json(run.machine) if run.machine.is_file() else {}
    data, options = run.record.shards, run.record.options
    start = []
    if origin := run.record.continued_from:
        digest = CODE.format(f"sha256 {origin.model_sha256[:12]}")
        source = Markup("{} ({})").format(CODE.format(origin.run), digest)
        start = [("Starts from the model of", source)]
    epochs = f"epoch {metrics['best_epoch']} of {metrics['epochs']}"
    hardware = "{cores} cores, {memory_gib} GiB, {system}".format(**machine) if machine else ""
    return [
        ("Run", run.path.name),
        ("Trained", format_time(machine["finished"]) if "finished" in machine else UNRECORDED),
        ("Report written", format_time(datetime.now(UTC).isoformat())),
        ("Command", CODE.format(training_command(run))),
        ("Shards", CODE.format(data.path)),
        ("Digest of the shards", CODE.format(data.digest)),
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
