"""Manifests whose values do not fit each other: what is refused, and by which words exactly."""

import copy
import json
from typing import Any

import pytest

from headct.errors import UsageError
from headct.manifest import parse_manifest

MANIFEST: dict[str, Any] = {
    "labels": ["a", "b"],
    "splits": {
        "fold0": {
            "examples": 5,
            "label_counts": {"a": 4, "b": 0},
            "shards": [
                {"file": "x", "examples": 3, "label_counts": {"a": 3, "b": 0}},
                {"file": "y", "examples": 2, "label_counts": {"a": 1, "b": 0}},
            ],
        },
        "fold1": {"examples": 0, "label_counts": {}, "shards": []},
    },
}


def fold0_with(**changes: Any) -> dict[str, Any]:
    """A manifest whose first split has other values; x__key is of its shard x."""
    manifest = copy.deepcopy(MANIFEST)
    fold0 = manifest["splits"]["fold0"]
    for name, value in changes.items():
        shard, _, key = name.rpartition("__")
        holder = {"": fold0, "x": fold0["shards"][0], "y": fold0["shards"][1]}[shard]
        holder[key] = value
    return manifest


def check(manifest: dict[str, Any]) -> None:
    """Checks a manifest whose further values are all right."""
    whole = copy.deepcopy(manifest) | {"schema_version": 1, "windows": []}
    whole["image"] = {"height": 8, "width": 8, "channels": 3}
    for split in whole["splits"].values():
        split["patients"] = 1
        for shard in split["shards"]:
            shard |= {"bytes": 100, "sha256": "0" * 64}
    parse_manifest(json.dumps(whole).encode(), "m")


# As many positives as examples; labels that are not counted; none counted by some shard.
GOOD: list[dict[str, Any]] = [
    {},
    {"label_counts": {"a": 4}},
    {"x__label_counts": {"a": 3}, "y__label_counts": {"a": 1}},
    {"label_counts": {}},
    {"label_counts": None},
    {"x__label_counts": {}},
    {"y__label_counts": None, "label_counts": {"a": 5}},
]


@pytest.mark.parametrize("changes", GOOD)
def test_what_fits(changes: dict[str, Any]) -> None:
    check(fold0_with(**changes))


SHARD_X = "m: splits.fold0.shards[0]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": 6}, "m: splits.fold0.examples: 6: must be 5, as its shards have"),
        ({"x__examples": 4}, "m: splits.fold0.examples: 5: must be 6, as its shards have"),
        (
            {"label_counts": {"c": 0}},
            'm: splits.fold0.label_counts: "c": must be one of the labels',
        ),
        (
            {"x__label_counts": {"a": 4}},
            f"{SHARD_X}.label_counts.a: 4: must be at most 3, the examples",
        ),
        (
            {"label_counts": {"a": 6}},
            "m: splits.fold0.label_counts.a: 6: must be at most 5, the examples",
        ),
        (
            {"label_counts": {"a": 3, "b": 0}},
            "m: splits.fold0.label_counts.a: 3: must be 4, as its shards have",
        ),
        # A label that one side alone counts.
        (
            {"label_counts": {"b": 0}},
            "m: splits.fold0.label_counts.a: 0: must be 4, as its shards have",
        ),
        (
            {"label_counts": {"a": 4, "b": 1}, "x__label_counts": {"a": 3}},
            "m: splits.fold0.label_counts.b: 1: must be 0, as its shards have",
        ),
        ({"x__file": "y"}, 'm: splits.fold0.shards[1].file: "y": must be a name of its own'),
        (
            {"x__file": "manifest.json"},
            f'{SHARD_X}.file: "manifest.json": must be a name of its own',
        ),
        (
            {"x__file": "index.parquet"},
            f'{SHARD_X}.file: "index.parquet": must be a name of its own',
        ),
    ],
)
def test_what_does_not(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        check(fold0_with(**changes))
    assert str(raised.value) == message


def test_labels_may_be_missing_where_no_split_has_any() -> None:
    shards = [{"file": "x", "examples": 3, "label_counts": {}}]
    entry = {"examples": 3, "label_counts": {}, "shards": shards}
    check({"labels": [], "splits": {"test": entry}})
    with pytest.raises(UsageError) as raised:
        check({"labels": [], "splits": {"fold0": entry}})
    assert str(raised.value) == "m: labels: a list of 0: must name the labels of fold0"
