"""Tables of a card: rejects, labels, splits and shards; formats of a card's numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from rich.filesize import decimal

from beam_pipeline.card.totals import NO_LABEL, Totals
from beam_pipeline.shards.rejects import Reject
from headct.page import Table
from headct.reasons import advice_for

_NAMED_COLUMNS = 8  # with more labels, columns have numbers


def count(number: int) -> str:
    """Return a whole number with separators: 752,803."""
    return f"{number:,}"


def percent(share: float) -> str:
    """Return a share, with two significant digits if small: 14 %, 0.42 %."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


def with_minus(text: str) -> str:
    """Return a text with hyphens replaced by minus signs."""
    return text.replace("-", "\N{MINUS SIGN}")


def _columns(*headings: str, text: tuple[int, ...] = ()) -> list[tuple[str, str]]:
    """Return columns of numbers; the first column and the given columns hold text."""
    return [
        (heading, "text" if number in (0, *text) else "number")
        for number, heading in enumerate(headings)
    ]


def reject_table(counts: Mapping[str, Any], rejects: Sequence[Reject]) -> Table:
    """Return the reasons for rejects: one row per reason, with an example and advice.

    Args:
        counts: the manifest's `files_seen` and `rejected_by_reason`.
        rejects: one row per rejected file.
    """
    firsts: dict[str, Any] = {}
    for reject in sorted(rejects, key=lambda reject: reject["source"]):
        firsts.setdefault(reject["reason"], reject)
    by_number = sorted(counts["rejected_by_reason"].items(), key=lambda pair: (-pair[1], pair[0]))
    rows = []
    for reason, number in by_number:
        example = firsts.get(reason, {"source": "", "detail": ""})
        rows.append(
            [
                reason,
                count(number),
                percent(number / counts["files_seen"]),
                Markup("<code>{}</code>").format(example["source"]),
                example["detail"],
                advice_for(reason),
            ]
        )
    return Table(
        "Files that were not used",
        _columns("reason", "files", "of all", "example", "detail", "what to do", text=(3, 4, 5)),
        rows,
        note="rejects.jsonl has them all.",
    )


def label_table(manifest: dict[str, Any], totals: Totals) -> Table:
    """Return the numbers of slices, studies and patients per label."""
    patients = int(totals.splits["patients"].sum())
    rows: list[list[Any]] = [
        [
            label,
            *_count_and_bar(len(positives), totals),
            count(studies),
            f"{count(with_label)} ({percent(with_label / patients)})",
        ]
        for label, positives, studies, with_label in zip(
            manifest["labels"],
            totals.positives,
            totals.studies_with,
            totals.patients_with,
            strict=True,
        )
    ]
    rows.append([NO_LABEL, *_count_and_bar(len(totals.negatives), totals), "", ""])
    return Table(
        "Slices with each label",
        _columns("label", "slices", "share of slices", "studies", "patients", text=(2,)),
        rows,
        note="A slice may have several labels.",
    )


def _count_and_bar(slices: int, totals: Totals) -> tuple[str, Markup]:
    """Return a number of slices, and the share with the page macro's bar."""
    share = slices / totals.labeled
    bar = Markup(
        '<span class="share"><span class="bar" aria-hidden="true">'
        '<span style="width: {}%"></span></span> {}</span>'
    )
    return count(slices), bar.format(f"{100 * share:.1f}", percent(share))


def co_occurrence_table(manifest: dict[str, Any], totals: Totals) -> Table:
    """Return the number of slices per pair of labels."""
    labels = manifest["labels"]
    numbered = len(labels) > _NAMED_COLUMNS
    rows: list[list[Any]] = []
    for row, (label, both) in enumerate(zip(labels, totals.co_occurrence.tolist(), strict=True)):
        cells = [_pair(number, both[row], column == row) for column, number in enumerate(both)]
        rows.append([f"{row + 1} {label}" if numbered else label, *cells])
    names = [str(number + 1) for number in range(len(labels))] if numbered else labels
    note = " Columns have the numbers of the rows." if numbered else ""
    return Table(
        "Slices that have both labels",
        _columns("of the slices with", *names),
        rows,
        note=f"The percentage, and the shade, is the share of the row's label.{note}",
    )


