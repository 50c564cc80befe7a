"""The files that describe a shard directory, against the manifest and each other."""

import hashlib
import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipeline.errors import Reason
from beam_pipeline.layout import DATASET, DATASET_INFO, FEATURES, REJECTS
from beam_pipeline.storage import Folder
from beam_pipeline.verify.claims import Claims
from beam_pipeline.verify.findings import Check, Finding, Findings, printable

_REASONS = frozenset(reason.value for reason in Reason)
_REJECT_KEYS = {"source", "image_id", "reason", "detail"}

# The features of TensorFlow Datasets that the examples' features are, by class and dtype.
_TEXT_FEATURES = ("image_id", "patient_id", "study_id", "series_id")


def read_described(folder: Folder, name: str, check: Check, findings: Findings) -> bytes | None:
    """A describing file's bytes; a finding and None if it cannot be read."""
    findings.checked[check] += 1
    try:
        return folder.read(name)
    except FileNotFoundError:
        findings.add(Finding(check, "missing", name))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        findings.add(Finding(check, f"cannot be read: {reason}", name))
    return None


def check_recorded_file(
    name: str, data: bytes, check: Check, claims: Claims, findings: Findings
) -> None:
    """A describing file's SHA-256, where the manifest records it."""
    stated = claims.files.get(name)
    if stated is None:
        return
    findings.checked[check] += 1
    sha256 = hashlib.sha256(data).hexdigest()
    if stated != sha256:
        findings.add(Finding(check, f"SHA-256 is {sha256}, not {printable(stated)}", name))


def compare(
    check: Check, file: str, what: str, found: Any, expected: Any, findings: Findings
) -> None:
    """A finding unless what is expected is unknown or found."""
    findings.checked[check] += 1
    if expected is not None and found != expected:
        message = f"{what}: {printable(found)}, not {printable(expected)}"
        findings.add(Finding(check, message, file))


def check_rejects(
    folder: Folder, claims: Claims, index: pa.Table | None, findings: Findings
) -> None:
    """rejects.jsonl against the manifest's counts and the index."""
    data = read_described(folder, REJECTS, Check.REJECTS, findings)
    if data is None:
        return
    check_recorded_file(REJECTS, data, Check.REJECTS, claims, findings)
    reasons: Counter[str] = Counter()
    sources: dict[str, int] = {}
    lines = data.splitlines()
    for number, line in enumerate(lines):
        findings.checked[Check.REJECTS] += 1
        wrong, reject = _read_reject(line)
        if not wrong and sources.setdefault(reject["source"], number) != number:
            wrong = f"the same source as line {sources[reject['source']]}"
        if wrong:
            findings.add(Finding(Check.REJECTS, wrong, REJECTS, record=number))
        reasons[reject.get("reason", "")] += 1
    if index is not None:
        _check_not_written(sources, index, findings)
    compare(Check.REJECTS, REJECTS, "lines", len(lines), claims.counts.get("rejected"), findings)
    stated = claims.tables.get("rejected_by_reason")
    compare(Check.REJECTS, REJECTS, "reasons", dict(reasons), stated, findings)


def _check_not_written(sources: dict[str, int], index: pa.Table, findings: Findings) -> None:
    # A file name that is no UTF-8 cannot be in the index.
    texts = [source for source in sources if source == source.encode(errors="ignore").decode()]
    rejected = pc.is_in(index["source"], value_set=pa.array(texts, pa.string()))
    for row in index.select(["source", "image_id"]).filter(rejected).to_pylist():
        number, image_id = sources[row["source"]], row["image_id"]
        message = "its source is in the index too"
        findings.add(Finding(Check.REJECTS, message, REJECTS, number, image_id=image_id))


def _read_reject(line: bytes) -> tuple[str, dict[str, str]]:
    """What is wrong with a line, and its values."""
    try:
        reject = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON", {}
    if not isinstance(reject, dict) or not reject.keys() >= _REJECT_KEYS:
        return f"not an object of {', '.join(sorted(_REJECT_KEYS))}", {}
    if not all(isinstance(reject[key], str) for key in _REJECT_KEYS):
        return "a value is no text", {}
    if reject["reason"] not in _REASONS:
        return f"unknown reason {printable(reject['reason'])}", reject
    return "", reject


