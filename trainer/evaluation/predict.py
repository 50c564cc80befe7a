"""Writes a Kaggle submission for a split, labeled or not."""

from __future__ import annotations

from pathlib import Path

from trainer.evaluation.predictions import predict_split, write_parquet
from trainer.evaluation.submission import build_submission, fit_to_sample, read_sample
from trainer.files import write_whole
from trainer.networks.hardware import leave_gpu_to_jax
from trainer.networks.model import load_classifier
from trainer.runs.job import EvaluationJob
from trainer.runs.trained_on import describe_overlap, find_overlap


def predict(job: EvaluationJob, output: Path, sample: Path | None = None) -> None:
    """Writes ID,Label with one row per image and label, and the same as Parquet beside it.

    Args:
        job: the run and the split.
        output: to write.
        sample: submission whose rows and order are wanted.

    Raises:
        BadInput: a shard is damaged, or the sample is none of these labels.
    """
    shards, split, display = job.shards, job.split, job.display
    wanted = None if sample is None else read_sample(sample, shards.labels)
    leave_gpu_to_jax()
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
    overlap = find_overlap(job.run, shards, predictions.texts)
    if trained := describe_overlap(overlap, job.trained_on)["trained_on"]:
        part = "all" if trained is True else trained
        display.say(f"{split.name}: the run was trained on {part} of its patients")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(output.with_suffix(".parquet"), predictions, shards.labels)
    image_ids = predictions.texts["image_id"]
    submission = build_submission(image_ids, predictions.probabilities, shards.labels)
    if wanted is not None:
        prevalence = dict(zip(shards.labels, job.prevalence, strict=True))
        submission = fit_to_sample(submission, wanted, prevalence)
        if submission.filled:
            display.say(
                f"{submission.filled} slices of {sample} are not in the shards (rejects.jsonl says"
                " why): they get the prevalence of the training data"
            )
        if submission.left_out:
            display.say(f"{submission.left_out} slices of the shards are not in {sample}: left out")
    rows = submission.rows
    write_whole(output, lambda path: rows.to_csv(path, index=False, float_format="%.9g"))
    display.point_out(
        f"written: {output}, {len(rows)} rows for {split.examples} slices of {split.name}"
    )
