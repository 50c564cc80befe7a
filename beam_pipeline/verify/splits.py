"""What only all shards together show: ids used twice, patients in two splits, stratification."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from beam_pipeline.layout import MANIFEST
from beam_pipeline.verify.claims import Claims
from beam_pipeline.verify.findings import Check, Finding, Findings, printable, show_id
from beam_pipeline.verify.shard import CONTENTS, ShardReport


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
    examples = _examples(reports)
    findings.checked[Check.PARTITION] += len(examples)
    _check_ids(examples, findings)
    # A run may be asked to keep studies together, not patients.
    group = "study" if claims.options.get("group_by") == "study" else "patient"
    _check_groups(examples, group, findings)
    summaries = [_summarize(name, reports, examples, claims) for name in claims.splits]
    _check_patient_counts(summaries, reports, claims, findings)
    return summaries, _count_identical(examples)


def _examples(reports: Sequence[ShardReport]) -> pd.DataFrame:
    """A row an example, in the order of the reports."""
    tables = []
    for number, report in enumerate(reports):
        shard = pa.repeat(pa.scalar(number, pa.int32()), len(report.contents))
        tables.append(report.contents.append_column("shard", shard))
    empty = CONTENTS.append(pa.field("shard", pa.int32())).empty_table()
    examples: pd.DataFrame = pa.concat_tables([empty, *tables]).to_pandas()
    for name in ("file", "split"):  # a code a row, not a text
        values = [getattr(report.claim, name) for report in reports]
        kinds = sorted(set(values))
        codes = np.array([kinds.index(value) for value in values], np.int32)
        examples[name] = pd.Categorical.from_codes(codes[examples["shard"]], pd.Index(kinds))
    return examples


def _check_ids(examples: pd.DataFrame, findings: Findings) -> None:
    repeated = examples[examples.duplicated("image_id", keep=False)]
    firsts: dict[str, str] = {}
    for row in repeated.to_dict("records"):
        image_id, place = row["image_id"], f"record {row['record']} of {row['file']}"
        first = firsts.setdefault(image_id, place)
        if first != place:
            message = f"the same image_id as {first}"
            findings.add(
                Finding(Check.PARTITION, message, row["file"], row["record"], image_id=image_id)
            )


def _check_groups(examples: pd.DataFrame, group: str, findings: Findings) -> None:
    column = f"{group}_id"
    pairs = examples.drop_duplicates([column, "split"])
    shared = pairs[pairs.duplicated(column, keep=False)]
    places: dict[str, list[str]] = defaultdict(list)
    for row in shared.to_dict("records"):
        place = f"{row['file']} (first as record {row['record']}, {printable(row['image_id'])})"
        places[row[column]].append(place)
    for name, found in sorted(places.items()):
        message = f"{group} {show_id(name)} is in {len(found)} splits: {', '.join(found)}"
        findings.add(Finding(Check.PARTITION, message))


def _summarize(
    name: str, reports: Sequence[ShardReport], examples: pd.DataFrame, claims: Claims
) -> SplitSummary:
    read = [report for report in reports if report.claim.split == name and report.bytes]
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
        label_counts={
            label: sum(n for labels, n in total.items() if labels[place] == 1)
            for place, label in enumerate(claims.labels or ())
        },
        spread=max((_spread(labels, combinations) for labels in total), default=0),
    )


def _spread(labels: tuple[int, ...], shards: Sequence[Counter[tuple[int, ...]]]) -> int:
    counts = [shard[labels] for shard in shards]
    return max(counts) - min(counts)


def _check_patient_counts(
    summaries: Sequence[SplitSummary],
    reports: Sequence[ShardReport],
    claims: Claims,
    findings: Findings,
) -> None:
    """The manifest's numbers of patients, for splits that can be read in full."""
    lost = {
        report.claim.split
        for report in reports
        if report.records != len(report.contents) or (report.bytes is None)
    }
    for summary in summaries:
        stated = claims.splits[summary.name].patients
        if stated is None or summary.name in lost:
            continue
        findings.checked[Check.COUNTS] += 1
        if stated != summary.patients:
            message = f"{summary.name} has {summary.patients} patients, the manifest says {stated}"
            findings.add(Finding(Check.COUNTS, message, MANIFEST))


def _count_identical(examples: pd.DataFrame) -> IdenticalImages:
    pairs = examples.drop_duplicates(["image", "split"])
    return IdenticalImages(
        slices=int(examples.duplicated("image").sum()),
        across_splits=int(pairs.loc[pairs.duplicated("image"), "image"].nunique()),
    )