def check_metadata(folder: Folder, claims: Claims, findings: Findings) -> None:
    """features.json and dataset_info.json against the manifest."""
    features = _read_json(folder, FEATURES, claims, findings)
    if features is not None:
        _check_features(features, claims, findings)
    info = _read_json(folder, DATASET_INFO, claims, findings)
    if info is not None:
        _check_dataset(info, claims, findings)


def _read_json(folder: Folder, name: str, claims: Claims, findings: Findings) -> Any:
    data = read_described(folder, name, Check.METADATA, findings)
    if data is None:
        return None
    check_recorded_file(name, data, Check.METADATA, claims, findings)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        findings.add(Finding(Check.METADATA, f"not JSON: {printable(error)}", name))
        return None
    return value if value is not None else {}


def _check_features(features: Any, claims: Claims, findings: Findings) -> None:
    """Every feature's class, dtype and shape, as TensorFlow Datasets reads them."""
    found = _at(features, "featuresDict", "features")
    found = found if isinstance(found, dict) else {}
    wanted = _wanted_features(claims)
    names = sorted(found.keys() - wanted.keys())
    compare(Check.METADATA, FEATURES, "further features", names, [], findings)
    kind = _class_name(features)
    compare(Check.METADATA, FEATURES, "class", kind, "features_dict.FeaturesDict", findings)
    for name, (kind, place, expected) in wanted.items():
        feature = found.get(name)
        compare(Check.METADATA, FEATURES, f"{name}: class", _class_name(feature), kind, findings)
        described = _at(feature, place)
        described = described if isinstance(described, dict) else {}
        stated = {key: described.get(key) for key in expected}
        compare(Check.METADATA, FEATURES, name, stated, expected, findings)


def _wanted_features(claims: Claims) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Of every feature the class, the key of its description, and what that has to hold."""
    image: dict[str, Any] = {"encodingFormat": "png"}
    if claims.image_shape is not None:
        image["shape"] = _dimensions(claims.image_shape)
    if claims.image_dtype is not None:
        image["dtype"] = claims.image_dtype
    label: dict[str, Any] = {"dtype": "int64"}
    if claims.labels is not None:
        label["shape"] = _dimensions((len(claims.labels),))
    texts: dict[str, tuple[str, str, dict[str, Any]]] = {
        name: ("text_feature.Text", "text", {}) for name in _TEXT_FEATURES
    }
    return texts | {
        "image": ("image_feature.Image", "image", image),
        "label": ("tensor_feature.Tensor", "tensor", label),
        "position_z": ("scalar.Scalar", "tensor", {"dtype": "float32", "shape": {}}),
        "pixel_spacing": (
            "tensor_feature.Tensor",
            "tensor",
            {"dtype": "float32", "shape": _dimensions((2,))},
        ),
    }


def _dimensions(shape: tuple[int, ...]) -> dict[str, list[str]]:
    return {"dimensions": [str(size) for size in shape]}


def _class_name(feature: Any) -> str:
    """Module and class of a feature, without the package that they are in."""
    name = _at(feature, "pythonClassName")
    return ".".join(name.split(".")[-2:]) if isinstance(name, str) else ""


def _check_dataset(info: Any, claims: Claims, findings: Findings) -> None:
    """Splits, shard lengths and sizes."""
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    wanted = {
        name: {
            "filepathTemplate": template,
            "shardLengths": [str(shard.examples) for shard in split.shards],
            "numBytes": str(sum(shard.bytes or 0 for shard in split.shards)),
        }
        for name, split in claims.splits.items()
    }
    splits = _at(info, "splits")
    listed = (
        [split for split in splits if isinstance(split, dict)] if isinstance(splits, list) else []
    )
    names = [split.get("name") for split in listed]
    compare(Check.METADATA, DATASET_INFO, "splits", names, list(wanted), findings)
    for split in listed:
        expected = wanted.get(str(split.get("name")), {})
        for key, value in expected.items():
            what = f"{printable(split.get('name'))}: {key}"
            compare(Check.METADATA, DATASET_INFO, what, split.get(key), value, findings)
    for key, value in {"name": DATASET, "fileFormat": "tfrecord"}.items():
        compare(Check.METADATA, DATASET_INFO, key, _at(info, key), value, findings)


def _at(value: Any, *keys: str) -> Any:
    """The value at a path through objects, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
