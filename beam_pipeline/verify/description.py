"""The files that describe a shard directory: their bytes, and TensorFlow Datasets' metadata."""

import hashlib

from beam_pipeline.storage import Folder
from beam_pipeline.verify.claims import Claims
from beam_pipeline.verify.findings import Check, Findings
from beam_pipeline.verify.schema import parse_json
from beam_pipeline.writing.manifest import (
    DATASET_INFO,
    FEATURES,
    describe_dataset,
    describe_features,
)


def read_listed(
    folder: Folder, name: str, check: Check, claims: Claims, findings: Findings
) -> bytes | None:
    """The bytes of a file that the manifest lists in `files`, compared with what it says there.

    Returns:
        The bytes, or None if they cannot be read.
    """
    findings.checked[check] += 1
    try:
        data = folder.read(name)
    except FileNotFoundError:
        findings.add(check, "missing", name)
        return None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        findings.add(check, f"cannot be read: {reason}", name)
        return None
    found = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for what, value in found.items():
        findings.compare(check, name, what, value, claims.at("files", name, what))
    return data


def check_metadata(folder: Folder, claims: Claims, findings: Findings) -> None:
    """features.json and dataset_info.json: what follows from the manifest."""
    expected = {FEATURES: None, DATASET_INFO: None}
    if claims.complete:
        expected[FEATURES] = describe_features(claims.at("labels"), claims.at("image"))
        expected[DATASET_INFO] = describe_dataset(claims.splits)
    for name, content in expected.items():
        data = read_listed(folder, name, Check.METADATA, claims, findings)
        if data is None:
            continue
        try:
            findings.compare(Check.METADATA, name, "content", parse_json(data), content)
        except ValueError as error:
            findings.add(Check.METADATA, str(error), name)
