"""Prediction of a split, written as a Kaggle submission or a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import logit

from headct.errors import UsageError
from headct.layout import (
    IMAGE,
    IMAGE_ID,
    LABEL,
    PATIENT_ID,
    POSITION,
    SERIES_ID,
    UNLABELED,
)
from headct.manifest import ImageSpec
from headct.scans import Scans, find_scans
from trainer.data.damage import damage_reported
from trainer.data.input_pipeline import (
    TEXTS,
    evaluation_batches,
    examples_as_read,
    neighbor_batches,
)
from trainer.data.neighbors import ALONE, Neighbors
from trainer.data.shards import ShardDirectory, Split
from trainer.errors import Diverged
from trainer.evaluation.metrics import CLIP, Array, Floats, probabilities
from trainer.evaluation.pooling import pool
from trainer.files import write_whole
from trainer.networks.hardware import device_errors_reported, leave_gpu_to_jax
from trainer.networks.saved_models import load_classifier
from trainer.networks.scan_model import as_half, correct, features_model, load_scan_model
from trainer.runs.ensemble import Ensemble
from trainer.runs.evaluation_setup import EvaluationSetup
from trainer.runs.run import Calibration, Run
from trainer.runs.smoothing import Smoothing
from trainer.runs.trained_on import Texts, find_overlap, trained_on_split

_ROW = "row"  # place of a slice in the order of `evaluation_batches`


@dataclass(frozen=True)
class Predictions:
    """Predictions for a split, in the order of `evaluation_batches`.

    Attributes:
        names: names of the model's labels, L.
        rows: image_id, patient_id, study_id, series_id, split and position_z (mm), N rows.
        labels: int64 [N, L]; -1 where unlabeled.
        logits: float [N, L].
        members: of an ensemble, the logits of each member, [M, N, L].
        features: of a model that gives them beside the logits, [N, D].
    """

    names: tuple[str, ...]
    rows: pd.DataFrame
    labels: npt.NDArray[np.int64]
    logits: Floats
    members: Floats | None = None
    features: npt.NDArray[np.float16] | None = field(default=None, repr=False)

    @cached_property
    def scans(self) -> Scans:
        """The scans of the slices.

        Raises:
            UsageError: no slice has a series, or no slice has a position.
        """
        if not self.rows[SERIES_ID].any() or self.rows[POSITION].isna().all():
            lacking = POSITION if self.rows[SERIES_ID].any() else SERIES_ID
            raise UsageError(f"no slice has a {lacking}, so z does not order the slices of a scan")
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
    compared = compare_with_training(setup, frame)
    if trained := compared["trained_on"]:
        count = "all" if trained is True else trained
        names = ", ".join((compared["overlap"] or {}).get("members", {}))
        setup.display.say(
            f"{setup.split.name}: {names or 'the run'} was trained on {count} of its patients"
        )
    return frame


def predict_run(setup: EvaluationSetup, names: tuple[str, ...], title: str) -> Predictions:
    """Predict a split with a run's model, and show the progress; raises like `predict_split`.

    Of an ensemble, `predict_ensemble`.
    """
    shards, display = setup.shards, setup.display

    def predict_by(runs: Sequence[Run], part: Split) -> list[Predictions]:
        neighbors = [each.neighbors for each in runs]
        models = [
            load_network(each, setup.compiled(each), shards.image, len(names)) for each in runs
        ]
        by = f" with {len(runs)} networks" if len(runs) > 1 else ""
        display.begin(f"{title} {part.name}{by}", part.examples)
        found = predict_models(
            models, shards, part, names, setup.batch_size, display.update, setup.flip, neighbors
        )
        display.end()
        return [correct_scans(run, each) for run, each in zip(runs, found, strict=True)]

    if isinstance(setup.run, Ensemble):
        return predict_ensemble(setup.run, shards, setup.split, predict_by, reuse=not setup.flip)
    (predictions,) = predict_by(setup.run.networks, setup.split)
    return predictions


def load_network(run: Run, xla: str, image: ImageSpec, labels: int) -> Any:
    """Load what a run predicts from single images: logits, and features if it has a scan model.

    Raises:
        UsageError: the file is missing or unreadable, or holds another network.
    """
    classifier = load_classifier(run.model, xla, image, labels, run.neighbors.slices)
    scans = run.record.scans
    return features_model(classifier, bool(scans.options.get("tta"))) if scans else classifier


def correct_scans(run: Run, predictions: Predictions) -> Predictions:
    """Return the predictions with the logits of the run's scan model, if it has one.

    The rows get alone_<name> and pooled_<name>, probabilities of the slice network, and of the scan
    as a whole.

    Raises:
        UsageError: the scan model cannot be loaded, or slices have no series or position.
    """
    if not (scans := run.record.scans) or predictions.features is None:
        return predictions
    names, features = predictions.names, predictions.features
    model, both = load_scan_model(run.scan_model, len(names)), scans.options["both_directions"]
    logits = predictions.logits.astype(np.float32)
    of_slices, of_scan = correct(model, features, logits, predictions.scans, bool(both))
    check_finite(of_slices, "the split")
    rows = predictions.rows
    for kind, found in (("alone", logits), ("pooled", of_scan)):
        columns = [f"{kind}_{name}" for name in names]
        rows = rows.assign(**dict(zip(columns, probabilities(found).T, strict=True)))
    return replace(predictions, rows=rows, logits=of_slices, features=None)


def predict_ensemble(
    run: Ensemble,
    shards: ShardDirectory,
    split: Split,
    predict_by: Callable[[Sequence[Run], Split], list[Predictions]],
    *,
    reuse: bool,
) -> Predictions:
    """Predict a split with an ensemble; `Ensemble.answering` says which run answers what.

    Args:
        run: the ensemble.
        shards: the directory of the split.
        split: the split; its parts, such as folds, are predicted one by one.
        predict_by: predicts a part with some of the runs; called with those that are needed.
        reuse: whether predictions that the training of a run wrote may be read in place of that.
    """
    parts = [
        _predict_part(run, shards, part, predict_by, reuse)
        for part in shards.parts(split) or (split,)
    ]
    members = np.concatenate([of_members for _, of_members in parts], axis=1)
    return Predictions(
        run.labels,
        pd.concat(
            [found.rows[[*TEXTS, "split", POSITION]] for found, _ in parts], ignore_index=True
        ),
        np.concatenate([found.labels for found, _ in parts]),
        pool(members, run.ensemble.mean, np.array(run.shares)),
        members,
    )


def _predict_part(
    run: Ensemble,
    shards: ShardDirectory,
    part: Split,
    predict_by: Callable[[Sequence[Run], Split], list[Predictions]],
    reuse: bool,
) -> tuple[Predictions, Array]:
    """Return the predictions of a run, for rows and labels; and the members' logits, [M, N, L]."""
    runs = run.networks
    kept = {i: _of_training(each, shards, part) for i, each in enumerate(runs) if reuse}
    found = {i: each for i, each in kept.items() if each is not None}
    # What names tell is known before there are predictions with ids: a fold needs few runs.
    by_name = [trained_on_split(each, shards, part) for each in runs]
    needed = run.answering([None if k is None else np.array([k]) for k in by_name], 1)[:, 0]
    if missing := [i for i in range(len(runs)) if needed[i] and i not in found]:
        predicted = predict_by([runs[i] for i in missing], part)
        found = dict(zip(missing, predicted, strict=True)) | found
    first = next(iter(found.values()))
    answering = run.answering(run.known(shards, part, read_texts(first.rows)), len(first.rows))
    logits = np.zeros((len(runs), *first.logits.shape))
    for i, each in found.items():
        order = pd.Index(each.rows[IMAGE_ID]).get_indexer(pd.Index(first.rows[IMAGE_ID]))
        if (order < 0).any():
            raise UsageError(f"{runs[i].predictions(part.name)}: has other slices than the shards")
        logits[i] = each.logits[order]
    return first, pool_runs(run, logits, answering & needed[:, None])


