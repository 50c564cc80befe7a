"""Prediction of a split, written as a Kaggle submission or a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from headct.errors import UsageError
from headct.layout import IMAGE, LABEL, POSITION, UNLABELED
from trainer.data.damage import damage_reported
from trainer.data.input_pipeline import TEXTS, evaluation_batches
from trainer.data.shards import ShardDirectory, Split
from trainer.errors import Diverged
from trainer.evaluation.metrics import probabilities
from trainer.evaluation.submission import Submission, build_submission, fit_to_sample, read_sample
from trainer.files import write_whole
from trainer.networks.hardware import device_errors_reported, leave_gpu_to_jax
from trainer.networks.saved_models import load_classifier
from trainer.runs.evaluation_setup import Calibration, EvaluationSetup
from trainer.runs.run_directory import read_description
from trainer.runs.trained_on import describe_overlap, find_overlap


@dataclass(frozen=True)
class Predictions:
    """Predictions for a split, in the order of its shards.

    Attributes:
        split: name of the split.
        logits: float32 [N, L].
        labels: int64 [N, L]; -1 where unlabeled.
        texts: image_id, patient_id, study_id and series_id, each [N].
        position_z: mm, float32 [N].
    """

    split: str
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    texts: dict[str, npt.NDArray[np.str_]]
    position_z: npt.NDArray[np.float32]

    def calibrated(self, calibration: Calibration) -> Predictions:
        """Return these predictions with calibrated logits."""
        return replace(self, logits=calibration.apply(self.logits).astype(np.float32))

    def without_labels(self) -> Predictions:
        """Return these predictions with all slices marked as unlabeled."""
        return replace(self, labels=np.full(self.logits.shape, UNLABELED, np.int64))

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Return the sigmoid of the logits, [N, L]."""
        return probabilities(self.logits)


def predict(job: EvaluationSetup, output: Path, sample: Path | None = None) -> None:
    """Predict a split, labeled or not, and write `output` in the format of its suffix.

    Args:
        job: the run and the split.
        output: .csv: ID,Label with one row per image and label; .parquet: one row per image.
        sample: sample submission that defines rows and order.

    Raises:
        UsageError: a shard is damaged, or the sample has other labels.
    """
    shards, split, display = job.shards, job.split, job.display
    labels = tuple(read_description(job.run)["shards"]["labels"])
    wanted = None if sample is None else read_sample(sample, labels)
    leave_gpu_to_jax()
    model = load_classifier(job.run.model, job.xla, shards.image, len(labels))
    predictions = predict_job(model, job, "predicting")
    overlap = find_overlap(job.run, shards, predictions.texts)
    if trained := describe_overlap(overlap, job.trained_on)["trained_on"]:
        count = "all" if trained is True else trained
        display.say(f"{split.name}: the run was trained on {count} of its patients")
    if shards.labels != labels:
        predictions = predictions.without_labels()
    if output.suffix == ".parquet":
        write_parquet(output, predictions, labels)
        display.print_unwrapped(f"written: {output}, {split.examples} slices of {split.name}")
        return
    image_ids = predictions.texts["image_id"].tolist()
    if wanted is None:
        submission = build_submission(image_ids, predictions.probabilities, labels)
    else:
        prevalence = dict(zip(labels, job.prevalence, strict=True))
        submission = fit_to_sample(image_ids, predictions.probabilities, wanted, prevalence)
    for line in explain_differences(submission, sample):
        display.say(line)
    rows = submission.rows
    write_whole(output, lambda path: rows.to_csv(path, index=False, float_format="%.9g"))
    display.print_unwrapped(
        f"written: {output}, {len(rows)} rows for {split.examples} slices of {split.name}"
    )


def explain_differences(submission: Submission, sample: Path | None) -> list[str]:
    """Explain unexpected rows of a submission."""
    lines = []
    if submission.filled:
        lines.append(
            f"{submission.filled} slices of {sample} are not in the shards (rejects.jsonl says"
            " why): they get the prevalence of the training data"
        )
    if submission.left_out:
        lines.append(f"{submission.left_out} slices of the shards are not in {sample}: left out")
    if submission.unclear:
        chosen = (
            "the slice in the shards, else the longer label is taken"
            if sample
            else "Kaggle cannot tell these rows apart"
        )
        lines.append(
            f"{submission.unclear} rows have an ID that fits two slices, since the label of one"
            f" ends like the label of the other: {chosen}"
        )
    return lines


