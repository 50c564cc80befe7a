"""What only all shards together show: ids used twice, patients in two splits, stratification."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from beam_pipeline.layout import MANIFEST
from beam_pipeline.verify.claims import Claims
from beam_pipeline.verify.findings import Check, Findings, printable, show_id
from beam_pipeline.verify.shard import CONTENTS, Combinations, ShardReport, count_labels


@dataclass(frozen=True)
class SplitSummary:
    """What a split was found to hold.

    Attributes:
        name: of the split.
        patients: how many.
        shards: how many files of it can be read.
        slices: how many examples can be read.
        bytes: of its shard files.
        labeled: how many examples have labels.
        label_counts: how many examples have each label.
        spread: by how many examples the shards differ in the label combination in which they
            differ most; 1 where they were dealt evenly and no slice was rejected afterwards.
    """

    name: str
    patients: int
    shards: int
    slices: int
    bytes: int
    labeled: int
    label_counts: dict[str, int]
    spread: int


@dataclass(frozen=True)
class IdenticalImages:
    """Examples with the same image.

    Attributes:
        slices: how many have the image of an earlier one.
        across_splits: how many images are in more than one split.
    """

    slices: int
    across_splits: int


def check_partition(
    reports: Sequence[ShardReport], claims: Claims, findings: Findings
) -> tuple[list[SplitSummary], IdenticalImages]:
    """Check that every image id is there once and every patient in one split.

    Identical images and uneven labels are no errors: they are in what is returned.

    Args:
        reports: of all shards.
        claims: of the manifest.
        findings: to add what is wrong to.
    """
    contents = [CONTENTS.empty_table(), *(report.contents for report in reports)]
    examples: pd.DataFrame = pa.concat_tables(contents).to_pandas()
    findings.checked[Check.PARTITION] += len(examples)
    _check_ids(examples, findings)
    # A run may be asked to keep studies together, not patients.
    group = "study" if claims.options.get("group_by") == "study" else "patient"
    _check_groups(examples, group, findings)
    summaries = []
    for name in claims.splits:
        own = [report for report in reports if report.claim.split == name]
        summaries.append(_summarize(name, own, examples, claims))
        if all(
            report.bytes is not None and report.records == len(report.contents) for report in own
        ):
            stated = claims.at("splits", name, "patients")
            what = f"{printable(name)}: patients"
            findings.compare(Check.COUNTS, MANIFEST, what, summaries[-1].patients, stated)
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
    read = [report for report in reports if report.bytes]
    own = examples[examples["split"] == name]
    combinations = [report.combinations for report in read]
    total = sum(combinations, Counter[tuple[int, ...]]())
    return SplitSummary(
        name=name,
        patients=int(own["patient_id"].nunique()),
        shards=len(read),
        slices=len(own),
        bytes=sum(report.bytes or 0 for report in read),
        labeled=sum(n for labels, n in total.items() if min(labels, default=-1) >= 0),
        label_counts=count_labels(total, claims.labels or ()),
        spread=max((_spread(labels, combinations) for labels in total), default=0),
    )


def _spread(labels: tuple[int, ...], shards: Sequence[Combinations]) -> int:
    counts = [shard[labels] for shard in shards]
    return max(counts) - min(counts)
