"""Prediction of a split, written as a Kaggle submission or a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from headct.errors import UsageError
from headct.layout import IMAGE, LABEL, POSITION, SERIES_ID, UNLABELED
from headct.scans import Scans, find_scans
from trainer.data.damage import damage_reported
from trainer.data.input_pipeline import TEXTS, evaluation_batches
from trainer.data.shards import ShardDirectory, Split
from trainer.errors import Diverged
from trainer.evaluation.metrics import Array, Floats, probabilities
from trainer.files import write_whole
from trainer.networks.hardware import device_errors_reported, leave_gpu_to_jax
from trainer.networks.saved_models import load_classifier
from trainer.runs.evaluation_setup import EvaluationSetup
from trainer.runs.run import Calibration
from trainer.runs.smoothing import Smoothing
from trainer.runs.trained_on import find_overlap


@dataclass(frozen=True)
class Predictions:
    """Predictions for a split, in the order of `evaluation_batches`.

    Attributes:
        names: names of the model's labels, L.
        rows: image_id, patient_id, study_id, series_id, split and position_z (mm), N rows.
        labels: int64 [N, L]; -1 where unlabeled.
        logits: float [N, L].
    """

    names: tuple[str, ...]
    rows: pd.DataFrame
    labels: npt.NDArray[np.int64]
    logits: Floats

    @cached_property
    def scans(self) -> Scans:
        """The scans of the slices.

        Raises:
            UsageError: no slice has a series, or no slice has a position.
        """
        if not self.rows[SERIES_ID].any() or self.rows[POSITION].isna().all():
            lacking = POSITION if self.rows[SERIES_ID].any() else SERIES_ID
            raise UsageError(f"--smooth_z: no slice has a {lacking}, so z does not order a scan")
        return find_scans(self.rows, "predictions")

    def smoothed(self, smoothing: Smoothing) -> Predictions:
        """Return the predictions, smoothed along z; raises like `scans`."""
        if not smoothing.changes:
            return self
        return replace(self, logits=smoothing.apply(self.logits, self.scans))

    def frame(self, calibration: Calibration | None = None) -> pd.DataFrame:
        """Return the rows with probability_<name> and label_<name>."""
        logits = calibration.apply(self.logits) if calibration else self.logits
        predicted = pd.DataFrame(probabilities(logits), columns=[*self.names])
        labels = pd.DataFrame(self.labels, columns=[*self.names])
        tables = [self.rows, predicted.add_prefix("probability_"), labels.add_prefix("label_")]
        return pd.concat(tables, axis=1)


def predict(setup: EvaluationSetup, output: Path, sample: Path | None = None) -> None:
    """Predict a split, labeled or not, and write `output` in the format of its suffix.

    Args:
        setup: the run and the split.
        output: .csv: ID,Label with one row per image and label; .parquet: one row per image.
        sample: sample submission that defines rows and order.

    Raises:
        UsageError: a shard is damaged, or the sample has other labels.
    """
    split, display = setup.split, setup.display
    names = setup.run.labels
    wanted = None if sample is None else read_sample(sample, names)
    frame = predict_rows(setup)
    if output.suffix == ".parquet":
        write_parquet(output, frame)
        display.print_unwrapped(f"written: {output}, {split.examples} slices of {split.name}")
        return
    predicted = frame[[f"probability_{name}" for name in names]].to_numpy()
    prevalence = dict(zip(names, setup.prevalence, strict=True))
    rows, notes = build_submission(frame["image_id"].tolist(), predicted, prevalence, wanted)
    for note in notes:
        display.say(note)
    write_whole(output, lambda path: rows.to_csv(path, index=False, float_format="%.9g"))
    display.print_unwrapped(
        f"written: {output}, {len(rows)} rows for {split.examples} slices of {split.name}"
    )


def predict_rows(setup: EvaluationSetup) -> pd.DataFrame:
    """Predict a split; return `Predictions.frame`, and say if the run was trained on it."""
    leave_gpu_to_jax()
    predictions = predict_run(setup, setup.run.labels, "predicting")
    frame = predictions.smoothed(setup.smoothing).frame(setup.calibration)
    if trained := compare_with_training(setup, frame)["trained_on"]:
        count = "all" if trained is True else trained
        setup.display.say(f"{setup.split.name}: the run was trained on {count} of its patients")
    return frame


def predict_run(setup: EvaluationSetup, names: tuple[str, ...], title: str) -> Predictions:
    """Predict a split with a run's model, and show the progress; raises like `predict_split`."""
    model = load_classifier(setup.run.model, setup.xla, setup.shards.image, len(names))
    setup.display.begin(f"{title} {setup.split.name}", setup.split.examples)
    predictions = predict_split(
        model, setup.shards, setup.split, names, setup.batch_size, setup.display.update, setup.flip
    )
    setup.display.end()
    return predictions


