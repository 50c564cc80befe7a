"""The tables of a card: rejects, labels, folds and shards."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from beam_pipeline.card.choice import NO_LABEL
from beam_pipeline.card.content import Content
from beam_pipeline.card.numbers import count, deviation, percent, size
from beam_pipeline.directory.rejects import Reject
from headct.reasons import advice_for

_NUMBER, _TEXT = "number", "text"
_NAMED_COLUMNS = 8  # more labels have numbers above their columns


@dataclass(frozen=True)
class Table:
    """A table, as the page's macro takes it.

    Attributes:
        caption: of it.
        columns: headings, each with "text" or "number".
        rows: of cells; the first is the row's heading.
        totals: rows below.
        note: a sentence below.
    """

    caption: str
    columns: list[tuple[str, str]]
    rows: list[list[Any]]
    totals: list[list[Any]] | tuple[()] = ()
    note: str = ""


def _columns(*headings: str, text: tuple[int, ...] = ()) -> list[tuple[str, str]]:
    """Columns of numbers, but for the first and those named."""
    return [
        (heading, _TEXT if place in (0, *text) else _NUMBER)
        for place, heading in enumerate(headings)
    ]


def _with_small(value: str, small: str) -> Markup | str:
    return Markup("{} <small>{}</small>").format(value, small) if small else value


def reject_table(counts: Mapping[str, Any], rejects: Sequence[Reject]) -> Table:
    """Why files were not used, an example of each reason, and what to do.

    Args:
        counts: the manifest's: `files_seen` and `rejected_by_reason`.
        rejects: one row per file that was not used.
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


def label_table(content: Content) -> Table:
    """How many slices, studies and patients have each label."""
    totals = content.totals
    patients = sum(split.patients for split in totals.splits)
    rows: list[list[Any]] = []
    names = [*content.manifest["labels"], NO_LABEL]
    numbers = [*map(len, totals.positives), len(totals.negatives)]
    studies = [*map(count, totals.studies_with), ""]
    having = [f"{count(n)} ({percent(n / patients)})" for n in totals.patients_with] + [""]
    for place, name in enumerate(names):
        share = numbers[place] / totals.labeled
        rows.append([name, count(numbers[place]), _bar(share), studies[place], having[place]])
    return Table(
        "Slices with each label",
        _columns("label", "slices", "share of slices", "studies", "patients", text=(2,)),
        rows,
        note="A slice may have several labels.",
    )


def _bar(share: float) -> Markup:
    """A share with a bar, as the page's macro draws it."""
    return Markup(
        '<span class="share"><span class="bar" aria-hidden="true">'
        '<span style="width: {}%"></span></span> {}</span>'
    ).format(f"{100 * share:.1f}", percent(share))


def co_occurrence_table(content: Content) -> Table:
    """How many slices have two labels at once."""
    labels, both = content.manifest["labels"], content.totals.co_occurrence
    numbered = len(labels) > _NAMED_COLUMNS
    rows: list[list[Any]] = []
    for place, label in enumerate(labels):
        own = int(both[place, place])
        cells = [_pair(int(n), own, other == place) for other, n in enumerate(both[place])]
        rows.append([f"{place + 1} {label}" if numbered else label, *cells])
    names = [str(place + 1) for place in range(len(labels))] if numbered else labels
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


def fold_table(content: Content) -> Table:
    """Each label's slices by split, and by how much its share there is off the share of all."""
    splits, labels = content.manifest["splits"], content.manifest["labels"]
    examples = sum(split["examples"] for split in splits.values())
    rows: list[list[Any]] = []
    for label in labels:
        total = sum(split["label_counts"][label] for split in splits.values())
        cells = [
            _with_small(
                count(split["label_counts"][label]),
                deviation(split["label_counts"][label], total * split["examples"] / examples),
            )
            for split in splits.values()
        ]
        rows.append([label, *cells, count(total)])
    return Table(
        "Slices with each label, by split",
        _columns("label", *splits, "all"),
        rows,
        note="The percentage is the deviation of the label's share in the split from its share in "
        "all slices. Patients are dealt whole, so a rare label cannot be quite even.",
    )


def missing_in_splits(content: Content) -> list[tuple[str, list[str]]]:
    """The labels that some slices have, and the splits where none has them."""
    splits = content.manifest["splits"]
    missing = []
    for label in content.manifest["labels"]:
        without = [name for name, split in splits.items() if not split["label_counts"][label]]
        if 0 < len(without) < len(splits):
            missing.append((label, without))
    return missing


def split_table(content: Content) -> Table:
    """What each split holds."""
    splits = content.manifest["splits"]
    rows, sums = [], Counter[str]()
    for split in content.totals.splits:
        shards = splits[split.name]["shards"]
        numbers = {
            "patients": split.patients,
            "studies": split.studies,
            "series": split.series,
            "slices": split.slices,
            "shards": len(shards),
            "bytes": sum(shard["bytes"] for shard in shards),
        }
        sums.update(numbers)
        rows.append([split.name, *_cells(numbers)])
    totals = [["all", *_cells(sums)]] if len(rows) > 1 else ()
    headings = ("split", "patients", "studies", "series", "slices", "shards", "size")
    return Table("Splits", _columns(*headings), rows, totals)


def _cells(numbers: dict[str, int]) -> list[str]:
    return [size(number) if name == "bytes" else count(number) for name, number in numbers.items()]


def shard_table(content: Content) -> Table:
    """How far shards are off the split that each should mirror."""
    labels = content.manifest["labels"]
    rows = []
    for name, split in content.manifest["splits"].items():
        shards = [shard for shard in split["shards"] if shard["examples"]]
        sizes = sorted({shard["examples"] for shard in shards})
        some = " to ".join(map(count, (sizes[:1] + sizes[-1:]) if len(sizes) > 1 else sizes))
        rows.append([name, count(len(split["shards"])), some, *_worst(split, shards, labels)])
    return Table(
        "Shards against their split",
        _columns(
            "split", "shards", "slices a shard", "off by", "most off", "expected", text=(4, 5)
        ),
        rows,
        note="Off by: slices of one label more or fewer than the split's share, in the shard and "
        "label where it is most. Below 1 is as even as whole slices can be.",
    )


def _worst(split: dict[str, Any], shards: list[Any], labels: list[str]) -> list[str]:
    if len(shards) < 2:
        return ["", "the only shard" if shards else "no slices", ""]
    found = np.array([[shard["label_counts"][label] for label in labels] for shard in shards])
    shares = np.array([split["label_counts"][label] for label in labels]) / split["examples"]
    expected = np.array([shard["examples"] for shard in shards])[:, None] * shares
    off = found - expected
    shard, label = np.unravel_index(np.abs(off).argmax(), off.shape)
    return [
        f"{abs(off[shard, label]):.1f}",
        f"{labels[label]} in shard {int(shard)}: {found[shard, label]}",
        f"{expected[shard, label]:.1f}",
    ]
