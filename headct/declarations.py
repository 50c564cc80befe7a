"""Declarative options: one class yields checks, messages, help, flags, tables and TOML keys.

An option is a field of a subclass of `Declared`: the field's name is the flag and the TOML key, the
type states the allowed values, the docstring is the help.

argparse reads the flags. Option libraries lack some of this interface: one line per error,
"did you mean", and the facts in parentheses after the help of an option.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from inspect import get_annotations
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from headct.errors import UsageError
from headct.printable import LONGEST_SHOWN, escape_controls, shown

_WORDS = {bool: "true or false", Path: "a path", tuple[Path, ...]: "paths"}
_METAVARS = {int: "INT", float: "FLOAT", Path: "PATH", tuple[Path, ...]: "PATH"}


class Mark(StrEnum):
    """Special property of an option, in the annotation of its type."""

    UNRECORDED = "changes nothing that is written, and may change when a run resumes"
    DERIVED = "follows from others, and has no flag"
    LOCATION = "a path or URL"
    NEVER_EMPTY = "optional, but an empty text is a mistake, for instance an unset variable"
    AFTER_HEADERS = "changes nothing that is read from headers"
    REPEATED = "a list: the flag may be given several times, each with one value"


@dataclass(frozen=True)
class DefaultText:
    """Help text for a default that is computed at run time."""

    text: str


def _expand_home(value: Any) -> Any:
    """Replace `~` by the home directory; shells do not after `=` and within quotes."""
    if isinstance(value, list | tuple):
        return [*map(_expand_home, value)]
    return os.path.expanduser(value) if isinstance(value, str | Path) else value  # noqa: PTH111 # or a URL


def _check_path(value: Any) -> Any:
    """Refuse a path that run.json or a printed command could not repeat."""
    for path in value if isinstance(value, tuple) else [value]:
        text = str(path or "")
        if "\0" in text:
            raise ValueError("want a path without the character NUL")
        if isinstance(path, Path) and escape_controls(text) != text:
            raise ValueError("want a path without line breaks and other control characters")
        if isinstance(path, Path) and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError("want a path in UTF-8")
    return value


def _refuse_empty(path: Any) -> Any:
    if path == "":  # pathlib reads "" as the current folder
        raise ValueError("want a path")
    return path


def _as_several(value: Any) -> Any:
    """Take one path as a list of one; refuse none, and an empty path."""
    several = [value] if isinstance(value, str | Path) else value
    if not several:
        raise ValueError("want a path")
    return [*map(_refuse_empty, several)]


_PATH_CHECKS = (BeforeValidator(_expand_home), AfterValidator(_check_path))
# A Makefile passes an unset variable as an empty string.
OptionalText = Annotated[str | None, BeforeValidator(lambda text: text or None)]
Location = Annotated[str, *_PATH_CHECKS, Mark.LOCATION]
OptionalLocation = Annotated[OptionalText, *_PATH_CHECKS, Mark.LOCATION]
LocalPath = Annotated[Path, *_PATH_CHECKS, BeforeValidator(_refuse_empty)]
LocalPaths = Annotated[tuple[Path, ...], *_PATH_CHECKS, BeforeValidator(_as_several)]


class Declared(BaseModel):
    """A group of options.

    Raises:
        UsageError: a value is invalid, missing or unknown; the message quotes the value.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        defer_build=True,  # a process needs only the options of its command
    )

    def __init__(self, **values: Any) -> None:
        # not in a validator: validators of subclasses would run outside this try
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UsageError(_refusal(type(self), error.errors()[0])) from None


D = TypeVar("D", bound=Declared)


def flags(kind: type[Declared]) -> dict[str, FieldInfo]:
    """Return the options with flags: required options first, inherited options last."""
    distance = {
        name: steps
        for steps, base in reversed([*enumerate(kind.__mro__)])
        for name in get_annotations(base)
    }
    given = {k: v for k, v in kind.model_fields.items() if Mark.DERIVED not in v.metadata}
    order = sorted(given, key=lambda name: (not given[name].is_required(), distance[name]))
    return {name: given[name] for name in order}


# ---- Text: help, tables and messages


def meaning(field: FieldInfo) -> str:
    """Return the meaning of an option in one line."""
    return " ".join((field.description or "").split())


def help_text(field: FieldInfo) -> str:
    """Return the meaning of an option, its allowed values and its default."""
    default = "required" if field.is_required() else f"default: {default_text(field)}"
    allowed = allowed_values(field)
    facts = default if allowed in ("text", *_WORDS.values()) else f"{allowed}; {default}"
    return f"{meaning(field)} ({facts})"