def compare_with_training(setup: EvaluationSetup, frame: pd.DataFrame) -> dict[str, Any]:
    """Return how many patients of the predictions the run was trained on, for the figures."""
    texts = {name: frame[name].to_numpy().astype(str) for name in TEXTS}
    return find_overlap(setup.run, setup.shards, texts, setup.trained_on)


def predict_split(
    model: Any,
    shards: ShardDirectory,
    split: Split,
    names: tuple[str, ...],
    batch_size: int,
    on_batch: Callable[[int], None] = lambda _: None,
    flip: bool = False,
) -> Predictions:
    """Run `model` over all slices of a split.

    Args:
        model: stored images → logits of the labels `names`.
        shards: the directory of the split; if it has other labels, slices count as unlabeled.
        split: the split.
        names: names of the model's labels.
        batch_size: images per step.
        on_batch: called after every batch with the number of finished slices.
        flip: average the logits of image and mirror image.

    Raises:
        UsageError: a shard is damaged, or its number of examples is not the manifest's.
        Diverged: a logit is not finite.
        DeviceFailed: a GPU, its driver or its compiler failed.
    """
    columns: dict[str, list[Any]] = {}
    done = 0
    batches = evaluation_batches(shards, split, batch_size)
    with damage_reported(shards, (split,)), device_errors_reported():
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
    texts = {name: np.char.decode(joined[name].astype(bytes)) for name in TEXTS}
    known = shards.labels == names
    return Predictions(
        names,
        pd.DataFrame({**texts, "split": split.name, POSITION: joined[POSITION]}),
        joined[LABEL] if known else np.full(joined["logits"].shape, UNLABELED, np.int64),
        joined["logits"],
    )


def check_finite(logits: npt.NDArray[np.float32], split: str) -> None:
    """Raise Diverged if any of the logits [N, L] is NaN or infinite."""
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


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a table atomically."""
    write_whole(path, lambda unfinished: frame.to_parquet(unfinished, index=False))


def read_sample(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """Read the IDs of a sample submission, `<image id>_<label>`.

    An ID that fits two labels, as `a_midline_shift` does, has the longer one.

    Returns:
        Columns ID, image and label, in the order of the file.

    Raises:
        UsageError: the file cannot be read, or an ID has no known label.
    """
    try:
        ids = pd.read_csv(path, usecols=["ID"], dtype=str, na_filter=False)["ID"]
    except OSError as error:
        raise UsageError(f"--sample_submission {path}: {error.strerror}") from None
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--sample_submission {path}: cannot be read ({reason})") from None
    labels = "|".join(map(re.escape, names))
    parts = ids.str.extract(rf"^(?P<image>.*?)_(?P<label>{labels})\Z", flags=re.DOTALL)
    for unknown in ids[parts["label"].isna()]:
        raise UsageError(
            f"--sample_submission {path}: {unknown!r} is not <image id>_<label>; the labels"
            f" are {', '.join(names)}"
        )
    return parts.assign(ID=ids)


def build_submission(
    image_ids: Sequence[str],
    predicted: Array,
    prevalence: Mapping[str, float],
    sample: pd.DataFrame | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of a Kaggle submission, ID and Label, and what a user should know of them.

    Args:
        image_ids: N predicted images.
        predicted: probabilities, [N, L].
        prevalence: share of positives by label, for images that the pipeline rejected.
        sample: rows from `read_sample`; None: all images, in order, grouped by image.
    """
    pairs = [(image, label) for image in image_ids for label in prevalence]
    own = pd.DataFrame(pairs, columns=["image", "label"], dtype=object)
    own = own.assign(ID=["_".join(pair) for pair in pairs], Label=predicted.ravel())
    twice = own["ID"].duplicated(keep=False)
    notes = []
    if sample is None:
        rows, unclear, chosen = own, int(twice.sum()), "Kaggle cannot tell these rows apart"
    else:
        # Of equal IDs, the one with the longer label, which is that of the shorter image.
        answers = own.sort_values("image", key=lambda images: images.str.len(), kind="stable")
        answers = answers.drop_duplicates("ID")
        rows = sample.merge(answers, "left", on="ID", suffixes=("", "_found"))
        unclear = int(rows["ID"].isin(own["ID"][twice]).sum())
        chosen = "the longer label is taken"
        missing = rows["Label"].isna()
        rows["Label"] = rows["Label"].fillna(rows["label"].map(prevalence))
        asked = rows["image_found"].fillna(rows["image"])
        if filled := asked[missing].nunique():
            notes.append(
                f"{filled} slices of the sample are not in the shards (rejects.jsonl says why):"
                " they get the prevalence of the training data"
            )
        if left_out := len({*image_ids} - {*asked}):
            notes.append(f"{left_out} slices of the shards are not in the sample: left out")
    if unclear:
        notes.append(
            f"{unclear} rows have an ID that fits two slices, since the label of one ends like"
            f" the label of the other: {chosen}"
        )
    return rows[["ID", "Label"]], notes
