"""How options are declared: once each, so that checks, messages and help cannot disagree.

An option is a field of a class of `Declared`: its name is its flag, its type says what is allowed,
its docstring is its help.
"""

import argparse
import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, NoReturn, Self, TypeVar, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from headct.errors import UsageError


class Mark(StrEnum):
    """What is special about an option; stands in its type's annotation."""

    UNRECORDED = "decides nothing of what is written"
    DERIVED = "follows from others, and has no flag"
    LOCATION = "a path or URL"
    AFTER_HEADERS = "decides nothing of what is read of headers"


@dataclass(frozen=True)
class DefaultText:
    """What help says of a default that is not known before the run."""

    text: str


@dataclass(frozen=True)
class EarlierDefault:
    """What versions did that did not know an option, or had another default for it.

    Attributes:
        value: of the option, as a JSON value.
        same: whether today's default gives the same bytes wherever a run with `value` succeeded.
    """

    value: Any
    same: bool = False


# An unset variable of a Makefile gives an empty text.
OptionalText = Annotated[str | None, BeforeValidator(lambda text: text or None)]


def _expand_home(path: Any) -> Any:
    """A path with a home directory for `~`, as a shell leaves it behind `=` and within quotes."""
    return os.path.expanduser(path) if isinstance(path, str) else path  # noqa: PTH111 # or a URL


Location = Annotated[str, BeforeValidator(_expand_home), Mark.LOCATION]
OptionalLocation = Annotated[
    str | None, BeforeValidator(lambda text: _expand_home(text) or None), Mark.LOCATION
]


class Declared(BaseModel):
    """Options that belong together.

    Raises:
        UsageError: a value is not allowed.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise UsageError(_refusal(cls, error)) from None


def flags(kind: type[Declared]) -> Iterator[tuple[str, FieldInfo]]:
    """The options that can be given."""
    for name, field in kind.model_fields.items():
        if Mark.DERIVED not in field.metadata:
            yield name, field


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all other bad input is."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would have printed below its usage text."""
        raise UsageError(message)


def add_flags(parser: Any, kind: type[Declared]) -> None:
    """Add the options of a class to a parser, or to a group of it.

    What is not given stays out of the namespace: the defaults are the declarations'.
    """
    for name, field in flags(kind):
        text = help_text(field).replace("%", "%%")
        common: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        if field.annotation is bool:
            parser.add_argument(f"--{name}", action="store_true", **common)
        else:
            metavar = {int: "INT", float: "FLOAT"}.get(_kind(field), "TEXT")
            parser.add_argument(f"--{name}", metavar=metavar, **common)


D = TypeVar("D", bound=Declared)


def parse_flags(kind: type[D], argv: Sequence[str], program: str) -> D:
    """The options of a program that has those of one class.

    Raises:
        UsageError: a value is not allowed, or an option unknown.
        SystemExit: `--help`.
    """
    parser = OneLineParser(prog=program, description=kind.__doc__, allow_abbrev=False)
    add_flags(parser, kind)
    parsed, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [f"--{name}" for name, _ in flags(kind)]
        raise UsageError(f"unknown option {unknown[0]}{did_you_mean(unknown[0], known)}")
    refuse_empty(kind, vars(parsed))
    return kind(**vars(parsed))


def refuse_empty(kind: type[Declared], given: Mapping[str, Any]) -> None:
    """Refuse an empty text for an option that is required: as a path it is the current folder.

    Raises:
        UsageError: there is one.
    """
    for name, field in flags(kind):
        if field.is_required() and given.get(name) == "":
            raise UsageError(f'--{name} "": want a path or URL')


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A question that ends a complaint; empty if nothing known is like what was given."""
    close = difflib.get_close_matches(given.partition("=")[0], list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def help_text(field: FieldInfo) -> str:
    """What an option is, what is allowed, and its default."""
    default = "required" if field.is_required() else f"default: {default_text(field)}"
    allowed = allowed_values(field)
    return f"{field.description} ({'; '.join(filter(None, (allowed, default)))})"


def default_text(field: FieldInfo) -> str:
    """A default as it would be given."""
    for each in field.metadata:
        if isinstance(each, DefaultText):
            return each.text
    if isinstance(field.default, bool):
        return "yes" if field.default else "no"
    return _shown(field.default) or "none"


def allowed_values(field: FieldInfo) -> str:
    """What a value may be, in words; empty if any will do."""
    kind = _kind(field)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"one of {', '.join(kind)}"
    if kind not in (int, float):
        return ""
    return f"a {'whole ' if kind is int else ''}number{_range(field)}"


def _kind(field: FieldInfo) -> Any:
    """The type of a value that is given."""
    return (get_args(field.annotation) or (field.annotation,))[0]


def _range(field: FieldInfo) -> str:
    limits = {type(each): each for each in field.metadata}
    lowest, above = limits.get(Ge), limits.get(Gt)
    highest, below = limits.get(Le), limits.get(Lt)
    lower = f"{lowest.ge:g}" if lowest else f"above {above.gt:g}" if above else ""
    upper = _plain(highest.le) if highest else f"below {_plain(below.lt)}" if below else ""
    if lower and upper:
        return f" from {lower} to {upper}"
    if upper:
        return f" of at most {upper}" if highest else f" {upper}"
    if lower:
        return f" of at least {lower}" if lowest else f" {lower}"
    return ""


def _plain(number: Any) -> str:
    return f"{number:d}" if isinstance(number, int) else f"{number:g}"


def _refusal(kind: type[Declared], error: ValidationError) -> str:
    """The first thing that is wrong, in a line."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    field = kind.model_fields.get(name)
    if first["type"] == "missing" and field is not None:
        return f"--{name} is missing: {field.description}"
    if "error" in first.get("ctx", {}):  # of a validator of ours
        return f"--{name} {_quoted(first['input'])}: {first['ctx']['error']}"
    if field is None:
        return f"there is no option {name!r}"
    return f"--{name} {_quoted(first['input'])}: want {allowed_values(field) or first['msg']}"


def _quoted(value: Any) -> str:
    return _shown(value) or '""'


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)