def pool_runs(run: Ensemble, logits: Floats, answering: npt.NDArray[np.bool_]) -> Array:
    """Return the logits of each member of an ensemble, [M, N, L].

    Args:
        run: the ensemble.
        logits: of each of its runs, [R, N, L].
        answering: which run answers which example, [R, N].
    """
    answers = zip(run.by_member(logits), run.by_member(answering), strict=True)
    pooled = [
        pool(own, run.ensemble.mean, np.full(len(own), 1 / len(own)), by) for own, by in answers
    ]
    return np.stack(pooled)


def _of_training(run: Run, shards: ShardDirectory, part: Split) -> Predictions | None:
    """Return the predictions that a run's training wrote for a split, if there are any."""
    trained = run.record.shards
    if not run.is_complete or part.name != run.validation or trained.digest != shards.digest():
        return None
    try:
        frame = pd.read_parquet(run.predictions(part.name))
        predicted, labels = (
            frame[[f"{kind}_{name}" for name in run.labels]].to_numpy()
            for kind in ("probability", "label")
        )
    except (OSError, ValueError, KeyError):  # damaged: predict again
        return None
    rows = frame[[*TEXTS, "split", POSITION]]
    if len(rows) != part.examples or rows[IMAGE_ID].duplicated().any():
        return None
    logits = logit(np.clip(predicted, CLIP, 1 - CLIP))
    return Predictions(run.labels, rows, labels.astype(np.int64), logits)


