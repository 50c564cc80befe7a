"""JSON of a shard directory against what it has to look like, one declaration for each file."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from beam_pipeline.errors import Reason
from beam_pipeline.verify.findings import printable, show_json

MANIFEST_SCHEMA = Draft202012Validator(
    json.loads(Path(__file__).with_name("manifest_schema.json").read_bytes())
)

_TEXT = {"description": "a text", "type": "string"}
# A line of rejects.jsonl.
REJECT_SCHEMA = Draft202012Validator(
    {
        "description": "an object",
        "type": "object",
        "required": ["source", "image_id", "reason", "detail"],
        "properties": {
            "source": _TEXT,
            "image_id": _TEXT,
            "reason": {"description": "a known reason", "enum": [*Reason]},
            "detail": _TEXT,
        },
    }
)


def parse_json(data: bytes) -> Any:
    """A JSON value.

    Raises:
        ValueError: not JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {printable(error)}") from None


def describe_error(error: ValidationError) -> str:
    """Where a value is wrong, and what it has to be."""
    path = printable(error.json_path.removeprefix("$").removeprefix("."))
    if error.validator == "required":
        wrong = printable(error.message)
    else:
        expected: Any = error.schema
        wrong = f"{show_json(error.instance)}, not {expected['description']}"
    return f"{path}: {wrong}" if path else wrong
