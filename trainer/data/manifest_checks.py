"""What a schema cannot say of a manifest: that its values fit each other."""

from __future__ import annotations

from collections import Counter
from typing import Any

from headct.errors import UsageError
from headct.layout import FILES, UNLABELED_SPLIT
from headct.printable import shown
from trainer.json_documents import key_path


def check_consistency(manifest: dict[str, Any], name: str) -> None:
    """Compares the values of a manifest that its schema allows.

    Raises:
        UsageError: two do not fit; the message quotes where.
    """
    known = set(manifest["labels"])
    for split, entry in manifest["splits"].items():
        _check_sum(name, ["splits", split, "examples"], entry["examples"], entry["shards"])
        _check_labels(name, ["splits", split], entry, known)
        for number, shard in enumerate(entry["shards"]):
            _check_labels(name, ["splits", split, "shards", number], shard, known)
        _check_label_sums(name, split, entry)
        if not known and split != UNLABELED_SPLIT and entry["examples"]:
            raise UsageError(f"{name}: labels: a list of 0: must name the labels of {split}")
    _check_names(manifest["splits"], name)


def _check_sum(name: str, path: list[str | int], stated: int, shards: list[dict[str, Any]]) -> None:
    """Compares a split's examples with those of its shards."""
    total = sum(each["examples"] for each in shards)
    if stated != total:
        raise UsageError(f"{name}: {key_path(path)}: {stated}: must be {total}, as its shards have")


def _check_labels(name: str, path: list[str | int], entry: dict[str, Any], known: set[str]) -> None:
    """Looks at `label_counts`: labels that are known, no more positives than examples."""
    for label, positives in (entry.get("label_counts") or {}).items():
        place = key_path([*path, "label_counts", label])
        if label not in known:
            raise UsageError(f"{name}: {place}: must be one of the labels")
        if positives > entry["examples"]:
            raise UsageError(
                f"{name}: {place}: {positives}: must be at most {entry['examples']}, the examples"
            )


def _check_label_sums(name: str, split: str, entry: dict[str, Any]) -> None:
    """Compares a split's positives with those of its shards, where all of them state any."""
    if not entry.get("label_counts") or not all(s.get("label_counts") for s in entry["shards"]):
        return
    totals: Counter[str] = Counter()
    for shard in entry["shards"]:
        totals.update(shard["label_counts"])
    for label in entry["label_counts"].keys() | totals.keys():
        stated = entry["label_counts"].get(label, 0)
        if stated != totals[label]:
            place = key_path(["splits", split, "label_counts", label])
            raise UsageError(
                f"{name}: {place}: {stated}: must be {totals[label]}, as its shards have"
            )


def _check_names(splits: dict[str, Any], name: str) -> None:
    """Looks for a file that is a shard twice, or something else already."""
    seen = {*FILES}
    for split, entry in splits.items():
        for number, shard in enumerate(entry["shards"]):
            if shard["file"] in seen:
                place = key_path(["splits", split, "shards", number, "file"])
                raise UsageError(
                    f"{name}: {place}: {shown(shard['file'])}: must be a name of its own"
                )
            seen.add(shard["file"])
