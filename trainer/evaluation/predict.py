"""Prediction of a split by a run or an ensemble, written as a Kaggle submission or a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import logit

from headct.errors import UsageError
from headct.layout import IMAGE_ID, PATIENT_ID, POSITION
from headct.manifest import ImageSpec
from trainer.data.input_pipeline import TEXTS
from trainer.data.shards import ShardDirectory, Split
from trainer.evaluation.metrics import CLIP, Array, Floats
from trainer.evaluation.pooling import pool
from trainer.evaluation.predict_models import Predictions, predict_models
from trainer.files import file_sha256, write_whole
from trainer.networks.hardware import set_up_jax
from trainer.networks.saved_models import load_classifier
from trainer.networks.scan_model import ScanNetwork, features_model, load_scan_model
from trainer.runs.ensemble import Ensemble
from trainer.runs.evaluation_setup import EvaluationSetup
from trainer.runs.run import Run
from trainer.runs.trained_on import Texts, find_overlap, trained_on_split


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
    set_up_jax()
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


def predict_run(
    setup: EvaluationSetup, names: tuple[str, ...], title: str, trained: Any = None
) -> Predictions:
    """Predict a split with a run's model, and show the progress; raises like `predict_models`.

    Of an ensemble, `predict_ensemble`.

    Args:
        setup: the run and the split.
        names: names of the model's labels.
        title: of the progress.
        trained: the network with the weights of the run's model; None: the saved model.
    """
    shards, display = setup.shards, setup.display

    def predict_by(runs: Sequence[Run], part: Split) -> list[Predictions]:
        neighbors = [each.neighbors for each in runs]
        compiled = [setup.compiled(each) for each in runs]
        loaded = [] if trained is None else [trained]
        models = loaded or load_networks(runs, compiled, shards.image, len(names))
        by = f" with {len(runs)} networks" if len(runs) > 1 else ""
        display.begin(f"{title} {part.name}{by}", part.examples)
        found = predict_models(
            models, shards, part, names, setup.batch_size, display.update, setup.flip, neighbors
        )
        display.end()
        return found

    if isinstance(setup.run, Ensemble):
        return predict_ensemble(setup.run, shards, setup.split, predict_by, reuse=not setup.flip)
    (predictions,) = predict_by(setup.run.networks, setup.split)
    return predictions


def load_networks(
    runs: Sequence[Run], xla: Sequence[str], image: ImageSpec, labels: int
) -> list[Any]:
    """Load what each run predicts with: a classifier, or a ScanNetwork.

    Scan models on one slice network share it.

    Args:
        runs: the runs.
        xla: of each, whether to compile with XLA.
        image: format of the stored images.
        labels: number of labels.

    Raises:
        UsageError: a file is missing or unreadable, or holds another network.
    """
    shared: dict[tuple[Any, ...], Any] = {}
    loaded = []
    for run, compiled in zip(runs, xla, strict=True):
        network = (run.model, compiled, image, labels, run.neighbors.slices)
        if not (scans := run.record.scans):
            loaded.append(load_classifier(*network))
            continue
        mirrored = bool(scans.options.get("tta"))
        key = (file_sha256(run.model), compiled, mirrored)
        if key not in shared:
            shared[key] = features_model(load_classifier(*network), mirrored)
        model = load_scan_model(run.scan_model, labels)
        both = bool(scans.options["both_directions"])
        loaded.append(ScanNetwork(shared[key], model, both, run.control))
    return loaded


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
    joined: dict[str, Any] = {}
    for kind in ("members", "pooled_members"):
        arrays = [getattr(part, kind) for part in parts]
        known = all(array is not None for array in arrays)
        joined[kind] = np.concatenate(arrays, axis=1) if known else None
    return pool_predictions(
        Predictions(
            run.labels,
            pd.concat([part.rows for part in parts], ignore_index=True),
            np.concatenate([part.labels for part in parts]),
            joined["members"][0],
            **joined,
        ),
        run.ensemble.mean,
        np.array(run.shares),
    )


def pool_predictions(predictions: Predictions, mean: str, weights: Floats) -> Predictions:
    """Return predictions of an ensemble with the mean over its members; arguments as for `pool`."""
    kinds = {"logits": predictions.members, "pooled": predictions.pooled_members}
    means: dict[str, Any] = {
        name: pool(each, mean, weights) for name, each in kinds.items() if each is not None
    }
    return replace(predictions, **means)


def _predict_part(
    run: Ensemble,
    shards: ShardDirectory,
    part: Split,
    predict_by: Callable[[Sequence[Run], Split], list[Predictions]],
    reuse: bool,
) -> Predictions:
    """Return the predictions of an ensemble's first run for a part, with those of all members."""
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
    members: dict[str, Any] = {}
    for kind, name in (("logits", "members"), ("pooled", "pooled_members")):
        values = {i: getattr(each, kind) for i, each in found.items()}
        if any(each is None for each in values.values()):
            members[name] = None
            continue
        of_runs = np.zeros((len(runs), *first.logits.shape))
        for i, each in values.items():
            rows = found[i].rows[IMAGE_ID]
            order = pd.Index(rows).get_indexer(pd.Index(first.rows[IMAGE_ID]))
            if (order < 0).any():
                path = runs[i].predictions(part.name)
                raise UsageError(f"{path}: has other slices than the shards")
            of_runs[i] = each[order]
        members[name] = pool_runs(run, of_runs, answering & needed[:, None])
    return replace(first, rows=first.rows[[*TEXTS, "split", POSITION]], **members)


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
    kinds = ["probability", "label", *(["alone", "pooled"] if run.record.scans else [])]
    try:
        frame = pd.read_parquet(run.predictions(part.name))
        values = {k: frame[[f"{k}_{name}" for name in run.labels]].to_numpy() for k in kinds}
        labels = values.pop("label").astype(np.int64)
        logits = {k: logit(np.clip(each, CLIP, 1 - CLIP)) for k, each in values.items()}
    except (OSError, ValueError, KeyError):  # damaged: predict again
        return None
    rows = frame[[*TEXTS, "split", POSITION]]
    if len(rows) != part.examples or rows[IMAGE_ID].duplicated().any():
        return None
    return Predictions(run.labels, rows, labels, logits.pop("probability"), **logits)


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
