"""How options are declared: once each, so that checks, messages and help cannot disagree.

An option is a field of a class of `Declared`: its name is its flag and its key in a TOML file, its
type says what is allowed, its docstring is its help.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, time
from difflib import get_close_matches
from enum import Enum
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from headct.errors import UsageError
from headct.printable import escape_controls
from trainer.json_documents import LONGEST_SHOWN, shown

_WORDS = {bool: "true or false", str: "text", Path: "a path", tuple[Path, ...]: "paths"}
_FINITE = ConfigDict(allow_inf_nan=False)


class Mark(Enum):
    """What is special about an option; stands in its type's annotation."""

    MAY_CHANGE = "may change between two starts of one run"
    DERIVED = "follows from others, and has no flag"


@dataclass(frozen=True)
class DefaultText:
    """What help says of a default that is not known before the run."""

    text: str


def _refuse_nul(path: Any) -> Any:
    if "\0" in str(path):
        raise ValueError("want a path without the character NUL")
    return path


def _refuse_controls(path: Any) -> Any:
    """Advice that names such a path, and run.json, could not be taken as they are."""
    text = str(path)
    if escape_controls(text) != text:
        raise ValueError("want a path without line breaks and other control characters")
    if not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):
        raise ValueError("want a path in UTF-8")
    return path


def _refuse_controls_of_each(paths: Any) -> Any:
    return tuple(map(_refuse_controls, paths))


def _refuse_empty(path: Any) -> Any:
    if path == "":  # which would be the current folder
        raise ValueError("want a path")
    return path


def expand_home(path: Any) -> Any:
    """A path with a home directory for `~`, as a shell leaves it behind `=` and within quotes."""
    text = str(path) if isinstance(path, Path) else path
    return os.path.expanduser(text) if isinstance(text, str) else text  # noqa: PTH111 # or a URL


def _expand_each(paths: Any) -> Any:
    return [*map(expand_home, paths)] if isinstance(paths, list | tuple) else paths


LocalPath = Annotated[
    Path,
    BeforeValidator(_refuse_empty),
    BeforeValidator(expand_home),
    AfterValidator(_refuse_nul),
    AfterValidator(_refuse_controls),
]
LocalPaths = Annotated[
    tuple[Path, ...],
    BeforeValidator(_expand_each),
    AfterValidator(_refuse_controls_of_each),
]
PathOrUrl = Annotated[str, BeforeValidator(expand_home), AfterValidator(_refuse_nul)]


class Declared(BaseModel):
    """Options that belong together.

    Raises:
        UsageError: a value is not allowed, or missing; the message quotes it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        defer_build=True,  # a process needs the options of one command
    )

    def __init__(self, **values: Any) -> None:
        # Not a validator: those of subclasses run outside of one that is declared here.
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UsageError(_refusal(type(self), error.errors()[0])) from None


def flags(kind: type[Declared]) -> dict[str, FieldInfo]:
    """The options that can be given: what is required first, what is inherited last."""
    distance = {
        name: steps
        for steps, each in reversed([*enumerate(kind.__mro__)])
        for name in get_annotations(each)
    }
    given = {k: v for k, v in kind.model_fields.items() if Mark.DERIVED not in v.metadata}
    order = sorted(given, key=lambda name: (not given[name].is_required(), distance[name]))
    return {name: given[name] for name in order}


def meaning(field: FieldInfo) -> str:
    """What an option is, in one line."""
    return " ".join((field.description or "").split())


def help_text(field: FieldInfo) -> str:
    """What an option is, which values are allowed, and its default."""
    default = "required" if field.is_required() else f"default: {default_text(field)}"
    allowed = allowed_values(field)
    facts = default if allowed in _WORDS.values() else f"{allowed}; {default}"
    return f"{meaning(field)} ({facts})"


def default_text(field: FieldInfo) -> str:
    """A default as it would be given."""
    for each in field.metadata:
        if isinstance(each, DefaultText):
            return each.text
    return str(field.default).lower() if field.annotation is bool else str(field.default)


def allowed_values(field: FieldInfo) -> str:
    """What a value may be, in words."""
    if get_origin(field.annotation) is Literal:
        choices = get_args(field.annotation)
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    kind: Any = field.annotation
    return _WORDS.get(kind) or f"a {'whole ' if kind is int else ''}number{_range(field)}"


def check_entry(name: str, field: FieldInfo, value: Any) -> None:
    """Checks an entry of a TOML file, whose value has to be of the very type.

    Raises:
        UsageError: it is of another, or not allowed.
    """
    kind: Any = Annotated[field.annotation, field]
    # Not Python's strict mode: that refuses a text for a path. Dates become what no option takes.
    text = json.dumps(value, default=lambda _: {})
    try:
        TypeAdapter(kind, config=_FINITE).validate_json(text, strict=True)
    except ValidationError as error:
        given = quoted(value) if isinstance(value, date | time) else shown(value)
        reason = _reason(field, error.errors()[0])
        raise UsageError(f"{name} = {given}: {reason}") from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Ends a message with the known word that is most like an unknown one, if any is."""
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def quoted(value: Any) -> str:
    """A value as it was given, unless that would not be one short line."""
    text = str(value)
    return text if text and text.isprintable() and len(text) <= LONGEST_SHOWN else shown(text)


def _refusal(kind: type[Declared], error: ErrorDetails) -> str:
    """What is wrong, in a line."""
    if not error["loc"]:  # of several options together
        return _own_text(error)
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        known = (f"--{each}" for each in kind.model_fields)
        return f"unknown option --{quoted(name)}{did_you_mean(f'--{name}', known)}"
    field = kind.model_fields[name]
    if error["type"] == "missing":
        return f"--{name} is missing: {meaning(field)}"
    return f"--{name} {quoted(error['input'])}: {_reason(field, error)}"


def _reason(field: FieldInfo, error: ErrorDetails) -> str:
    return _own_text(error) or f"want {allowed_values(field)}"


def _own_text(error: ErrorDetails) -> str:
    """What a validator of ours said, if it was one."""
    return str(error.get("ctx", {}).get("error", ""))


def _range(field: FieldInfo) -> str:
    limits = {
        name: getattr(each, name)
        for each in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(each, name)
    }
    match limits:
        case {"ge": lowest, "le": highest}:
            return f" from {lowest} to {highest}"
        case {"ge": lowest, "lt": above}:
            return f" from {lowest} to below {above}"
        case {"ge": lowest}:
            return f" of at least {lowest}"
        case {"gt": below}:
            return f" above {below}"
    return ""
