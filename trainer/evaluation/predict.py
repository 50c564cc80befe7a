"""Writes a model's answers for a split, labeled or not: a Kaggle submission or a table."""

from __future__ import annotations

from pathlib import Path

from trainer.evaluation.predictions import predict_split, write_parquet
from trainer.evaluation.submission import (
    Submission,
    build_submission,
    fit_to_sample,
    read_sample,
)
from trainer.files import write_whole
from trainer.networks.hardware import leave_gpu_to_jax
from trainer.networks.model import load_classifier
from trainer.runs.job import EvaluationJob
from trainer.runs.run_directory import read_description
from trainer.runs.trained_on import describe_overlap, find_overlap


def predict(job: EvaluationJob, output: Path, sample: Path | None = None) -> None:
    """Writes `output` in the format of its suffix.

    Args:
        job: the run and the split.
        output: .csv: ID,Label with one row per image and label; .parquet: one row per image.
        sample: submission whose rows and order are wanted.

    Raises:
        UsageError: a shard is damaged, or the sample is none of these labels.
    """
    shards, split, display = job.shards, job.split, job.display
    labels = tuple(read_description(job.run)["shards"]["labels"])
    wanted = None if sample is None else read_sample(sample, labels)
    leave_gpu_to_jax()
    model = load_classifier(job.run.model, job.xla, shards.image, len(labels))
    display.begin(f"predicting {split.name}", split.examples)
    predictions = predict_split(
        model,
        split,
        shards.image,
        len(shards.labels),
        job.batch_size,
        display.update,
        job.flip,
    ).calibrated(job.calibration)
    display.end()
    overlap = find_overlap(job.run, shards, predictions.texts)
    if trained := describe_overlap(overlap, job.trained_on)["trained_on"]:
        part = "all" if trained is True else trained
        display.say(f"{split.name}: the run was trained on {part} of its patients")
    if shards.labels != labels:
        predictions = predictions.without_labels()
    if output.suffix == ".parquet":
        write_parquet(output, predictions, labels)
        display.point_out(f"written: {output}, {split.examples} slices of {split.name}")
        return
    image_ids = predictions.texts["image_id"].tolist()
    if wanted is None:
        submission = build_submission(image_ids, predictions.probabilities, labels)
    else:
        prevalence = dict(zip(labels, job.prevalence, strict=True))
        submission = fit_to_sample(image_ids, predictions.probabilities, wanted, prevalence)
    say_what_differs(job, submission, sample)
    rows = submission.rows
    write_whole(output, lambda path: rows.to_csv(path, index=False, float_format="%.9g"))
    display.point_out(
        f"written: {output}, {len(rows)} rows for {split.examples} slices of {split.name}"
    )


def say_what_differs(job: EvaluationJob, submission: Submission, sample: Path | None) -> None:
    """Says which rows are not what a reader of the submission expects."""
    display = job.display
    if submission.filled:
        display.say(
            f"{submission.filled} slices of {sample} are not in the shards (rejects.jsonl says"
            " why): they get the prevalence of the training data"
        )
    if submission.left_out:
        display.say(f"{submission.left_out} slices of the shards are not in {sample}: left out")
    if submission.unclear:
        display.say(
            f"{submission.unclear} rows have an ID that fits two slices, since a label of one ends"
            " as a label of the other: "
            + (
                "the slice in the shards, else the longer label is taken"
                if sample
                else "Kaggle cannot tell these rows from each other"
            )
        )
