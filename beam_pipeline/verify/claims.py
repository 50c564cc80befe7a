"""What manifest.json claims of the shards, as far as it can be read, and its own arithmetic.

Nothing here trusts the file: what is missing or of another type becomes a finding and then None,
and the checks that would need it are left out.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from beam_pipeline.layout import MANIFEST, SCHEMA_VERSION, ShardFile
from beam_pipeline.verify.findings import Check, Finding, Findings, printable
from beam_pipeline.writing.manifest import manifest_digest

_HEX = frozenset("0123456789abcdef")
_NOT_IN_NAMES = frozenset("/\\\0")
_COUNTS = ("files_seen", "written", "rejected", "resized", "labels_without_file")
_TABLES = ("rejected_by_reason", "repaired")


@dataclass(frozen=True)
class ShardClaim:
    """What the manifest says of one shard file; None where it cannot be read.

    Attributes:
        split: it belongs to.
        file: its name.
        examples: how many it holds.
        bytes: its size.
        sha256: of its bytes, in hexadecimal.
        label_counts: how many of its examples have each label.
    """

    split: str
    file: str
    examples: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    label_counts: dict[str, int] | None = None


@dataclass(frozen=True)
class SplitClaim:
    """What the manifest says of one split; None where it cannot be read.

    Attributes:
        examples: how many it holds.
        patients: of how many patients.
        label_counts: how many of its examples have each label.
        shards: its files.
    """

    examples: int | None
    patients: int | None
    label_counts: dict[str, int] | None
    shards: tuple[ShardClaim, ...]


@dataclass(frozen=True)
class Claims:
    """What the manifest says; None or empty where it cannot be read.

    Attributes:
        labels: names of the classes.
        image_shape: height, width, channels.
        image_dtype: "uint8" or "uint16".
        options: that the shards were written with, as JSON values.
        windows: as JSON values.
        counts: whole numbers by name.
        tables: counts by reason (rejected_by_reason) and by kind (repaired).
        splits: by name.
        files: SHA-256 of the files that describe the shards, by name, where recorded.
    """

    labels: tuple[str, ...] | None = None
    image_shape: tuple[int, int, int] | None = None
    image_dtype: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    windows: list[Any] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    tables: dict[str, dict[str, int]] = field(default_factory=dict)
    splits: dict[str, SplitClaim] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def shards(self) -> tuple[ShardClaim, ...]:
        """Of all splits."""
        return tuple(shard for split in self.splits.values() for shard in split.shards)


@dataclass(frozen=True)
class _Node:
    """A JSON object whose values are taken with their type checked."""

    values: dict[str, Any]
    findings: Findings
    path: str = ""

    def wrong(self, message: str) -> None:
        self.findings.add(Finding(Check.MANIFEST, message, MANIFEST))

    def take(self, key: str, kind: type, wanted: str) -> Any:
        """A value of that type, or None and a finding."""
        self.findings.checked[Check.MANIFEST] += 1
        if key not in self.values:
            self.wrong(f"{self.path}{key} is missing")
            return None
        value = self.values[key]
        if isinstance(value, kind) and not (kind is int and (value is True or value is False)):
            return value
        self.wrong(f"{self.path}{key} is {printable(json.dumps(value))}, not {wanted}")
        return None

    def count(self, key: str) -> int | None:
        number = self.take(key, int, "a whole number")
        if number is None:
            return None
        if number < 0:
            self.wrong(f"{self.path}{key} is {number}, below 0")
            return None
        return int(number)

    def text(self, key: str) -> str | None:
        value = self.take(key, str, "a text")
        return None if value is None else str(value)

    def child(self, key: str) -> "_Node":
        value = self.take(key, dict, "an object")
        return _Node(value or {}, self.findings, f"{self.path}{printable(key)}.")

    def counts(self, key: str) -> dict[str, int] | None:
        """An object of whole numbers."""
        if not isinstance(self.values.get(key), dict):
            self.child(key)
            return None
        node = self.child(key)
        found = {name: node.count(name) for name in node.values}
        return {name: number for name, number in found.items() if number is not None}


def read_claims(data: bytes, findings: Findings) -> Claims:
    """Read a manifest.

    Args:
        data: manifest.json's bytes.
        findings: to add what is wrong with it to.
    """
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        findings.add(Finding(Check.MANIFEST, f"not JSON: {printable(error)}", MANIFEST))
        return Claims()
    if not isinstance(manifest, dict):
        findings.add(Finding(Check.MANIFEST, "not a JSON object", MANIFEST))
        return Claims()
    node = _Node(manifest, findings)
    _check_digest(node)
    version = node.count("schema_version")
    if version not in (None, SCHEMA_VERSION):
        node.wrong(f"schema_version is {version}, this program reads {SCHEMA_VERSION}")
    node.text("created")
    node.child("software")
    claims = _claims(node)
    _check_arithmetic(claims, findings)
    return claims


def _check_digest(node: _Node) -> None:
    """Find an edit anywhere."""
    if node.text("digest") != manifest_digest(node.values):
        node.wrong("its content is not that of its own digest: it was edited or damaged")


def _claims(node: _Node) -> Claims:
    shape, dtype = _image(node.child("image"))
    counts = node.child("counts")
    numbers = {name: counts.count(name) for name in _COUNTS}
    tables = {name: counts.counts(name) for name in _TABLES}
    splits = node.child("splits")
    return Claims(
        labels=_labels(node),
        image_shape=shape,
        image_dtype=dtype,
        options=node.child("options").values,
        windows=node.take("windows", list, "a list"),
        counts={name: number for name, number in numbers.items() if number is not None},
        tables={name: table for name, table in tables.items() if table is not None},
        splits={name: _split(splits, name) for name in splits.values},
        files=_files(node),
    )


def _files(node: _Node) -> dict[str, str]:
    files = node.child("files")
    return {name: files.child(name).text("sha256") or "" for name in files.values}


def _labels(node: _Node) -> tuple[str, ...] | None:
    labels = node.take("labels", list, "a list")
    if labels is None:
        return None
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
        node.wrong("labels are not different texts")
        return None
    return tuple(labels)


def _image(node: _Node) -> tuple[tuple[int, int, int] | None, str | None]:
    height, width, channels = node.count("height"), node.count("width"), node.count("channels")
    dtype = node.text("dtype")
    if dtype not in (None, "uint8", "uint16"):
        node.wrong(f"image.dtype is {printable(dtype)}, not uint8 or uint16")
        dtype = None
    if height is None or width is None or channels is None:
        return None, dtype
    return (height, width, channels), dtype


def _split(splits: _Node, name: str) -> SplitClaim:
    node = splits.child(name)
    shards = node.take("shards", list, "a list") or []
    return SplitClaim(
        examples=node.count("examples"),
        patients=node.count("patients"),
        label_counts=node.counts("label_counts"),
        shards=tuple(
            claim
            for number, shard in enumerate(shards)
            if (claim := _shard(node, name, number, len(shards), shard)) is not None
        ),
    )


def _shard(split: _Node, name: str, number: int, of: int, values: Any) -> ShardClaim | None:
    path = f"{split.path}shards[{number}]"
    if not isinstance(values, dict):
        split.wrong(f"{path} is not an object")
        return None
    node = _Node(values, split.findings, f"{path}.")
    file, sha256 = node.text("file"), node.text("sha256")
    expected = ShardFile(name, number, of).name
    if file is not None and file != expected:
        node.wrong(f"{path}.file is {printable(file)}, not {printable(expected)}")
        if set(file) & _NOT_IN_NAMES or file in ("", ".", ".."):
            file = None
    if sha256 is not None and not (len(sha256) == 64 and set(sha256) <= _HEX):
        node.wrong(f"{path}.sha256 is no SHA-256")
        sha256 = None
    claim = ShardClaim(
        name, file or "", node.count("examples"), node.count("bytes"), sha256,
        node.counts("label_counts"),
    )  # fmt: skip
    return claim if file else None


def _check_arithmetic(claims: Claims, findings: Findings) -> None:
    """The manifest against itself."""
    counts, tables, splits = claims.counts, claims.tables, claims.splits
    sums = _Sums(findings)
    if "written" in counts and "rejected" in counts:
        total = counts["written"] + counts["rejected"]
        sums.check("counts.files_seen", counts.get("files_seen"), "written + rejected", total)
    if "rejected_by_reason" in tables:
        total = sum(tables["rejected_by_reason"].values())
        sums.check("counts.rejected", counts.get("rejected"), "sum of rejected_by_reason", total)
    examples = [split.examples for split in splits.values()]
    sums.check("counts.written", counts.get("written"), "sum of the splits", _sum(examples))
    for name, split in splits.items():
        _check_split(name, split, claims, sums)
    files = Counter(shard.file for shard in claims.shards)
    for file, times in files.items():
        if times > 1:
            sums.wrong(f"{printable(file)} is listed {times} times")
    _check_image(claims, sums)


def _check_split(name: str, split: SplitClaim, claims: Claims, sums: "_Sums") -> None:
    path = f"splits.{printable(name)}"
    total = _sum([shard.examples for shard in split.shards])
    sums.check(f"{path}.examples", split.examples, "sum of its shards", total)
    if claims.labels is None:
        return
    tables = [(path, split.label_counts)]
    tables += [(f"{path} {shard.file}", shard.label_counts) for shard in split.shards]
    for place, table in tables:
        if table is not None and set(table) != set(claims.labels):
            sums.wrong(f"{printable(place)}.label_counts has other labels than the manifest")
    for label in claims.labels:
        parts = [(shard.label_counts or {}).get(label) for shard in split.shards]
        found = (split.label_counts or {}).get(label)
        sums.check(f"{path}.label_counts.{label}", found, "sum of its shards", _sum(parts))


def _check_image(claims: Claims, sums: "_Sums") -> None:
    """Options, windows and image say the same."""
    if claims.image_shape is None:
        return
    height, width, channels = claims.image_shape
    size = claims.options.get("image_size")
    sums.check("image.height", height, "options.image_size", size)
    sums.check("image.width", width, "options.image_size", size)
    recorded = claims.options.get("windows")
    if claims.windows is not None and isinstance(recorded, list) and recorded:
        same = claims.windows == recorded
        sums.check("windows", "as they are", "options.windows", "as they are" if same else "others")
    if claims.image_dtype == "uint16":
        sums.check("image.channels", channels, "one channel of Hounsfield units", 1)
    elif claims.windows is not None:
        sums.check("image.channels", channels, "the number of windows", len(claims.windows))
    if not math.prod(claims.image_shape):
        sums.wrong(f"image is empty: {claims.image_shape}")


def _sum(numbers: list[int | None]) -> int | None:
    """The sum, None if one of them is not known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


@dataclass(frozen=True)
class _Sums:
    """Compares numbers of the manifest, where both are known."""

    findings: Findings

    def wrong(self, message: str) -> None:
        self.findings.add(Finding(Check.MANIFEST, message, MANIFEST))

    def check(self, name: str, stated: object, basis: str, computed: object) -> None:
        if stated is None or computed is None:
            return
        self.findings.checked[Check.MANIFEST] += 1
        if stated != computed:
            self.wrong(f"{printable(name)} is {stated}, but {basis} is {printable(computed)}")
