"""Strict parsing of untrusted JSON files, and validation against a model.

A model is a pydantic dataclass; its types describe allowed values in words (`must`). Unknown keys
are allowed.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import AfterValidator, TypeAdapter, ValidationError, WrapValidator
from pydantic_core import ErrorDetails, PydanticCustomError

from headct.errors import UsageError
from headct.printable import LONGEST_SHOWN, shown

LARGEST = 1 << 26  # bytes; the manifest of 10^8 slices has a tenth of this
_CONTROLS = re.compile("[\\0-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")


def must(description: str) -> WrapValidator:
    """Annotate a type with a description of allowed values, for error messages.

    Must be last in `Annotated`. Errors within a value (an item of a list, a field of an object)
    keep their own message.
    """

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            if all(details["loc"] for details in error.errors()):
                raise
        raise PydanticCustomError("must", "must be {description}", {"description": description})

    return WrapValidator(check)


def _without_controls(value: str) -> str:
    """Refuse control characters, line ends and surrogates."""
    if _CONTROLS.search(value):
        raise ValueError("has control characters")
    return value


PRINTABLE = AfterValidator(_without_controls)


def read_document(path: Path, model: Any) -> Any:
    """Return a JSON file's content as a model.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: the file cannot be read, is not JSON, or has an invalid value.
    """
    return check_document(parse_json(read_bytes(path), str(path)), model, str(path))


def read_json(path: Path) -> Any:
    """Read a JSON file that must exist.

    Raises:
        UsageError: the file is missing or damaged.
    """
    try:
        return parse_json(read_bytes(path), str(path))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None


def read_bytes(path: Path) -> bytes:
    """Read a file, up to `LARGEST` bytes.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: not a file, too large, or unreadable.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: must be a file")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    refuse_large(len(data), str(path))
    return data


def refuse_large(size: int, name: str) -> None:
    """Check the size of a document, bytes.

    Raises:
        UsageError: the document is too large.
    """
    if size > LARGEST:
        raise UsageError(f"{name}: more than {LARGEST >> 20} MiB; that is no such file")


def check_document(document: Any, model: Any, name: str) -> Any:
    """Return a parsed document as a model.

    Args:
        document: parsed JSON.
        model: a pydantic dataclass, or any other type that pydantic validates.
        name: of the file, for messages.

    Raises:
        UsageError: a value is invalid or missing; the message names the first one.
    """
    try:
        return _adapter(model).validate_python(document)
    except ValidationError as error:
        raise UsageError(f"{name}: {_describe(error.errors()[0])}") from None


@lru_cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _describe(error: ErrorDetails) -> str:
    """Return the path of an invalid value and the allowed values, in one line."""
    path = error["loc"]
    if error["type"] == "missing":
        return f"{key_path(path)}: is missing"
    if path[-1:] == ("[key]",):
        path = path[:-2]
    return f"{key_path(path)}: {shown(error['input'])}: {error['msg']}"


def parse_json(data: bytes, name: str) -> Any:
    """Parse JSON without NaN, Infinity or duplicate keys.

    Raises:
        UsageError: the data are invalid.
    """
    try:
        return json.loads(
            data, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_unique_keys
        )
    except RecursionError:
        raise UsageError(f"{name}: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{name}: not JSON ({error})") from None


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{shown(digits)}: must be a finite number")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse duplicate keys: parsers disagree on which value counts."""
    unique = dict(pairs)
    if len(unique) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)} is there twice")
    return unique


def key_path(path: Iterable[str | int]) -> str:
    """Return the path to a value in a document, for example `splits.fold0.shards[3].file`."""
    shown_path = ""
    for key in path:
        if isinstance(key, int):
            shown_path += f"[{key}]"
        elif key.isidentifier() and key.isascii() and len(key) <= LONGEST_SHOWN:
            shown_path += f".{key}"
        else:
            shown_path += f"[{shown(key)}]"
    return shown_path.removeprefix(".") or "all of it"
