"""Which slice goes to which shard: decided for all of them at once, from keys alone."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from beam_pipeline.errors import Reason, UsageError
from beam_pipeline.folds import assign_folds, assign_shards
from beam_pipeline.labels import RSNA_LABELS, Labels
from beam_pipeline.options import Options

DATASET = "ich"
UNLABELLED_SPLIT = "test"
UNLABELLED = -1
LABEL_PREFIX = "label_"

_PSEUDONYMS = {"patient_id": "patient", "study_id": "study", "series_id": "series"}


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write.

    Attributes:
        split: its name.
        number: of the shard in its split, from 0.
        of: how many shards the split has.
        slices: a row a slice, in the order to write them: source, image_id, patient_id, study_id
            and series_id (pseudonyms), and an int8 column `label_<name>` a label.
        excluded: sources not to touch, and why.
    """

    split: str
    number: int
    of: int
    slices: pd.DataFrame
    excluded: dict[str, Reason] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The shard's file name, as TensorFlow Datasets expects it."""
        return f"{DATASET}-{self.split}.tfrecord-{self.number:05d}-of-{self.of:05d}"

    @property
    def sources(self) -> tuple[str, ...]:
        """The files it is made of, in order."""
        return tuple(self.slices["source"])

    def excluding(self, source: str, reason: Reason) -> "ShardPlan":
        """The same shard, without touching one of its sources."""
        return replace(self, excluded={**self.excluded, source: reason})

    def digest(self) -> str:
        """Identifies what is to be written, apart from the options."""
        content = {"file": self.file, "slices": self.slices.to_dict("list")}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """All shards to write, and what is known before they are.

    Attributes:
        labels: names of the classes.
        shards: in the order of their splits and numbers.
        rejects: str columns source, image_id, reason, detail; a row a file.
        files_seen: how many files the input has.
        labels_without_file: how many labelled image ids have no file.
        shard_count: how many shards the plan has.
    """

    labels: tuple[str, ...]
    shards: tuple[ShardPlan, ...]
    rejects: pd.DataFrame
    files_seen: int
    labels_without_file: int
    shard_count: int

    def without_shards(self) -> "Plan":
        """What remains of interest once the shards are on their way."""
        return replace(self, shards=())


def plan_shards(inventory: pd.DataFrame, labels: Labels | None, options: Options) -> Plan:
    """Join files with labels, deal patients to folds and slices to shards.

    The result depends on the inventory's rows, not on their order.

    Args:
        inventory: a row a file, as `inspect_batch` makes it.
        labels: of the data set, or None if it has none.
        options: folds, examples_per_shard and seed count here.

    Raises:
        UsageError: there are no files, or too few patients for the folds.
    """
    if inventory.empty:
        raise UsageError(f"input {options.input} holds no files")
    judged = _judge(inventory.sort_values("source", ignore_index=True), labels)
    usable = _pseudonymize(judged[judged["reason"] == ""].sort_values("image_id"))
    names = labels.names if labels else RSNA_LABELS
    slices = _add_labels(usable, labels, names)
    files = set(inventory["image_id"])
    shards = tuple(_deal(slices, labels is not None, names, options))
    return Plan(
        labels=names,
        shards=shards,
        rejects=judged.loc[judged["reason"] != "", ["source", "image_id", "reason", "detail"]],
        files_seen=len(inventory),
        labels_without_file=_count_without_file(labels, files) if labels else 0,
        shard_count=len(shards),
    )


def _judge(inventory: pd.DataFrame, labels: Labels | None) -> pd.DataFrame:
    """Give every file that cannot be used its reason; of equal ids the first file is used."""
    judged = inventory.copy()
    _reject(judged, judged[judged["reason"] == ""].duplicated("image_id"), Reason.DUPLICATE_ID)
    if labels is None:
        return judged
    for reason, detail in sorted(set(labels.unusable.values())):
        ids = [name for name, why in labels.unusable.items() if why == (reason, detail)]
        _reject(judged, judged["image_id"].isin(ids), reason, detail)
    _reject(judged, ~judged["image_id"].isin(labels.table.index), Reason.LABEL_MISSING)
    return judged


def _reject(judged: pd.DataFrame, found: pd.Series, reason: Reason, detail: str = "") -> None:
    """Mark rows that were found and are not rejected yet."""
    rows = found.reindex(judged.index, fill_value=False) & (judged["reason"] == "")
    judged.loc[rows, ["reason", "detail"]] = [reason.value, detail]


def _pseudonymize(usable: pd.DataFrame) -> pd.DataFrame:
    """Number patients, studies and series by their first image id: the ids give nothing away."""
    result = usable.copy()
    for column, noun in _PSEUDONYMS.items():
        number = pd.factorize(usable[column])[0] + 1
        result[column] = [f"{noun}_{n:06d}" for n in number]
    return result


def _add_labels(usable: pd.DataFrame, labels: Labels | None, names: Sequence[str]) -> pd.DataFrame:
    columns = [LABEL_PREFIX + name for name in names]
    slices = usable[["source", "image_id", *_PSEUDONYMS]].reset_index(drop=True)
    if labels is None:
        slices[columns] = np.full((len(slices), len(columns)), UNLABELLED, np.int8)
    else:
        slices[columns] = labels.table.loc[slices["image_id"]].to_numpy(np.int8)
    return slices


def _count_without_file(labels: Labels, files: set[str]) -> int:
    return len((set(labels.table.index) | labels.unusable.keys()) - files)


def _deal(
    slices: pd.DataFrame, labelled: bool, names: Sequence[str], options: Options
) -> list[ShardPlan]:
    columns = [LABEL_PREFIX + name for name in names]
    plans: list[ShardPlan] = []
    for split, part in _splits(slices, columns, labelled, options).items():
        count = math.ceil(len(part) / options.examples_per_shard)
        shards = assign_shards(part[columns].to_numpy(np.int8), count, options.seed)
        plans += [
            ShardPlan(split, number, count, part.iloc[rows].reset_index(drop=True))
            for number, rows in enumerate(shards)
        ]
    return plans


def _splits(
    slices: pd.DataFrame, columns: list[str], labelled: bool, options: Options
) -> dict[str, pd.DataFrame]:
    if slices.empty:
        return {}
    if not labelled:
        return {UNLABELLED_SPLIT: slices}
    patients = pd.factorize(slices["patient_id"])[0]
    try:
        fold_of = assign_folds(
            patients, slices[columns].to_numpy(np.int8), options.folds, options.seed
        )
    except ValueError as error:
        raise UsageError(f"--folds {options.folds}: {error}") from None
    return {f"fold{fold}": slices[fold_of[patients] == fold] for fold in range(options.folds)}
