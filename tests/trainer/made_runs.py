"""Run directories with invented predictions: complete, but for the model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct.manifest import ImageSpec, Manifest, ShardEntry, SplitEntry, Window
from trainer.data.shards import ShardDirectory
from trainer.display import Display
from trainer.evaluation.evaluate import measure
from trainer.evaluation.predict import Predictions, write_parquet
from trainer.runs.evaluation_setup import EvaluationSetup
from trainer.runs.run import Calibration, Run

MANY = tuple(
    f"{side} {each}"
    for side in ("left", "right")
    for each in ("subdural", "epidural", "subarachnoid", "parenchymal", "edema", "fracture", "any")
)


def invent_predictions(
    names: tuple[str, ...], patients: int, slices: int, seed: int, skill: float
) -> Predictions:
    """Labels depend on the patients alone, so that runs of two seeds can be compared."""
    truth, random = np.random.default_rng(99), np.random.default_rng(seed)
    count = patients * slices
    sick = truth.random((patients, len(names))) < 0.3
    labels = np.repeat(sick, slices, axis=0) & (truth.random((count, len(names))) < 0.5)
    logits = skill * (labels - 0.5) + random.normal(size=labels.shape) - 1
    number = np.arange(count)
    columns = {
        "image_id": [f"ID_{each:05d}" for each in number],
        "patient_id": [f"SECRET_{each // slices}" for each in number],
        "study_id": [f"STUDY_{each // slices}" for each in number],
        "series_id": [f"SERIES_{each // slices}" for each in number],
        "split": "fold0",
        "position_z": np.zeros(count, np.float32),
    }
    rows = pd.DataFrame(columns)
    return Predictions(names, rows, labels.astype(np.int64), logits.astype(np.float32))


def make_run(
    path: Path,
    names: tuple[str, ...] = ("upper", "lower"),
    patients: int = 30,
    slices: int = 6,
    seed: int = 0,
    skill: float = 2.0,
    digest: str = "d" * 64,
    **options: Any,
) -> EvaluationSetup:
    """Writes the run, and returns the setup of its last evaluation."""
    path.mkdir(parents=True)
    image = ImageSpec(8, 8, 3, "uint8", 0)
    windows = (Window("brain", 40, 80),) * 3
    predictions = invent_predictions(names, patients, slices, seed, skill)
    count = len(predictions.labels)
    shard = ShardEntry("ich-fold0", count, 0, "0" * 64)
    positives = dict(zip(names, predictions.labels.sum(axis=0).tolist(), strict=True))
    entry = SplitEntry(count, patients, [shard], positives)
    manifest = Manifest(1, list(names), list(windows), image, {"fold0": entry})
    shards = ShardDirectory(path, str(path / "shards"), manifest)
    prevalence = tuple(float(each) for each in predictions.labels.mean(axis=0))
    setup = EvaluationSetup(
        Run(path),
        shards,
        shards.split("fold0"),
        Calibration.none(len(names)),
        False,
        8,
        Display(),
    )
    described = {
        "options": {"fold": 0, "label_weights": "any=2", "model": "smallresnet", **options},
        "shards": {
            "path": shards.location,
            "digest": digest,
            "labels": list(names),
            "windows": [asdict(each) for each in windows],
            "image": asdict(image),
            "prevalence": list(prevalence),
        },
        "versions": {"keras": "3.12.0"},
    }
    setup.run.description.write_text(json.dumps(described))
    frame = predictions.frame()
    figures = measure(frame, setup)
    write_parquet(setup.run.predictions("fold0"), frame)
    documents = {
        "history.json": [invent_epoch(epoch, figures) for epoch in range(1, 6)],
        "metrics.json": {"epochs": 5, "best_epoch": 4, "stopped_early": False, **figures},
    }
    for name, content in documents.items():
        (path / name).write_text(json.dumps(content))
    return setup


def invent_epoch(epoch: int, figures: dict[str, Any]) -> dict[str, Any]:
    """A row of history.json."""
    aucs = {name: each["roc_auc"] for name, each in figures["labels"].items()}
    return {
        "epoch": epoch,
        "loss": 0.5 / epoch,
        "learning_rate": 1e-3 / epoch,
        "images_per_second": 100.0 + epoch,
        "input_wait": 0.02,
        "val_loss": figures["weighted_log_loss"] + abs(epoch - 4) / 50,
        "val_mean_roc_auc": figures["mean_roc_auc"],
        "val_roc_auc": aucs,
    }
