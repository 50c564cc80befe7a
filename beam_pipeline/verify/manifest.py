"""manifest.json by itself: its schema, its digest and its arithmetic.

Nothing here trusts the file: what its schema does not allow becomes a finding and is left out, and
the checks that would need it are left out too.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from beam_pipeline.layout import MANIFEST, ShardFile
from beam_pipeline.verify.claims import Claims
from beam_pipeline.verify.findings import Check, Findings, printable
from beam_pipeline.verify.schema import MANIFEST_SCHEMA, describe_error, parse_json
from beam_pipeline.writing.manifest import manifest_digest


def read_claims(data: bytes, findings: Findings) -> Claims:
    """Read a manifest.

    Args:
        data: manifest.json's bytes.
        findings: to add what is wrong with it to.
    """

    def wrong(message: str) -> None:
        findings.add(Check.MANIFEST, message, MANIFEST)

    findings.checked[Check.MANIFEST] += 1
    try:
        manifest = parse_json(data)
        if not isinstance(manifest, dict):
            raise ValueError("not a JSON object")
        errors = [*MANIFEST_SCHEMA.iter_errors(manifest)]
        digest = manifest_digest(manifest)
    except (ValueError, RecursionError) as error:
        wrong(printable(error))
        return Claims()
    if manifest.get("digest") != digest:
        wrong("its content is not that of its own digest: it was edited or damaged")
    for error in errors:
        wrong(describe_error(error))
    # The deepest go first, while what holds them is still there.
    for error in sorted(errors, key=lambda error: -len(error.absolute_path)):
        if error.validator != "required":
            _remove(manifest, [*error.absolute_path])
    claims = Claims(manifest, complete=not errors)
    if claims.complete:
        for path, expected, basis in _arithmetic(claims):
            what = printable(".".join(map(str, path)))
            stated = claims.at(*path)
            findings.compare(Check.MANIFEST, MANIFEST, what, stated, expected, basis)
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
    counts, splits, windows = claims.at("counts"), claims.splits, claims.at("windows")
    options = claims.options
    seen = counts["written"] + counts["rejected"]
    yield ("counts", "files_seen"), seen, "written + rejected"
    rejected = sum(counts["rejected_by_reason"].values())
    yield ("counts", "rejected"), rejected, "sum of rejected_by_reason"
    written = sum(split["examples"] for split in splits.values())
    yield ("counts", "written"), written, "sum of the splits"
    yield ("windows",), options.get("windows"), "options.windows"
    yield ("image", "height"), options.get("image_size"), "options.image_size"
    yield ("image", "width"), options.get("image_size"), "options.image_size"
    yield ("image", "channels"), len(windows) or 1, "one a window, or one of Hounsfield units"
    yield ("image", "dtype"), "uint8" if windows else "uint16", "of windows, or Hounsfield units"
    for name, split in splits.items():
        shards = split["shards"]
        examples = sum(shard["examples"] for shard in shards)
        yield ("splits", name, "examples"), examples, "sum of its shards"
        total = Counter(dict.fromkeys(claims.at("labels"), 0))
        for number, shard in enumerate(shards):
            total.update(shard["label_counts"])
            place = ShardFile(name, number, len(shards)).name
            yield ("splits", name, "shards", number, "file"), place, "its place in the split"
        yield ("splits", name, "label_counts"), dict(total), "sum of its shards"
