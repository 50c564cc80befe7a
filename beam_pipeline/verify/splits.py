"""Checks across shards: duplicate ids, patients in two splits, balance of labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from beam_pipeline.verify.findings import Check, Findings, printable, show_id
from beam_pipeline.verify.shard import CONTENTS, Combinations, ShardReport, count_labels
from headct.layout import MANIFEST


@dataclass(frozen=True)
class SplitSummary:
    """Content of a split, counted in its shards."""

    name: str
    patients: int
    shards: int  # readable shard files
    slices: int  # readable examples
    bytes: int  # size of the shard files
    labeled: int  # examples with labels
    label_counts: dict[str, int]  # examples per label
    # Largest difference between shards in the examples per label combination: 1 if shards are as
    # even as possible and no slice was rejected afterwards.
    spread: int


@dataclass(frozen=True)
class IdenticalImages:
    """Numbers of examples with identical images."""

    slices: int = 0  # examples that repeat an earlier example's image
    across_splits: int = 0  # images in more than one split


def check_partition(
    reports: Sequence[ShardReport], manifest: dict[str, Any], findings: Findings
) -> tuple[list[SplitSummary], IdenticalImages]:
    """Check that image ids are unique, and that every patient is in one split.

    Identical images and uneven labels are no errors; the result describes them.
    """
    contents = [CONTENTS.empty_table(), *(report.contents for report in reports)]
    examples: pd.DataFrame = pa.concat_tables(contents).to_pandas()
    findings.checked[Check.PARTITION] += len(examples)
    _check_ids(examples, findings)
    # An option of the run keeps studies together instead of patients.
    group = "study" if manifest["options"].get("group_by") == "study" else "patient"
    _check_groups(examples, group, findings)
    summaries = [
        _summarize(name, reports, examples, manifest["labels"]) for name in manifest["splits"]
    ]
    damaged = {
        report.split
        for report in reports
        if report.bytes is None or report.records != len(report.contents)
    }
    for split in summaries:
        if split.name not in damaged:
            expected = manifest["splits"][split.name]["patients"]
            what = f"{printable(split.name)}: patients"
            findings.compare(Check.COUNTS, MANIFEST, what, split.patients, expected)
    pairs = examples.drop_duplicates(["image", "split"])
    across = pairs.loc[pairs.duplicated("image"), "image"].nunique()
    return summaries, IdenticalImages(int(examples.duplicated("image").sum()), int(across))


def _check_ids(examples: pd.DataFrame, findings: Findings) -> None:
    repeated = examples[examples.duplicated("image_id", keep=False)]
    for image_id, rows in repeated.groupby("image_id"):
        first, *others = rows.to_dict("records")
        for row in others:
            message = f"the same image_id as record {first['record']} of {first['shard']}"
            location = row["shard"], row["record"], None, str(image_id)
            findings.add(Check.PARTITION, message, *location)


def _check_groups(examples: pd.DataFrame, group: str, findings: Findings) -> None:
    column = f"{group}_id"
    pairs = examples.drop_duplicates([column, "split"])
    for name, rows in pairs[pairs.duplicated(column, keep=False)].groupby(column):
        locations = ", ".join(
            f"{row['shard']} (first as record {row['record']}, {printable(row['image_id'])})"
            for row in rows.to_dict("records")
        )
        message = f"{group} {show_id(name)} is in {len(rows)} splits: {locations}"
        findings.add(Check.PARTITION, message)


def _summarize(
    name: str, reports: Sequence[ShardReport], examples: pd.DataFrame, labels: Sequence[str]
) -> SplitSummary:
    readable = [report for report in reports if report.split == name and report.bytes]
    rows = examples[examples["split"] == name]
    combinations = [report.combinations for report in readable]
    total = sum(combinations, Combinations())
    spreads = []
    for combination in total:
        counts = [shard[combination] for shard in combinations]
        spreads.append(max(counts) - min(counts))
    return SplitSummary(
        name=name,
        patients=int(rows["patient_id"].nunique()),
        shards=len(readable),
        slices=len(rows),
        bytes=sum(report.bytes or 0 for report in readable),
        labeled=sum(n for values, n in total.items() if min(values, default=-1) >= 0),
        label_counts=count_labels(total, labels),
        spread=max(spreads, default=0),
    )
