"""Which slice goes to which shard: decided for all of them at once, from keys alone."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beam_pipeline.assignment import Splits, assign_splits
from beam_pipeline.errors import Reason, UsageError
from beam_pipeline.folds import assign_shards
from beam_pipeline.identifiers import ID_COLUMNS, ordinals, replace_ids
from beam_pipeline.index import LABEL_PREFIX
from beam_pipeline.labels import RSNA_LABELS, Labels
from beam_pipeline.options import ImageId, LeakCheck, Options
from beam_pipeline.twins import TwinCounts, count_twins, join_groups

DATASET = "ich"
UNLABELLED_SPLIT = "test"
UNLABELLED = -1


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write.

    Attributes:
        split: its name.
        number: of the shard in its split, from 0.
        of: how many shards the split has.
        slices: a row a slice, in the order to write them: source, shown_source (what is written
            for it), header (for `decode_header`), image_id, patient_id, study_id and series_id (as
            they are written), and an int8 column `label_<name>` a label.
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
        twins: slices with identical pixels among those to write.
        shard_count: how many shards the plan has.
    """

    labels: tuple[str, ...]
    shards: tuple[ShardPlan, ...]
    rejects: pd.DataFrame
    files_seen: int
    labels_without_file: int
    twins: TwinCounts
    shard_count: int

    def without_shards(self) -> "Plan":
        """What remains of interest once the shards are on their way."""
        return replace(self, shards=())


def plan_shards(
    inventory: pd.DataFrame,
    labels: Labels | None,
    options: Options,
    earlier: pd.Series | None = None,
) -> Plan:
    """Join files with labels, deal patients to folds and slices to shards.

    The result depends on the inventory's rows, not on their order.

    Args:
        inventory: a row a file, as `inspect_batch` makes it; the column `twin` (of `find_twins`)
            is empty if it is not there.
        labels: of the data set, or None if it has none.
        options: of the run.
        earlier: the split of image ids in an earlier data set, to be kept.

    Raises:
        UsageError: there are no files, or they cannot be dealt as asked.
    """
    if inventory.empty:
        raise UsageError(f"input {options.input} holds no files")
    names = labels.names if labels else RSNA_LABELS
    columns = [LABEL_PREFIX + name for name in names]
    # Half of a row is its header, which has no part in what follows: it is joined again at the end.
    headers = inventory["header"].reset_index(drop=True)
    rows = inventory.drop(columns=["header", "fingerprint"]).assign(place=np.arange(len(headers)))
    rows = rows if "twin" in rows else rows.assign(twin="")
    judged = _judge(rows.sort_values("source", ignore_index=True), labels)
    judged["shown_source"] = _shown_sources(judged["source"], options)
    usable = judged[judged["reason"] == ""].sort_values("image_id", ignore_index=True)
    slices = _add_labels(usable, labels, columns)
    twins = count_twins(slices["twin"], slices["patient_id"], slices[columns])
    slices["split"] = _split(slices, columns, labels is not None, options, earlier)
    slices = replace_ids(slices, options.identifiers, options.identifier_key)
    if options.image_id is ImageId.ORDINAL:
        slices["image_id"] = ordinals(slices["source"], "image")
    shards = tuple(_deal(slices, headers, columns, options))
    return Plan(
        labels=names,
        shards=shards,
        rejects=_rejects(judged, options),
        files_seen=len(inventory),
        labels_without_file=_count_without_file(labels, judged) if labels else 0,
        twins=twins,
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


def _shown_sources(sources: pd.Series, options: Options) -> pd.Series | list[str]:
    """File names are not shown where image ids, which come from them, are not to be."""
    return ordinals(sources, "file") if options.image_id is ImageId.ORDINAL else sources


def _rejects(judged: pd.DataFrame, options: Options) -> pd.DataFrame:
    rejects = judged.loc[judged["reason"] != "", ["shown_source", "image_id", "reason", "detail"]]
    if options.image_id is ImageId.ORDINAL:
        rejects["image_id"] = ""
    return rejects.rename(columns={"shown_source": "source"})


def _add_labels(usable: pd.DataFrame, labels: Labels | None, columns: list[str]) -> pd.DataFrame:
    slices = usable[["place", "source", "shown_source", "image_id", *ID_COLUMNS, "twin"]].copy()
    if labels is None:
        slices[columns] = np.full((len(slices), len(columns)), UNLABELLED, np.int8)
    else:
        slices[columns] = labels.table.loc[slices["image_id"]].to_numpy(np.int8)
    return slices


def _count_without_file(labels: Labels, judged: pd.DataFrame) -> int:
    return len((set(labels.table.index) | labels.unusable.keys()) - set(judged["image_id"]))


def _split(
    slices: pd.DataFrame,
    columns: list[str],
    labelled: bool,
    options: Options,
    earlier: pd.Series | None,
) -> Sequence[str] | NDArray[np.str_]:
    if slices.empty or not labelled:
        return [UNLABELLED_SPLIT] * len(slices)
    group = slices[f"{options.group_by.value}_id"]
    if options.leak_check is LeakCheck.JOIN:
        groups = join_groups(group, slices["twin"])
    else:
        groups = pd.factorize(group)[0]
    return assign_splits(
        groups,
        slices[columns].to_numpy(np.int8),
        Splits.of(options.folds, options.holdout),
        options.seed,
        None if earlier is None else slices["image_id"].map(earlier.get).tolist(),
    )


def _deal(
    slices: pd.DataFrame, headers: pd.Series, columns: list[str], options: Options
) -> list[ShardPlan]:
    plans: list[ShardPlan] = []
    written = ["source", "shown_source", "image_id", *ID_COLUMNS, *columns, "header"]
    header = headers.take(slices["place"].to_numpy()).set_axis(slices.index)
    slices = slices.assign(header=header)
    for split, part in slices.groupby("split", sort=True):
        rows_of_split = part[written]
        count = math.ceil(len(part) / options.examples_per_shard)
        shards = assign_shards(part[columns].to_numpy(np.int8), count, options.seed)
        for number, rows in enumerate(shards):
            dealt = rows_of_split.iloc[rows].reset_index(drop=True)
            plans.append(ShardPlan(str(split), number, count, dealt))
    return plans