def compare_with_training(setup: EvaluationSetup, frame: pd.DataFrame) -> dict[str, Any]:
    """Return how many patients of the predictions the run was trained on, for the figures.

    Of an ensemble: on how many each member was, if on any; `Ensemble.answering` has the rule.
    """
    run, shards = setup.run, setup.shards
    if not isinstance(run, Ensemble):
        return find_overlap(run, shards, read_texts(frame), setup.trained_on)
    known = {title: np.zeros(0, str) for title in run.titles}
    is_known = True
    for part in shards.parts(setup.split) or (setup.split,):
        texts = read_texts(frame[frame["split"] == part.name])
        for title, seen in run.seen_by_members(shards, part, texts).items():
            is_known &= seen is not None
            if seen is not None:
                known[title] = np.union1d(known[title], texts[PATIENT_ID][seen])
    counts = {title: len(patients) for title, patients in known.items() if len(patients)}
    trained = max(counts.values(), default=0)
    everyone = trained == frame[PATIENT_ID].nunique()
    overlap = {"patients": trained, "members": counts} if is_known else None
    if not trained and not is_known:
        return {"trained_on": None, "overlap": None}
    return {"trained_on": (everyone or trained) if trained else False, "overlap": overlap}


def read_texts(frame: pd.DataFrame) -> Texts:
    """Return the ids of predictions by column, for `trained_on`."""
    return {name: frame[name].to_numpy().astype(str) for name in TEXTS}


def predict_split(
    model: Any,
    shards: ShardDirectory,
    split: Split,
    names: tuple[str, ...],
    batch_size: int,
    on_batch: Callable[[int], None] = lambda _: None,
    flip: bool = False,
    neighbors: Neighbors = ALONE,
) -> Predictions:
    """Run `model` over all slices of a split, as `predict_models` does with several."""
    (predictions,) = predict_models(
        [model], shards, split, names, batch_size, on_batch, flip, [neighbors]
    )
    return predictions


def predict_models(
    models: Sequence[Any],
    shards: ShardDirectory,
    split: Split,
    names: tuple[str, ...],
    batch_size: int,
    on_batch: Callable[[int], None] = lambda _: None,
    flip: bool = False,
    neighbors: Sequence[Neighbors] = (),
) -> list[Predictions]:
    """Run models over all slices of a split; images are decoded once for all that see the same.

    Args:
        models: each from stored images to logits of the labels `names`, and perhaps features.
        shards: the directory of the split; if it has other labels, slices count as unlabeled.
        split: the split.
        names: names of the model's labels.
        batch_size: images per step.
        on_batch: called after every batch with the number of finished slices.
        flip: average the logits of image and mirror image.
        neighbors: slices that each model sees with a slice; empty: none.

    Raises:
        UsageError: a shard is damaged, its number of examples is not the manifest's, or the index
            does not have the scans.
        Diverged: a logit is not finite.
        DeviceFailed: a GPU, its driver or its compiler failed.
    """
    seen = neighbors or [ALONE] * len(models)
    found: dict[int, Predictions] = {}
    for each in dict.fromkeys(seen):
        places = [i for i, other in enumerate(seen) if other == each]
        group = [models[i] for i in places]
        answers = _predict_alike(group, shards, split, names, batch_size, on_batch, flip, each)
        found |= zip(places, answers, strict=True)
    return [found[i] for i in range(len(models))]


