"""rejects.jsonl: its lines, against the manifest's counts and the index."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipeline.directory.rejects import REJECTS, Reject
from beam_pipeline.storage import Folder
from beam_pipeline.verify.claims import Claims
from beam_pipeline.verify.description import read_listed
from beam_pipeline.verify.findings import Check, Findings
from beam_pipeline.verify.schema import REJECT_SCHEMA, describe_error, parse_json


def check_rejects(
    folder: Folder, claims: Claims, index: pa.Table | None, findings: Findings
) -> None:
    """Every line by itself, each source once and not in the index, reasons as counted."""
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
            findings.add(Check.REJECTS, str(error), REJECTS, record=number)
    stated = claims.at("counts", "rejected_by_reason")
    findings.compare(Check.REJECTS, REJECTS, "reasons", dict(reasons), stated)
    if index is not None:
        _check_not_written(lines, index, findings)


def _read_reject(line: bytes) -> Reject:
    """Raises ValueError: what is wrong with the line."""
    reject: Reject = parse_json(line)
    for error in REJECT_SCHEMA.iter_errors(reject):
        raise ValueError(describe_error(error))
    return reject


def _check_not_written(lines: dict[str, int], index: pa.Table, findings: Findings) -> None:
    # A file name that is no UTF-8 cannot be in the index.
    texts = [source for source in lines if source == source.encode(errors="ignore").decode()]
    rejected = pc.is_in(index["source"], value_set=pa.array(texts, pa.string()))
    for row in index.select(["source", "image_id"]).filter(rejected).to_pylist():
        number, image_id = lines[row["source"]], row["image_id"]
        message = "its source is in the index too"
        findings.add(Check.REJECTS, message, REJECTS, number, image_id=image_id)
