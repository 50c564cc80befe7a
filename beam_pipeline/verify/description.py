"""Checks of index, rejects and metadata of a shard directory against the manifest."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jsonschema import Draft202012Validator, ValidationError
from numpy.typing import NDArray

from beam_pipeline.dicom.hounsfield import Repair
from beam_pipeline.shards.formats import describe_dataset, describe_features, index_schema
from beam_pipeline.shards.rejects import Reject
from beam_pipeline.verify.findings import Check, Findings, printable, show_json
from headct.layout import DATASET_INFO, FEATURES, INDEX, REJECT_COLUMNS, REJECTS
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


@dataclass(frozen=True)
class IndexRows:
    """Rows of one shard; copied from the index when used or sent to another process."""

    index: pa.Table
    positions: NDArray[np.int64]  # [n], row numbers in the index

    def __len__(self) -> int:
        return len(self.positions)

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexRows, (self._copy(), np.arange(len(self.positions)))

    def by_record(self) -> dict[int, dict[str, Any]]:
        """Return the rows by record number; among rows with equal numbers, the last."""
        return {row["record"]: row for row in self._copy().to_pylist()}

    def _copy(self) -> pa.Table:
        return self.index.take(pa.array(self.positions))


def check_index(folder: Folder, manifest: dict[str, Any], findings: Findings) -> pa.Table | None:
    """Check index.parquet against the manifest, without reading shards.

    Returns:
        The rows with a value in every column, or None if the index is unreadable or has other
        columns.
    """
    data = _read_listed(folder, INDEX, Check.INDEX, manifest, findings)
    if data is None:
        return None
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"cannot be read: {type(error).__name__}: {printable(error)}"
        findings.add(Check.INDEX, message, INDEX)
        return None
    if not _check_columns(table, manifest["labels"], findings):
        return None
    table = _without_nulls(table, findings)
    repairs = table["repair"].to_pandas().value_counts().drop(Repair.NONE, errors="ignore")
    counted = {
        "written": len(table),
        "resized": pc.sum(table["resized"], min_count=0).as_py(),
        "repaired": repairs.to_dict(),
    }
    for name, value in counted.items():
        findings.compare(Check.INDEX, INDEX, name, value, manifest["counts"][name])
    return table


def _check_columns(table: pa.Table, labels: Sequence[str], findings: Findings) -> bool:
    """Check that every column exists once, with the pipeline's type."""
    types, expected = {}, {column.name: str(column.type) for column in index_schema(labels)}
    for name in expected:
        numbers = table.schema.get_all_field_indices(name)
        types[name] = " and ".join(str(table.schema.types[n]) for n in numbers) or "missing"
    findings.compare(Check.INDEX, INDEX, "columns", types, expected)
    return types == expected


def _without_nulls(table: pa.Table, findings: Findings) -> pa.Table:
    # Arrow writes the NaN of an unknown position or spacing as null.
    filled = table
    for number, column in enumerate(table.schema):
        if pa.types.is_float64(column.type):
            values = pc.fill_null(table[column.name], float("nan"))
            filled = filled.set_column(number, column.name, values)
    complete = filled.drop_null()
    if len(complete) < len(filled):
        message = f"{len(filled) - len(complete)} rows have empty cells"
        findings.add(Check.INDEX, message, INDEX)
    return complete


def rows_by_shard(
    index: pa.Table, files: Collection[str], findings: Findings
) -> dict[str, IndexRows]:
    """Return the index's rows per listed shard file; add findings for rows of other files.

    Duplicate record numbers need no check: the index has as many rows as the shards have records,
    and every record must have a row.
    """
    findings.checked[Check.INDEX] += len(index)
    shards = index["shard"].combine_chunks().dictionary_encode().to_pandas()
    positions: dict[Any, Any] = pd.Series(range(len(shards))).groupby(shards, observed=True).indices
    for file in sorted(positions.keys() - set(files)):
        message = f"{len(positions[file])} rows are of {printable(file)}, which is not listed"
        findings.add(Check.INDEX, message, INDEX)
    index = index.combine_chunks()  # `take` searches all chunks, once per shard
    return {file: IndexRows(index, np.asarray(positions.get(file, ()), np.int64)) for file in files}


def check_metadata(folder: Folder, manifest: dict[str, Any], findings: Findings) -> None:
    """Check features.json and dataset_info.json: the manifest determines their content."""
    features = describe_features(len(manifest["labels"]), manifest["image"])
    info = describe_dataset(manifest["splits"])
    for name, expected in (FEATURES, features), (DATASET_INFO, info):
        data = _read_listed(folder, name, Check.METADATA, manifest, findings)
        if data is None:
            continue
        try:
            findings.compare(Check.METADATA, name, "content", parse_json(data), expected)
        except ValueError as error:
            findings.add(Check.METADATA, str(error), name)


def check_rejects(
    folder: Folder, manifest: dict[str, Any], index: pa.Table | None, findings: Findings
) -> None:
    """Check rejects.jsonl: lines, counts per reason, sources unique and absent from the index."""
    data = _read_listed(folder, REJECTS, Check.REJECTS, manifest, findings)
    if data is None:
        return
    reasons: Counter[str] = Counter()
    lines: dict[str, int] = {}  # line numbers by source
    for number, line in enumerate(data.splitlines()):
        findings.checked[Check.REJECTS] += 1
        try:
            reject: Reject = parse_json(line)
            for error in _REJECT.iter_errors(reject):
                raise ValueError(describe_error(error))
            reasons[reject["reason"]] += 1
            first = lines.setdefault(reject["source"], number)
            if first != number:
                raise ValueError(f"the same source as line {first}")
        except ValueError as error:
            findings.add(Check.REJECTS, str(error), REJECTS, number)
    expected = manifest["counts"]["rejected_by_reason"]
    findings.compare(Check.REJECTS, REJECTS, "reasons", dict(reasons), expected)
    if index is not None:
        # A file name that is not UTF-8 cannot be in the index.
        texts = [source for source in lines if source == source.encode(errors="ignore").decode()]
        written = pc.is_in(index["source"], value_set=pa.array(texts, pa.string()))
        for source in index["source"].filter(written).to_pylist():
            findings.add(Check.REJECTS, "its source is in the index too", REJECTS, lines[source])


def _read_listed(
    folder: Folder, name: str, check: Check, manifest: dict[str, Any], findings: Findings
) -> bytes | None:
    """Return the bytes of a file in the manifest's `files`; None if unreadable."""
    findings.checked[check] += 1
    try:
        data = folder.read(name)
    except FileNotFoundError:
        findings.add(check, "missing", name)
        return None
    except OSError as error:
        findings.add(check, f"cannot be read: {error.strerror or type(error).__name__}", name)
        return None
    described = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for what, value in described.items():
        findings.compare(check, name, what, value, manifest["files"][name][what])
    return data


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {printable(error)}") from None


def describe_error(error: ValidationError) -> str:
    """Return the wrong value, and the schema's requirement."""
    path = printable(error.json_path.removeprefix("$").removeprefix("."))
    if error.validator == "required":
        wrong = printable(error.message)
    else:
        schema: Any = error.schema
        wrong = f"{show_json(error.instance)}, not {schema['description']}"
    return f"{path}: {wrong}" if path else wrong
