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


def complete(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with further values, which are all right."""
    whole = copy.deepcopy(manifest) | {"schema_version": 1, "windows": []}
    whole["image"] = {"height": 8, "width": 8, "channels": 3}
    for split in whole["splits"].values():
        split["patients"] = 1
        for shard in split["shards"]:
            shard |= {"bytes": 100, "sha256": "0" * 64}
    return whole


def check(manifest: dict[str, Any]) -> None:
    parse_manifest(json.dumps(complete(manifest)).encode(), "m")


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


def window(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "brain", "center": 40, "width": 80, **changes}]


PIXELS = "a whole number of pixels from 1 to 8192"
NAME = "printable text of 1 to 100 characters"
SPLIT = {"examples": 0, "patients": 0, "shards": []}


@pytest.mark.parametrize(
    ("key", "good", "bad", "must"),
    [
        ("image.height", [1, 8192], [0, 8193, 8.5, "8", True], PIXELS),
        ("image.width", [1, 8192], [0, 8193, 8.5, "8", None], PIXELS),
        ("image.channels", [1, 4], [0, 5, "3", True], "a whole number from 1 to 4"),
        ("image.dtype", ["uint8", "uint16"], ["int16", 8, None], "uint8 or uint16"),
        (
            "image.hu_offset",
            [None, -100000, 100000, 0.5],
            [-100000.5, 100001, "0"],
            "a number of HU from -100000 to 100000, or null",
        ),
        ("splits.fold0.patients", [0, (1 << 53) - 1], [-1, 1 << 53, 1.5, "1"], "a whole number"),
        ("splits.fold0.shards.0.bytes", [0, (1 << 53) - 1], [-1, 1 << 53, "1"], "a whole number"),
        (
            "splits.fold0.shards.0.sha256",
            ["0123456789abcdef" * 4],
            ["0" * 63, "0" * 65, "A" * 64, "g" * 64, 0],
            "64 hexadecimal digits in lower case",
        ),
        (
            "splits.fold0.shards.0.file",
            ["x" * 200, "a.b"],
            ["x" * 201, "", ".x", "../x", "a/b", "a\\b", "c:b", "a\nb", 1],
            "the name of a file in the same folder",
        ),
        (
            "splits",
            [{"s" * 64: SPLIT}, {"a_b-c.0": SPLIT}],
            [{"s" * 65: SPLIT}, {}, []],
            "^m: splits",
        ),
        ("labels.0", ["a" * 100], ["a" * 101, "", "\t", 1], NAME),
        (
            "labels",
            [[*map(str, range(1000))]],
            [[*map(str, range(1001))], ["a", "a"], "ab"],
            "a list of up to 1000 different labels",
        ),
        ("windows", [window() * 100, []], [window() * 101, None], "a list of up to 100 windows"),
        ("windows", [window(name="b" * 100)], [window(name="b" * 101), window(name=1)], NAME),
        (
            "windows",
            [window(center=center) for center in (-100000, 100000, None)],
            [window(center=center) for center in (-100001, 100001, "40")],
            "a number of HU from -100000 to 100000, or null",
        ),
        (
            "windows",
            [window(width=width) for width in (0.5, 1000000, None)],
            [window(width=width) for width in (0, -1, 1000001, "80")],
            "a number of HU above 0, up to 1000000, or null",
        ),
        ("schema_version", [1], [0, 2, "1", None, True, 1.0], "schema_version"),
        (
            "label_level",
            ["image", "series", "study", "patient", None],
            ["slice", "", 1],
            "must be image, series, study, patient or null",
        ),
    ],
)
def test_the_limits_of_a_value(key: str, good: list[Any], bad: list[Any], must: str) -> None:
    shard = {"file": "x", "examples": 5}
    plain = {"labels": ["a"], "splits": {"fold0": {"examples": 5, "shards": [shard]}}}
    for number, value in enumerate([*good, *bad]):
        manifest = complete(plain)
        *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
        holder: Any = manifest
        for part in path:
            holder = holder[part]
        holder[last] = value
        if number < len(good):
            parse_manifest(json.dumps(manifest).encode(), "m")
        else:
            with pytest.raises(UsageError, match=must):
                parse_manifest(json.dumps(manifest).encode(), "m")


def test_null_is_no_offset_and_16_bits_are_hounsfield_units() -> None:
    manifest = complete({"labels": [], "splits": {"test": {"examples": 0, "shards": []}}})
    for written in ({}, {"hu_offset": None}):
        manifest["image"] |= written
        parsed = parse_manifest(json.dumps(manifest).encode(), "m")
        assert (parsed.image.dtype, parsed.image.hu_offset) == ("uint8", 0)
        assert not parsed.image.is_hounsfield
    manifest["image"] |= {"dtype": "uint16", "hu_offset": -1024}
    parsed = parse_manifest(json.dumps(manifest).encode(), "m")
    assert parsed.image.is_hounsfield
    assert parsed.image.hu_offset == -1024


UID = "sop_instance_uid"
HASHED = {"identifiers": "hash", "identifier_key_check": "1f"}


@pytest.mark.parametrize(
    ("options", "image_id", "image_ids", "patient_ids"),
    [
        ({"image_id": "auto", "identifiers": "keep"}, UID, UID, "keep"),
        ({"image_id": "auto"} | HASHED, UID, "hash 1f", "hash 1f"),
        ({"image_id": "auto", "identifiers": "hash"}, UID, "ordinal", "ordinal"),  # of any key
        ({"image_id": "auto", "identifiers": "ordinal"}, UID, "ordinal", "ordinal"),
        ({"image_id": "auto", "identifiers": 5}, UID, "", ""),
        ({"image_id": "auto"} | HASHED, "file_name", "file_name", "hash 1f"),
        ({"image_id": UID} | HASHED, UID, UID, "hash 1f"),
        ({"image_id": "file_name"} | HASHED, UID, "file_name", "hash 1f"),
        ({"image_id": "ordinal"}, UID, "ordinal", ""),
        ({"image_id": 5}, UID, "", ""),
        ({}, None, "", ""),
    ],
)
def test_kinds_of_ids(
    options: dict[str, Any], image_id: str, image_ids: str, patient_ids: str
) -> None:
    manifest = complete(MANIFEST) | {"options": options, "image_id": image_id}
    parsed = parse_manifest(json.dumps(manifest).encode(), "m")
    assert (parsed.image_ids, parsed.patient_ids) == (image_ids, patient_ids)