def default_text(field: FieldInfo) -> str:
    """Return a default in the syntax of the command line."""
    value = field.default
    for mark in field.metadata:
        if isinstance(mark, DefaultText):
            return mark.text
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.12g}"
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value or "")
    return text or "none"


def allowed_values(field: FieldInfo) -> str:
    """Describe the allowed values."""
    kind = _value_type(field)
    if words := choices(field):
        return f"one of {', '.join(words)}" if len(words) > 1 else words[0]
    if kind in (int, float):
        return f"a {'whole ' if kind is int else ''}number{_range(field)}"
    return _WORDS.get(kind, "text")


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the choices of an option; empty for options without choices."""
    kind = _value_type(field)
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(kind) if isinstance(kind, type) and issubclass(kind, StrEnum) else ()


def quoted(value: Any) -> str:
    """Return a value as the user wrote it, shortened to one line."""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if text and text.isprintable() and len(text) <= LONGEST_SHOWN else shown(text)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a question with the most similar known word; empty if there is none."""
    close = get_close_matches(given.partition("=")[0], [*known], 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _value_type(field: FieldInfo) -> Any:
    """Return the type of a value other than None: `int` for `int | None`."""
    kind: Any = field.annotation
    return get_args(kind)[0] if get_origin(kind) in (Union, UnionType) else kind


def _range(field: FieldInfo) -> str:
    limits = {
        name: f"{getattr(limit, name):.12g}"
        for limit in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(limit, name)
    }
    if "gt" in limits:
        return f" above {limits['gt']}"
    if "le" in limits or "lt" in limits:
        return f" from {limits['ge']} to {limits.get('le') or 'below ' + limits['lt']}"
    return f" of at least {limits['ge']}" if limits else ""


def _refusal(kind: type[Declared], error: ErrorDetails) -> str:
    """Return an error message in one line."""
    own = str(error.get("ctx", {}).get("error", ""))  # of a validator of this project
    if not error["loc"]:  # a check of several options together
        return own
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        known = (f"--{option}" for option in kind.model_fields)
        return f"unknown option --{quoted(name)}{did_you_mean(f'--{name}', known)}"
    field = kind.model_fields[name]
    if error["type"] == "missing":
        return f"--{name} is missing: {meaning(field)}"
    return f"--{name} {quoted(error['input'])}: " + (own or f"want {allowed_values(field)}")


# ---- Command lines and TOML files


class OneLineParser(argparse.ArgumentParser):
    """A parser with error messages in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError with argparse's message, without the usage text."""
        raise UsageError(message.removeprefix("argument "))


def flag_parser(
    program: str, description: str | None, *kinds: type[Declared], epilog: str | None = None
) -> OneLineParser:
    """Return a parser of options.

    A class with a title is a group of the help. The namespace omits options without a value: the
    declarations have the defaults.
    """
    parser = OneLineParser(prog=program, description=description, epilog=epilog, allow_abbrev=False)
    text = "TOML file of these options; flags override it"
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help=text)
    for kind in kinds:
        title = kind.model_config.get("title")
        group: Any = parser.add_argument_group(title, kind.__doc__) if title else parser
        for name, field in flags(kind).items():
            value = _value_type(field)
            facts: dict[str, Any] = {"help": help_text(field).replace("%", "%%")}
            if value is bool:
                facts["action"] = argparse.BooleanOptionalAction
            else:
                is_path = Mark.LOCATION in field.metadata
                facts["metavar"] = "PATH" if is_path else _METAVARS.get(value, "TEXT")
            if value == tuple[Path, ...]:
                facts["nargs"] = "+"
            elif Mark.REPEATED in field.metadata:
                facts["action"] = "append"
            group.add_argument(f"--{name}", default=argparse.SUPPRESS, **facts)
    return parser


