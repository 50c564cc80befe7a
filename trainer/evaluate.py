"""Measures a saved run on a labelled split."""

from __future__ import annotations

from typing import Any

from trainer.errors import BadInput
from trainer.hardware import leave_gpu_to_jax
from trainer.job import Answer
from trainer.metrics import split_figures
from trainer.model import load_classifier
from trainer.predictions import Predictions, predict_split, write_parquet
from trainer.progress import Display, figures_table
from trainer.run_directory import write_json
from trainer.shards import ShardDirectory, Split


def evaluate(answer: Answer) -> None:
    """Writes evaluation-<split>.json and predictions-<split>.parquet into the run.

    Raises:
        BadInput: the split has no labels, or a shard is damaged.
    """
    leave_gpu_to_jax()
    run, shards, split, display = answer.run, answer.shards, answer.split, answer.display
    model = load_classifier(run.model)
    figures, predictions = evaluate_split(
        model, shards, split, answer.weights, answer.batch_size, display
    )
    write_parquet(run.path / f"predictions-{split.name}.parquet", predictions, shards.labels)
    write_json(run.path / f"evaluation-{split.name}.json", {"split": split.name, **figures})
    display.console.print(figures_table(figures, f"{run.path}: {split.name}"))
    display.say(
        f"written: {run.path}/evaluation-{split.name}.json, predictions-{split.name}.parquet"
    )


def evaluate_split(
    model: Any,
    shards: ShardDirectory,
    split: Split,
    weights: tuple[float, ...],
    batch_size: int,
    display: Display,
) -> tuple[dict[str, Any], Predictions]:
    """The figures of a split, and the answers they are of.

    Raises:
        BadInput: the split has no labels.
    """
    display.begin(f"evaluating {split.name}", split.examples)
    predictions = predict_split(
        model, split, shards.image, len(shards.labels), batch_size, display.update
    )
    display.end()
    if (predictions.labels < 0).any():
        raise BadInput(f"split {split.name}: has no labels; `predict` answers for it")
    figures = split_figures(predictions.labels, predictions.probabilities, shards.labels, weights)
    return figures, predictions
