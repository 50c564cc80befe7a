"""JSON files that others may have written: parsed strictly, and checked against a schema.

The schemas lie in `schemas/`, a file each; what a value must be is said there, in the
description beside its rules, and nowhere else. More keys than they name are always allowed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry, Resource

from headct.errors import UsageError
from headct.printable import LONGEST_SHOWN, shown

_SCHEMAS = Path(__file__).parent / "schemas"
# The manifest of 10^8 slices takes a tenth of it.
LARGEST = 1 << 26


class _Refused(ValueError):
    """JSON that Python's parser takes and that is none, or has no one meaning."""


def read_document(path: Path, kind: str) -> Any:
    """Reads a JSON file and checks it against the schema `kind`.

    Raises:
        FileNotFoundError: it is not there.
        UsageError: it cannot be read, is no JSON, or has a wrong value.
    """
    document = parse_json(read_bytes(path), str(path))
    check_document(document, kind, str(path))
    return document


def read_bytes(path: Path) -> bytes:
    """All of a file, unless it is absurdly large.

    Raises:
        FileNotFoundError: it is not there.
        UsageError: it is no file, too large, or cannot be read.
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
    """Compares a file's bytes with what is still sensible.

    Raises:
        UsageError: there are more.
    """
    if size > LARGEST:
        raise UsageError(f"{name}: more than {LARGEST >> 20} MiB; that is no such file")


def check_document(document: Any, kind: str, name: str) -> None:
    """Checks parsed JSON against the schema `kind`; `name` is for messages.

    Raises:
        UsageError: a value is wrong or missing; the first of them is named.
    """
    error = next(validator(kind).iter_errors(document), None)
    if error is not None:
        raise UsageError(f"{name}: {describe(error)}")


def parse_json(data: bytes, name: str) -> Any:
    """Parses JSON; no NaN, no Infinity, no key twice.

    Raises:
        UsageError: it is no JSON.
    """
    try:
        return json.loads(
            data,
            parse_constant=_refuse_constant,
            parse_float=finite,
            object_pairs_hook=_unique_keys,
        )
    except _Refused as error:
        raise UsageError(f"{name}: {error}") from None
    except RecursionError:
        raise UsageError(f"{name}: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{name}: not JSON ({error})") from None


def _refuse_constant(text: str) -> NoReturn:
    """Refuses NaN and Infinity, which JSON does not have."""
    raise _Refused(f"{text}: must be a finite number")


def finite(text: str) -> float:
    """A number that did not overflow."""
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"{shown(text)}: must be a finite number")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; Python would keep the last of two values of a key, others the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise _Refused(f"the key {shown(twice)} is there twice")
    return found


@lru_cache
def validator(kind: str) -> Draft202012Validator:
    """What checks a document against `schemas/KIND.json`."""
    contents = {path.name: json.loads(path.read_bytes()) for path in _SCHEMAS.glob("*.json")}
    resources = [(name, Resource.from_contents(each)) for name, each in contents.items()]
    registry: Registry[Any] = Registry().with_resources(resources)
    return Draft202012Validator(contents[f"{kind}.json"], registry=registry)


def describe(error: ValidationError) -> str:
    """Where a value is wrong, and what it must be, in one line."""
    if error.validator == "required":
        required: Any = error.validator_value
        instance: Any = error.instance
        missing = next(key for key in required if key not in instance)
        return f"{key_path([*error.absolute_path, missing])}: is missing"
    value = shown(error.instance)
    must = error.schema.get("description") if isinstance(error.schema, dict) else None
    return f"{key_path(error.absolute_path)}: {value}: must be {must or 'another value'}"


def key_path(path: Iterable[str | int]) -> str:
    """A place in a document, for instance `splits.fold0.shards[3].file`."""
    text = ""
    for each in path:
        if isinstance(each, int):
            text += f"[{each}]"
        elif each.isidentifier() and each.isascii() and len(each) <= LONGEST_SHOWN:
            text += f".{each}"
        else:
            text += f"[{shown(each)}]"
    return text.removeprefix(".") or "all of it"


def read_json(path: Path) -> Any:
    """Reads a JSON file that is there.

    Raises:
        UsageError: it is not there any more, or damaged.
    """
    try:
        return parse_json(read_bytes(path), str(path))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