def parse_given(
    parser: OneLineParser, kinds: Iterable[type[Declared]], argv: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the options from argv and its TOML file, and the unknown arguments.

    Raises:
        UsageError: a flag has no value, a required option is empty, or the file cannot be used.
        SystemExit: `--help`.
    """
    parsed, others = parser.parse_known_args(argv)
    if "config" in parsed:
        entries = [_Entry(entry) for entry in _read_config(parsed.config, parser, vars(parsed))]
        for entry in entries:
            entry.file = parsed.config
        try:
            parser.parse_known_args(entries)  # alone, since an error has to name the file
        except UsageError as error:
            raise UsageError(f"--config {parsed.config}: {error}") from None
        parsed, others = parser.parse_known_args([*entries, *argv])
        del parsed.config
    given = vars(parsed)
    for kind in kinds:
        for name, field in flags(kind).items():
            needed = field.is_required() or Mark.NEVER_EMPTY in field.metadata
            if needed and given.get(name) in ("", [""]):
                what = _WORDS.get(_value_type(field), "a path or URL")
                raise UsageError(f'--{name} "": want {what}')
    return given, others


def with_flags(argv: Sequence[str], *names: str) -> list[str]:
    """Return arguments in which those before the first flag have the flags `names`."""
    words = [*takewhile(lambda word: not word.startswith("-"), argv[: len(names)])]
    named = [f"{flag}={word}" for flag, word in zip(names, words, strict=False)]
    return [*named, *argv[len(words) :]]


class _Entry(str):
    """An entry of a TOML file, as a flag."""

    file = ""


def named_in(word: str) -> str:
    """Return the beginning of a message about a word: the TOML file that has it, if any."""
    return f"--config {word.file}: " if isinstance(word, _Entry) else ""


def parse_flags(kind: type[D], argv: Sequence[str], program: str, text: str | None = None) -> D:
    """Return the options of a command with one class of options.

    Args:
        kind: the class.
        argv: the arguments.
        program: command line before the arguments.
        text: description of the command; by default the docstring of the class.

    Raises:
        UsageError: a value is invalid, or an option is unknown.
        SystemExit: `--help`.
    """
    parser = flag_parser(program, text or kind.__doc__, kind)
    given, others = parse_given(parser, [kind], argv)
    if option := next((word for word in others if word.startswith("-")), ""):
        name = option.partition("=")[0]
        meant = did_you_mean(name, ["--help", "--config", *(f"--{each}" for each in flags(kind))])
        raise UsageError(f"{named_in(option)}unknown option {quoted(name)}{meant}")
    if others:
        raise UsageError(f"unknown argument {quoted(others[0])}: options start with --")
    return kind(**given)


def _read_config(path: str, parser: OneLineParser, given: Mapping[str, Any]) -> Iterator[str]:
    """Yield the entries of a TOML file as flags, without repeated flags that are given."""
    file = Path(path).expanduser()
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(f"--config {file}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {file}: not TOML ({error})") from None
    several = {action.dest for action in parser._actions if action.nargs == "+"}
    repeated = {
        action.dest for action in parser._actions if isinstance(action, argparse._AppendAction)
    }
    for name, value in content.items():
        if name in repeated:
            entries = value if isinstance(value, list) else [value]
            yield from (f"--{name}={entry}" for entry in entries if name not in given)
        elif isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        elif name in several and isinstance(value, list):
            yield from [f"--{name}", *map(str, value)]
        elif isinstance(value, list):  # as in a row of CSV
            row = io.StringIO()
            csv.writer(row, lineterminator="").writerow(value)
            yield f"--{name}={row.getvalue()}"
        else:
            yield f"--{name}={value}"


def toml_text(head: str, kinds: Iterable[type[Declared]], values: Mapping[str, Any]) -> str:
    """Return a TOML file for `--config`: a comment, then options with their meanings.

    Args:
        head: the comment, perhaps of several lines.
        kinds: the classes of the options.
        values: JSON values by option; None and an empty list are left out.
    """
    lines = [f"# {line}" for line in head.splitlines()]
    for kind in kinds:
        for name, field in flags(kind).items():
            if values.get(name) not in (None, []):
                lines += ["", f"# {meaning(field)}", f"{name} = {_toml_value(values[name])}"]
    return "\n".join([*lines, ""])


def _toml_value(value: Any) -> str:
    """Return a JSON value in TOML; of the same syntax, but for DEL in texts."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def choose_command(
    argv: Sequence[str], program: str, commands: Mapping[str, str], description: str | None = None
) -> str:
    """Return the command, the first argument of argv; `commands` has a description for each.

    Raises:
        UsageError: the command is missing or unknown.
        SystemExit: `--help`.
    """
    names = ", ".join(commands)
    if argv and argv[0] in ("-h", "--help"):
        parser = OneLineParser(prog=program, description=description)
        listed = parser.add_subparsers(metavar="COMMAND")
        for name, text in commands.items():
            listed.add_parser(name, help=text)
        parser.parse_args(["--help"])
    if not argv or argv[0].startswith("-"):
        raise UsageError(f"the command is missing: want one of {names}, then its options")
    if argv[0] not in commands:
        close = did_you_mean(argv[0], commands) or f": want one of {names}"
        raise UsageError(f"unknown command {quoted(argv[0])}{close}")
    return argv[0]
