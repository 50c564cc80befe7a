"""What manifest.json says of a shard directory, and whether it agrees with itself.

Nothing here trusts the file: what its schema does not allow becomes a finding and is left out, and
the checks that would need it are left out too.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from beam_pipeline.verify.findings import Check, Findings, printable, show_json
from beam_pipeline.writing.manifest import manifest_digest
from headct.layout import MANIFEST, ShardFile

_SCHEMA = Draft202012Validator(json.loads(Path(__file__).with_name(MANIFEST).read_bytes()))


@dataclass(frozen=True)
class ShardClaim:
    """What the manifest says of one shard file."""

    split: str
    file: str
    stated: dict[str, Any] = field(default_factory=dict)  # bytes, sha256, examples, label_counts


@dataclass(frozen=True)
class Claims:
    """What the manifest says; None or empty where it cannot be read."""

    values: dict[str, Any] = field(default_factory=dict)  # without what the schema does not allow
    complete: bool = False  # whether nothing had to be left out

    def at(self, *keys: str | int) -> Any:
        """The value at a path through objects and lists, or None."""
        value: Any = self.values
        try:
            for key in keys:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
        return value

    @property
    def image(self) -> dict[str, Any] | None:
        """Height, width, channels and dtype."""
        image = self.at("image") or {}
        return image if image.keys() >= {"height", "width", "channels", "dtype"} else None

    @property
    def shards(self) -> dict[str, ShardClaim]:
        """Of all splits, by file."""
        return {
            shard["file"]: ShardClaim(name, shard["file"], shard)
            for name, split in (self.at("splits") or {}).items()
            for shard in split.get("shards", ())
            if "file" in shard
        }


def read_claims(data: bytes, findings: Findings) -> Claims:
    """Read a manifest and check it by itself: its digest, its schema, its arithmetic."""

    def wrong(message: str) -> None:
        findings.add(Check.MANIFEST, message, MANIFEST)

    findings.checked[Check.MANIFEST] += 1
    try:
        manifest = parse_json(data)
        if not isinstance(manifest, dict):
            raise ValueError("not a JSON object")
        errors = [*_SCHEMA.iter_errors(manifest)]
        digest = manifest_digest(manifest)
    except (ValueError, RecursionError) as error:
        wrong(printable(error))
        return Claims()
    if manifest.get("digest") != digest:
        wrong("its content is not that of its own digest: it was edited or damaged")
    # The deepest go first, while what holds them is still there.
    for each in sorted(errors, key=lambda each: -len(each.absolute_path)):
        wrong(describe_error(each))
        if each.validator != "required":
            _remove(manifest, [*each.absolute_path])
    claims = Claims(manifest, complete=not errors)
    for path, expected, basis in _arithmetic(claims) if claims.complete else ():
        what = printable(".".join(map(str, path)))
        findings.compare(Check.MANIFEST, MANIFEST, what, claims.at(*path), expected, basis)
    return claims


def _remove(manifest: dict[str, Any], path: list[str | int]) -> None:
    """Remove the value at a path; what is in a list goes with the list."""
    if isinstance(path[-1], int):
        path.pop()
    parent: Any = manifest
    for key in path[:-1]:
        parent = parent[key]
    parent.pop(path[-1], None)


def _arithmetic(claims: Claims) -> Iterator[tuple[tuple[str | int, ...], Any, str]]:
    """What the manifest says that follows from the rest of it: the path, the value, and why."""
    counts, splits, windows = claims.at("counts"), claims.at("splits"), claims.at("windows")
    size = claims.at("options", "image_size")
    seen = counts["written"] + counts["rejected"]
    rejected = sum(counts["rejected_by_reason"].values())
    written = sum(split["examples"] for split in splits.values())
    yield ("counts", "files_seen"), seen, "written + rejected"
    yield ("counts", "rejected"), rejected, "sum of rejected_by_reason"
    yield ("counts", "written"), written, "sum of the splits"
    yield ("windows",), claims.at("options", "windows"), "options.windows"
    yield ("image", "height"), size, "options.image_size"
    yield ("image", "width"), size, "options.image_size"
    yield ("image", "channels"), len(windows) or 1, "one a window, or one of Hounsfield units"
    yield ("image", "dtype"), "uint8" if windows else "uint16", "of windows, or Hounsfield units"
    for name, split in splits.items():
        shards = split["shards"]
        examples = sum(shard["examples"] for shard in shards)
        labels = Counter(dict.fromkeys(claims.at("labels"), 0))
        for number, shard in enumerate(shards):
            place = ShardFile(name, number, len(shards)).name
            yield ("splits", name, "shards", number, "file"), place, "its place in the split"
            labels.update(shard["label_counts"])
        yield ("splits", name, "examples"), examples, "sum of its shards"
        yield ("splits", name, "label_counts"), dict(labels), "sum of its shards"


def parse_json(data: bytes) -> Any:
    """Raises ValueError: not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {printable(error)}") from None


def describe_error(error: ValidationError) -> str:
    """Where a value is wrong, and what it has to be: the description in its schema."""
    path = printable(error.json_path.removeprefix("$").removeprefix("."))
    if error.validator == "required":
        wrong = printable(error.message)
    else:
        schema: Any = error.schema
        wrong = f"{show_json(error.instance)}, not {schema['description']}"
    return f"{path}: {wrong}" if path else wrong
