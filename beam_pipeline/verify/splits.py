"""What only all shards together show: ids used twice, patients in two splits, stratification."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from beam_pipeline.verify.claims import Claims
from beam_pipeline.verify.findings import Check, Findings, printable, show_id
from beam_pipeline.verify.shard import CONTENTS, Combinations, ShardReport, count_labels
from headct.layout import MANIFEST


@dataclass(frozen=True)
class SplitSummary:
    """What a split was found to hold."""

    name: str
    patients: int
    shards: int  # files that can be read
    slices: int  # examples that can be read
    bytes: int  # of its shard files
    labeled: int  # examples that have labels
    label_counts: dict[str, int]  # examples that have each label
    # By how many examples the shards differ in the label combination in which they differ most:
    # 1 where they were dealt evenly and no slice was rejected afterwards.
    spread: int


@dataclass(frozen=True)
class IdenticalImages:
    """Examples with the same image."""

    slices: int  # that have the image of an earlier one
    across_splits: int  # images that are in more than one split


def check_partition(
    reports: Sequence[ShardReport], claims: Claims, findings: Findings
) -> tuple[list[SplitSummary], IdenticalImages]:
    """Check that every image id is there once and every patient in one split.

    Identical images and uneven labels are no errors: they are in what is returned.
    """
    contents = [CONTENTS.empty_table(), *(report.contents for report in reports)]
    examples: pd.DataFrame = pa.concat_tables(contents).to_pandas()
    findings.checked[Check.PARTITION] += len(examples)
    _check_ids(examples, findings)
    # A run may be asked to keep studies together, not patients.
    group = "study" if claims.at("options", "group_by") == "study" else "patient"
    _check_groups(examples, group, findings)
    summaries = [_summarize(name, reports, examples, claims) for name in claims.at("splits") or ()]
    lost = {
        report.claim.split
        for report in reports
        if report.bytes is None or report.records != len(report.contents)
    }
    for split in summaries:
        if claims.complete and split.name not in lost:
            stated = claims.at("splits", split.name, "patients")
            what = f"{printable(split.name)}: patients"
            findings.compare(Check.COUNTS, MANIFEST, what, split.patients, stated)
    pairs = examples.drop_duplicates(["image", "split"])
    across = pairs.loc[pairs.duplicated("image"), "image"].nunique()
    return summaries, IdenticalImages(int(examples.duplicated("image").sum()), int(across))


def _check_ids(examples: pd.DataFrame, findings: Findings) -> None:
    repeated = examples[examples.duplicated("image_id", keep=False)]
    for image_id, rows in repeated.groupby("image_id"):
        first, *others = rows.to_dict("records")
        for row in others:
            message = f"the same image_id as record {first['record']} of {first['shard']}"
            place = row["shard"], row["record"], None, str(image_id)
            findings.add(Check.PARTITION, message, *place)


def _check_groups(examples: pd.DataFrame, group: str, findings: Findings) -> None:
    column = f"{group}_id"
    pairs = examples.drop_duplicates([column, "split"])
    for name, rows in pairs[pairs.duplicated(column, keep=False)].groupby(column):
        places = ", ".join(
            f"{row['shard']} (first as record {row['record']}, {printable(row['image_id'])})"
            for row in rows.to_dict("records")
        )
        message = f"{group} {show_id(name)} is in {len(rows)} splits: {places}"
        findings.add(Check.PARTITION, message)


def _summarize(
    name: str, reports: Sequence[ShardReport], examples: pd.DataFrame, claims: Claims
) -> SplitSummary:
    read = [report for report in reports if report.claim.split == name and report.bytes]
    own = examples[examples["split"] == name]
    combinations = [report.combinations for report in read]
    total = sum(combinations, Combinations())
    each = [[shard[labels] for shard in combinations] for labels in total]
    return SplitSummary(
        name=name,
        patients=int(own["patient_id"].nunique()),
        shards=len(read),
        slices=len(own),
        bytes=sum(report.bytes or 0 for report in read),
        labeled=sum(n for labels, n in total.items() if min(labels, default=-1) >= 0),
        label_counts=count_labels(total, claims.at("labels") or ()),
        spread=max((max(counts) - min(counts) for counts in each), default=0),
    )
