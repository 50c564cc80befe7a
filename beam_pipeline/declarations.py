"""How options are declared: once each, so that checks, messages and help cannot disagree.

An option is a field of a class of `Declared`: its name is its flag, its type says what is allowed,
its docstring is its help.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self, get_args

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

from beam_pipeline.errors import UsageError


class Mark(StrEnum):
    """What is special about an option; stands in its type's annotation."""

    UNRECORDED = "decides nothing of what is written"
    DERIVED = "follows from others, and has no flag"
    LOCATION = "a path or URL"


@dataclass(frozen=True)
class DefaultText:
    """What help says of a default that is not known before the run."""

    text: str


# An unset variable of a Makefile gives an empty text.
OptionalText = Annotated[str | None, BeforeValidator(lambda text: text or None)]


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
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind]
    kind = kinds[0]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"one of {', '.join(kind)}"
    if kind not in (int, float):
        return ""
    return f"a {'whole ' if kind is int else ''}number{_range(field)}"


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
        return f"--{name} {_shown(first['input'])}: {first['ctx']['error']}"
    if field is None:
        return f"there is no option {name!r}"
    return f"--{name} {_shown(first['input'])}: want {allowed_values(field) or first['msg']}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)
