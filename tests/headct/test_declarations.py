from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, model_validator

from headct.declarations import (
    Declared,
    DefaultText,
    LocalPath,
    Mark,
    allowed_values,
    did_you_mean,
    flags,
    help_text,
)
from headct.errors import UsageError


class Base(Declared):
    """Inherited."""

    last: Annotated[int, Field(ge=1, le=10)] = 3
    """declared
    in two lines"""
    needed: LocalPath
    """needed as well"""


class Example(Base):
    """All kinds."""

    choice: Literal["a", "b"] = "a"
    """a choice"""
    only: Literal["a"] = "a"
    """no choice"""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """a share of 100 %"""
    rate: Annotated[float, Field(gt=0), Mark.UNRECORDED] = 1.0
    """a rate"""
    count: Annotated[int, Field(ge=2)] = 2
    """a count"""
    number: float = 0.0
    """any number"""
    switch: bool = True
    """a switch"""
    text: Annotated[str, DefaultText("what is known later")] = ""
    """a text"""
    hidden: Annotated[int, Mark.DERIVED] = 0
    required: str
    """what has to be given"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.count == self.number:
            raise ValueError("--count and --number: want different ones")
        return self


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("last", "a whole number from 1 to 10"),
        ("needed", "a path"),
        ("choice", "one of a, b"),
        ("only", "a"),
        ("share", "a number from 0 to below 1"),
        ("rate", "a number above 0"),
        ("count", "a whole number of at least 2"),
        ("number", "a number"),
        ("switch", "true or false"),
        ("text", "text"),
    ],
)
def test_what_is_allowed_in_words(name: str, words: str) -> None:
    assert allowed_values(Example.model_fields[name]) == words


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("last", "declared in two lines (a whole number from 1 to 10; default: 3)"),
        ("share", "a share of 100 % (a number from 0 to below 1; default: 0.5)"),
        ("switch", "a switch (default: true)"),
        ("text", "a text (default: what is known later)"),
        ("required", "what has to be given (required)"),
    ],
)
def test_help(name: str, text: str) -> None:
    assert help_text(Example.model_fields[name]) == text


def test_flags_begin_with_what_is_required_and_end_with_what_is_inherited() -> None:
    assert [*flags(Example)] == [
        *("required", "needed"),
        *("choice", "only", "share", "rate", "count", "number", "switch", "text"),
        "last",
    ]


def test_no_other_exception_leaves_a_declaration() -> None:
    for make in (
        lambda: Example(required="r", needed="n", count=1),
        lambda: Example(required="r", needed="n", count=4, number=4),
        lambda: Example.model_validate({"required": "r", "needed": 3}),
        lambda: Example.model_validate_json('{"required": "r", "needed": 3}'),
    ):
        with pytest.raises(UsageError):
            make()


def test_did_you_mean() -> None:
    assert did_you_mean("epoch", ["patience", "epochs"]) == " (did you mean epochs?)"
    assert did_you_mean("xyzzy", ["patience", "epochs"]) == ""