def predict_job(model: Any, job: EvaluationSetup, title: str) -> Predictions:
    """Predict the job's split with its calibration, and show the progress.

    Raises:
        UsageError, Diverged, DeviceFailed: see `predict_split`.
    """
    job.display.begin(f"{title} {job.split.name}", job.split.examples)
    predictions = predict_split(
        model, job.shards, job.split, job.batch_size, job.display.update, job.flip
    )
    job.display.end()
    return predictions.calibrated(job.calibration)


def predict_split(
    model: Any,
    shards: ShardDirectory,
    split: Split,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda _: None,
    flip: bool = False,
) -> Predictions:
    """Run `model` over all slices of a split.

    Args:
        model: stored images → logits.
        shards: the directory of the split.
        split: the split.
        batch_size: images per step.
        on_batch: called after every batch with the number of finished slices.
        flip: average the logits of image and mirror image.

    Raises:
        UsageError: a shard is damaged, or its number of examples is not the manifest's.
        Diverged: a logit is not finite.
        DeviceFailed: a GPU, its driver or its compiler failed.
    """
    image, labels = shards.image, len(shards.labels)
    columns: dict[str, list[Any]] = {}
    done = 0
    batches = evaluation_batches(split, image, labels, batch_size)
    with damage_reported((split,), image, labels), device_errors_reported():
        for batch in batches.as_numpy_iterator():
            logits = predict_batch(model, batch.pop(IMAGE), flip)
            rows = len(batch[LABEL])
            for name, values in {**batch, "logits": logits[:rows]}.items():
                columns.setdefault(name, []).append(values)
            done += rows
            on_batch(done)
    if done != split.examples:
        raise UsageError(
            f"split {split.name}: {done} examples where the manifest has {split.examples}"
        )
    joined = {name: np.concatenate(batches) for name, batches in columns.items()}
    check_finite(joined["logits"], split.name)
    return Predictions(
        split=split.name,
        logits=joined["logits"],
        labels=joined[LABEL],
        texts={name: np.char.decode(joined[name].astype(bytes)) for name in TEXTS},
        position_z=joined[POSITION],
    )


def check_finite(logits: npt.NDArray[np.float32], split: str) -> None:
    """Check that all logits [N, L] are finite.

    Raises:
        Diverged: a logit is NaN or infinite.
    """
    if not np.isfinite(logits).all():
        raise Diverged(
            f"the model gives {np.count_nonzero(~np.isfinite(logits).all(axis=1))} of"
            f" {len(logits)} slices of {split} a logit that is not finite; try a lower"
            " --learning_rate, --clip_norm 1 or --precision float32 in a new run directory"
        )


def predict_batch(model: Any, images: npt.NDArray[Any], flip: bool) -> npt.NDArray[np.float32]:
    """Return the logits of a batch, [B, L]."""
    logits = np.asarray(model.predict_on_batch(images))
    if flip:
        mirrored = np.ascontiguousarray(images[:, :, ::-1])
        logits = (logits + np.asarray(model.predict_on_batch(mirrored))) / 2
    return logits.astype(np.float32)


def to_frame(predictions: Predictions, labels: tuple[str, ...]) -> pd.DataFrame:
    """Return one row per slice: ids, split, position_z, probability_<label>, label_<label>."""
    columns: dict[str, Any] = {**predictions.texts, "split": predictions.split}
    columns["position_z"] = predictions.position_z
    for i, label in enumerate(labels):
        columns[f"probability_{label}"] = predictions.probabilities[:, i]
    for i, label in enumerate(labels):
        columns[f"label_{label}"] = predictions.labels[:, i]
    return pd.DataFrame(columns)


def write_parquet(path: Path, predictions: Predictions, labels: tuple[str, ...]) -> None:
    """Write `to_frame` atomically."""
    frame = to_frame(predictions, labels)
    write_whole(path, lambda unfinished: frame.to_parquet(unfinished, index=False))