def _predict_alike(
    models: Sequence[Any],
    shards: ShardDirectory,
    split: Split,
    names: tuple[str, ...],
    batch_size: int,
    on_batch: Callable[[int], None],
    flip: bool,
    neighbors: Neighbors,
) -> list[Predictions]:
    """Run models that see the same slices, as `predict_models`."""
    columns: dict[str, list[Any]] = {}
    done = 0
    with damage_reported(shards, (split,)), device_errors_reported():
        if neighbors.count:
            batches = _scan_by_scan(shards, split, batch_size, neighbors)
        else:
            batches = evaluation_batches(shards, split, batch_size).as_numpy_iterator()
        for batch in batches:
            images, rows = batch.pop(IMAGE), len(batch[LABEL])
            for number, model in enumerate(models):
                outputs = predict_batch(model, images, flip)[:rows]
                batch[f"logits_{number}"] = outputs[:, : len(names)]
                batch[f"features_{number}"] = as_half(outputs[:, len(names) :])
            for name, values in batch.items():
                columns.setdefault(name, []).append(values)
            done += rows
            on_batch(done)
    if done != split.examples:
        raise UsageError(
            f"split {split.name}: {done} examples where the manifest has {split.examples}"
        )
    joined = {name: np.concatenate(batches) for name, batches in columns.items()}
    if _ROW in joined:
        order = np.argsort(joined[_ROW])
        joined = {name: values[order] for name, values in joined.items()}
    texts = {name: np.char.decode(joined[name].astype(bytes)) for name in TEXTS}
    ids = pd.DataFrame({**texts, "split": split.name, POSITION: joined[POSITION]})
    known = shards.labels == names
    labels = joined[LABEL] if known else np.full((done, len(names)), UNLABELED, np.int64)
    found = []
    for number in range(len(models)):
        logits, features = (joined[f"{kind}_{number}"] for kind in ("logits", "features"))
        check_finite(logits, split.name)
        kept = features if features.size else None
        found.append(Predictions(names, ids, labels, logits, features=kept))
    return found


def _scan_by_scan(
    shards: ShardDirectory, split: Split, batch_size: int, neighbors: Neighbors
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield slices with their neighbors, most of which are of the same batch.

    Yields:
        As `evaluation_batches`, and each slice's place in the order of that function.
    """
    examples = examples_as_read(shards, (split,))
    scans, table = examples.scans(), examples.rows
    texts = table.reindex(columns=[*TEXTS]).fillna("").astype(str)
    columns: dict[str, npt.NDArray[Any]] = {
        LABEL: examples.label_values.to_numpy(np.int64),
        POSITION: table[POSITION].to_numpy(np.float32, na_value=np.nan),
        **{name: np.char.encode(texts[name].to_numpy(np.str_), "utf-8") for name in TEXTS},
        _ROW: np.arange(len(table)),
    }
    # the last batch is padded with the first slices
    order = np.resize(scans.order, (-(-len(table) // batch_size), batch_size))
    batches = neighbor_batches(examples, neighbors.rows(scans)[order]).as_numpy_iterator()
    for number, (rows, images) in enumerate(zip(order, batches, strict=True)):
        found = rows[: len(table) - number * batch_size]
        yield {IMAGE: images, **{name: values[found] for name, values in columns.items()}}


def check_finite(logits: npt.NDArray[np.float32], split: str) -> None:
    """Raise Diverged if any of the logits [N, ...] is NaN or infinite."""
    finite = np.isfinite(logits.reshape(len(logits), -1)).all(axis=1)
    if not finite.all():
        raise Diverged(
            f"the model gives {np.count_nonzero(~finite)} of"
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
