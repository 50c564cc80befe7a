"""Writes a Kaggle submission for a split, labeled or not."""

from __future__ import annotations

import csv
from pathlib import Path

from trainer.evaluation.predictions import Predictions, predict_split, write_parquet
from trainer.files import write_whole
from trainer.networks.hardware import leave_gpu_to_jax
from trainer.networks.model import load_classifier
from trainer.runs.job import EvaluationJob


def predict(job: EvaluationJob, output: Path) -> None:
    """Writes ID,Label with one row per image and label, and the same as Parquet beside it.

    Raises:
        BadInput: a shard is damaged.
    """
    leave_gpu_to_jax()
    shards, split, display = job.shards, job.split, job.display
    model = load_classifier(job.run.model)
    display.begin(f"predicting {split.name}", split.examples)
    predictions = predict_split(
        model,
        split,
        shards.image,
        len(shards.labels),
        job.batch_size,
        display.update,
        job.flip,
    ).with_temperatures(job.temperatures)
    display.end()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(output.with_suffix(".parquet"), predictions, shards.labels)
    rows = _submission_rows(predictions, shards.labels)
    write_whole(output, lambda unfinished: _write_rows(unfinished, rows))
    display.say(f"{output}: {len(rows)} rows for {split.examples} slices of {split.name}")


def _submission_rows(predictions: Predictions, labels: tuple[str, ...]) -> list[tuple[str, str]]:
    """`<image_id>_<label>` and the probability, the labels of an image together."""
    return [
        (f"{image_id}_{label}", f"{probability:.9g}")
        for image_id, row in zip(
            predictions.texts["image_id"], predictions.probabilities, strict=True
        )
        for label, probability in zip(labels, row, strict=True)
    ]


def _write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    """Writes the submission."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("ID", "Label"))
        writer.writerows(rows)
