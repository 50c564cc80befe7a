"""The files that describe a shard directory, against the manifest and the index."""

import hashlib
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
from jsonschema import Draft202012Validator

from beam_pipeline.directory.rejects import Reject
from beam_pipeline.verify.claims import Claims, describe_error, parse_json
from beam_pipeline.verify.findings import Check, Findings
from beam_pipeline.writing.tfds import describe_dataset, describe_features
from headct.layout import DATASET_INFO, FEATURES, REJECT_COLUMNS, REJECTS
from headct.reasons import Reason
from headct.stores import Folder

_TEXT = {"description": "a text", "type": "string"}
_REASON = {"reason": {"description": "a known reason", "enum": [*Reason]}}
_REJECT = Draft202012Validator(
    {
        "description": "an object",
        "type": "object",
        "required": [*REJECT_COLUMNS],
        "properties": dict.fromkeys(REJECT_COLUMNS, _TEXT) | _REASON,
    }
)


def read_listed(
    folder: Folder, name: str, check: Check, claims: Claims, findings: Findings
) -> bytes | None:
    """The bytes of a file, or None if it cannot be read; compared with the manifest's `files`."""
    findings.checked[check] += 1
    try:
        data = folder.read(name)
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        reason = error.strerror or type(error).__name__
        findings.add(check, "missing" if gone else f"cannot be read: {reason}", name)
        return None
    for what, found in ("bytes", len(data)), ("sha256", hashlib.sha256(data).hexdigest()):
        findings.compare(check, name, what, found, claims.at("files", name, what))
    return data


def check_metadata(folder: Folder, claims: Claims, findings: Findings) -> None:
    """features.json and dataset_info.json: what follows from the manifest."""
    features = info = None
    if claims.complete:
        features = describe_features(len(claims.at("labels")), claims.at("image"))
        info = describe_dataset(claims.at("splits"))
    for name, expected in (FEATURES, features), (DATASET_INFO, info):
        data = read_listed(folder, name, Check.METADATA, claims, findings)
        if data is None:
            continue
        try:
            findings.compare(Check.METADATA, name, "content", parse_json(data), expected)
        except ValueError as error:
            findings.add(Check.METADATA, str(error), name)


def check_rejects(
    folder: Folder, claims: Claims, index: pa.Table | None, findings: Findings
) -> None:
    """rejects.jsonl: every line, reasons as counted, each source once and not in the index."""
    data = read_listed(folder, REJECTS, Check.REJECTS, claims, findings)
    if data is None:
        return
    reasons: Counter[str] = Counter()
    lines: dict[str, int] = {}  # by source
    for number, line in enumerate(data.splitlines()):
        findings.checked[Check.REJECTS] += 1
        try:
            reject = _read_reject(line)
            reasons[reject["reason"]] += 1
            first = lines.setdefault(reject["source"], number)
            if first != number:
                raise ValueError(f"the same source as line {first}")
        except ValueError as error:
            findings.add(Check.REJECTS, str(error), REJECTS, number)
    stated = claims.at("counts", "rejected_by_reason")
    findings.compare(Check.REJECTS, REJECTS, "reasons", dict(reasons), stated)
    if index is not None:
        # A file name that is no UTF-8 cannot be in the index.
        texts = [source for source in lines if source == source.encode(errors="ignore").decode()]
        written = pc.is_in(index["source"], value_set=pa.array(texts, pa.string()))
        for source in index["source"].filter(written).to_pylist():
            findings.add(Check.REJECTS, "its source is in the index too", REJECTS, lines[source])


def _read_reject(line: bytes) -> Reject:
    """Raises ValueError: what is wrong with the line."""
    reject: Reject = parse_json(line)
    for error in _REJECT.iter_errors(reject):
        raise ValueError(describe_error(error))
    return reject
