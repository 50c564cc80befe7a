"""argv, and a TOML file it may name → options.

Flags are the fields of the options' dataclasses, in snake_case, and so are the file's keys;
a flag wins over the file, and the file over the default.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from trainer.errors import BadInput
from trainer.options import (
    CompareOptions,
    CrossvalOptions,
    EvaluateOptions,
    ExportOptions,
    Options,
    PredictOptions,
    ReportOptions,
    ShardAccess,
    TrainOptions,
    choices_of,
)

COMMANDS: tuple[tuple[str, type[Options], str], ...] = (
    ("train", TrainOptions, "train on a shard directory, or resume a run"),
    ("crossval", CrossvalOptions, "train once for each fold, and measure all together"),
    ("evaluate", EvaluateOptions, "measure a run on a labeled split"),
    ("predict", PredictOptions, "write a submission for an unlabeled split"),
    ("export", ExportOptions, "write a run's model for use elsewhere"),
    ("report", ReportOptions, "write a page with a run's curves, figures and mistakes"),
    ("compare", CompareOptions, "write a page that sets finished runs side by side"),
)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all other bad input is."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would have printed below its usage text."""
        raise BadInput(message)


def parse_arguments(argv: Sequence[str]) -> Options:
    """Makes the options of the command that `argv` names.

    Raises:
        BadInput: an unknown command, flag, key or value; a flag that is missing.
    """
    given = vars(build_parser().parse_args(argv))
    kind = given.pop("kind")
    config = given.pop("config", None)
    merged = (read_config(config, kind) if config else {}) | given
    for each in fields(kind):
        if each.default is MISSING and each.name not in merged:
            raise BadInput(f"--{each.name} is missing: {each.metadata['help']}")
    options: Options = kind(**merged)
    return options


def build_parser() -> OneLineParser:
    """The parser of all commands."""
    parser = OneLineParser(prog="python -m trainer", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)
    for name, kind, text in COMMANDS:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(kind=kind)
        command.add_argument(
            "--config", type=Path, default=argparse.SUPPRESS, help="TOML file of these options"
        )
        hints = get_type_hints(kind)
        for each in flags(kind):
            add_option(command, each, hints[each.name])
    return parser


def flags(kind: type[Options]) -> list[Field[Any]]:
    """The fields that can be given; `crossval` goes through all folds itself.

    Those of buckets, which few need, come last.
    """
    last = {each.name for each in fields(ShardAccess)}
    ordered = sorted(fields(kind), key=lambda each: each.name in last)
    return [each for each in ordered if not (kind is CrossvalOptions and each.name == "fold")]


def add_option(parser: argparse.ArgumentParser, each: Field[Any], kind: type) -> None:
    """Adds the flag of one field."""
    default = "required" if each.default is MISSING else f"default: {each.default}"
    text = each.metadata["help"].replace("%", "%%")
    # What is not given stays out of the namespace, so that a file's value can take its place.
    common: dict[str, Any] = {"help": f"{text} ({default})", "default": argparse.SUPPRESS}
    if kind is bool:
        parser.add_argument(f"--{each.name}", action=argparse.BooleanOptionalAction, **common)
        return
    if kind == tuple[Path, ...]:
        parser.add_argument(f"--{each.name}", type=Path, nargs="+", metavar="PATH", **common)
        return
    metavar = "|".join(choices_of(each)) or kind.__name__.upper()
    parser.add_argument(f"--{each.name}", type=kind, metavar=metavar, **common)


def read_config(path: Path, kind: type[Options]) -> dict[str, Any]:
    """Reads a TOML file whose keys are flags.

    Raises:
        BadInput: no such file, no TOML, an unknown key or a value of the wrong type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise BadInput(f"--config {path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {path}: not TOML ({error})") from None
    hints = get_type_hints(kind)
    known = {each.name for each in flags(kind)}
    return {
        name: config_value(path, name, value, hints[name] if name in known else None)
        for name, value in content.items()
    }


def config_value(path: Path, name: str, value: Any, kind: type | None) -> Any:
    """Fits one value of the file to its field."""
    if kind is None:
        raise BadInput(f"--config {path}: unknown key {name!r}")
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise BadInput(f"--config {path}: {name} = {value!r}: must be of type {kind.__name__}")
    return value