def _pair(both: int, own: int, same: bool) -> Markup:
    if same:
        return Markup("<strong>{}</strong>").format(count(both))
    share = both / own if own else 0.0
    return Markup('<span class="heat" style="--share: {}%">{} <small>{}</small></span>').format(
        f"{100 * share:.0f}", count(both), percent(share)
    )


def fold_table(manifest: dict[str, Any]) -> Table:
    """Return slices per label and split, with the deviation from the share of all slices."""
    splits, labels = manifest["splits"], manifest["labels"]
    examples = sum(split["examples"] for split in splits.values())
    rows: list[list[Any]] = []
    for label in labels:
        total = sum(split["label_counts"][label] for split in splits.values())
        cells = [
            _count_and_deviation(split["label_counts"][label], total * split["examples"] / examples)
            for split in splits.values()
        ]
        rows.append([label, *cells, count(total)])
    return Table(
        "Slices with each label, by split",
        _columns("label", *splits, "all"),
        rows,
        note="The percentage is the deviation of the label's share in the split from its share in "
        "all slices. Patients are not divided, so a rare label cannot be quite even.",
    )


def _count_and_deviation(number: int, expected: float) -> Markup | str:
    """Return a number, and its signed deviation from the expected number: +5.8 %."""
    if not expected:
        return count(number)
    off = 100 * (number / expected - 1)
    deviation = with_minus(f"{off:+.0f} %" if abs(off) >= 10 else f"{off:+.1f} %")
    return Markup("{} <small>{}</small>").format(count(number), deviation)


def missing_in_splits(manifest: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return labels that some splits lack, with the names of these splits."""
    splits = manifest["splits"]
    missing = []
    for label in manifest["labels"]:
        without = [name for name, split in splits.items() if not split["label_counts"][label]]
        if 0 < len(without) < len(splits):
            missing.append((label, without))
    return missing


def split_table(manifest: dict[str, Any], totals: Totals) -> Table:
    """Return the content of each split."""
    shards = {name: manifest["splits"][name]["shards"] for name in totals.splits.index}
    splits = totals.splits.assign(
        shards=[len(own) for own in shards.values()],
        size=[sum(shard["bytes"] for shard in own) for own in shards.values()],
    )
    rows = [[name, *_cells(numbers)] for name, numbers in splits.iterrows()]
    sums = [["all", *_cells(splits.sum())]] if len(rows) > 1 else ()
    return Table("Splits", _columns("split", *splits.columns), rows, sums)


def _cells(numbers: Any) -> list[str]:
    *counts, size = map(int, numbers)
    return [*map(count, counts), decimal(size)]


def shard_table(manifest: dict[str, Any]) -> Table:
    """Return the deviation of shards from their split's label shares, one row per split."""
    labels = manifest["labels"]
    rows = []
    for name, split in manifest["splits"].items():
        shards = [shard for shard in split["shards"] if shard["examples"]]
        sizes = sorted({shard["examples"] for shard in shards})
        some = " to ".join(map(count, (sizes[:1] + sizes[-1:]) if len(sizes) > 1 else sizes))
        rows.append([name, count(len(split["shards"])), some, *_worst(split, shards, labels)])
    return Table(
        "Shards against their split",
        _columns(
            "split", "shards", "slices per shard", "off by", "most off", "expected", text=(4, 5)
        ),
        rows,
        note="Off by: slices more or fewer than the split's share, for the shard and label that "
        "differ most. Below 1 is as even as whole slices can be.",
    )


def _worst(split: dict[str, Any], shards: list[Any], labels: list[str]) -> list[str]:
    if len(shards) < 2:
        return ["", "the only shard" if shards else "no slices", ""]
    counts = np.array([[shard["label_counts"][label] for label in labels] for shard in shards])
    shares = np.array([split["label_counts"][label] for label in labels]) / split["examples"]
    expected = np.array([shard["examples"] for shard in shards])[:, None] * shares
    off = counts - expected
    shard, label = np.unravel_index(np.abs(off).argmax(), off.shape)
    return [
        f"{abs(off[shard, label]):.1f}",
        f"{labels[label]} in shard {int(shard)}: {counts[shard, label]}",
        f"{expected[shard, label]:.1f}",
    ]
