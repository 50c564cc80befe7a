"""argv, and a TOML file it may name → options.

Flags and the file's keys follow from the declarations of the options; a flag wins over the file,
and the file over the default.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic.fields import FieldInfo

from headct.errors import UsageError
from trainer.declarations import check_entry, did_you_mean, flags, help_text, quoted
from trainer.options import (
    CompareOptions,
    CrossvalOptions,
    EvaluateOptions,
    ExportOptions,
    Options,
    PredictOptions,
    ReportOptions,
    TrainOptions,
)

COMMANDS: tuple[tuple[str, type[Options], str], ...] = (
    ("train", TrainOptions, "train on a shard directory, or resume a run"),
    ("crossval", CrossvalOptions, "train once for each fold, and measure all together"),
    ("evaluate", EvaluateOptions, "measure a run on a labeled split"),
    ("predict", PredictOptions, "write a submission or a table for an unlabeled split"),
    ("export", ExportOptions, "write a run's model for use elsewhere"),
    ("report", ReportOptions, "write a page with a run's curves, figures and mistakes"),
    ("compare", CompareOptions, "write a page that sets finished runs side by side"),
)
_HELP = ("-h", "--help")
_METAVARS: dict[Any, str] = {int: "INT", float: "FLOAT", Path: "PATH"}


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all other bad input is."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would have printed below its usage text."""
        raise UsageError(message.removeprefix("argument "))


def parse_arguments(argv: Sequence[str]) -> Options:
    """Makes the options of the command that `argv` names.

    Raises:
        UsageError: an unknown command, flag, key or value; a flag that is missing.
    """
    _check_command(argv)
    parsed, unknown = _build_parser().parse_known_args(argv)
    given = vars(parsed)
    kind = given.pop("kind")
    _refuse_unknown(unknown, kind)
    if given.get("shards") == "":  # the default's place where there is one: not what was meant
        raise UsageError('--shards "": want a path or URL')
    config = given.pop("config", None)
    options: Options = kind(**(_read_config(config, kind) if config else {}) | given)
    return options


def _check_command(argv: Sequence[str]) -> None:
    """Looks for a command, which comes first.

    Raises:
        UsageError: there is none, or an unknown one.
    """
    names = [name for name, _, _ in COMMANDS]
    if not argv or (argv[0].startswith("-") and argv[0] not in _HELP):
        raise UsageError(
            f"the command is missing: want one of {', '.join(names)}, then its options"
        )
    if argv[0] not in (*names, *_HELP):
        close = did_you_mean(argv[0], names) or f": want one of {', '.join(names)}"
        raise UsageError(f"unknown command {quoted(argv[0])}{close}")


def _refuse_unknown(arguments: Sequence[str], kind: type[Options]) -> None:
    """Names the first of the arguments that no option takes.

    Raises:
        UsageError: there is one.
    """
    option = next((each for each in arguments if each.startswith("-")), "").partition("=")[0]
    if option:
        known = ["--help", "--config", *(f"--{name}" for name in flags(kind))]
        raise UsageError(f"unknown option {quoted(option)}{did_you_mean(option, known)}")
    if arguments:
        raise UsageError(f"unknown argument {quoted(arguments[0])}: options start with --")


def _build_parser() -> OneLineParser:
    """The parser of all commands."""
    parser = OneLineParser(prog="python -m trainer", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)
    for name, kind, text in COMMANDS:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(kind=kind)
        command.add_argument(
            "--config", type=_path, default=argparse.SUPPRESS, help="TOML file of these options"
        )
        for flag, field in flags(kind).items():
            _add_option(command, flag, field)
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _add_option(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    """Adds the flag of one option; its value stays text, which the options convert."""
    # What is not given stays out of the namespace, so that a file's value can take its place.
    common: dict[str, Any] = {
        "help": help_text(field).replace("%", "%%"),
        "default": argparse.SUPPRESS,
    }
    if field.annotation is bool:
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **common)
    elif field.annotation == tuple[Path, ...]:
        parser.add_argument(f"--{name}", metavar="PATH", nargs="+", **common)
    else:
        parser.add_argument(f"--{name}", metavar=_METAVARS.get(field.annotation, "TEXT"), **common)


def _read_config(path: Path, kind: type[Options]) -> dict[str, Any]:
    """Reads a TOML file whose keys are options.

    Raises:
        UsageError: no such file, no TOML, an unknown key or a value that is not allowed.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(f"--config {path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path}: not TOML ({error})") from None
    known = flags(kind)
    for name, value in content.items():
        if name not in known:
            raise UsageError(
                f"--config {path}: unknown key {quoted(name)}{did_you_mean(name, known)}"
            )
        try:
            check_entry(name, known[name], value)
        except UsageError as error:
            raise UsageError(f"--config {path}: {error}") from None
    return content
