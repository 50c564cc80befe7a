"""argv → options. Flags are the fields of the options' dataclasses, in snake_case."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from trainer.errors import BadInput
from trainer.options import EvaluateOptions, Options, PredictOptions, TrainOptions, choices_of

COMMANDS: tuple[tuple[str, type[Options], str], ...] = (
    ("train", TrainOptions, "train on a shard directory, or resume a run"),
    ("evaluate", EvaluateOptions, "measure a run on a labelled split"),
    ("predict", PredictOptions, "write a submission for an unlabelled split"),
)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all other bad input is."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would have printed below its usage text."""
        raise BadInput(message)


def parse_arguments(argv: Sequence[str]) -> Options:
    """Makes the options of the command that `argv` names.

    Raises:
        BadInput: an unknown command, flag or value.
    """
    parsed = vars(build_parser().parse_args(argv))
    kind = parsed.pop("kind")
    options: Options = kind(**parsed)
    return options


def build_parser() -> OneLineParser:
    """The parser of all commands."""
    parser = OneLineParser(prog="python -m trainer", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)
    for name, kind, text in COMMANDS:
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(kind=kind)
        hints = get_type_hints(kind)
        for each in fields(kind):
            add_option(command, each, hints[each.name])
    return parser


def add_option(parser: argparse.ArgumentParser, each: Field[Any], kind: type) -> None:
    """Adds the flag of one field."""
    needed = each.default is MISSING
    common: dict[str, Any] = {"help": each.metadata["help"], "required": needed}
    if not needed:
        common["default"] = each.default
    if kind is bool:
        parser.add_argument(f"--{each.name}", action=argparse.BooleanOptionalAction, **common)
        return
    parse: Callable[[str], Any] = Path if kind is Path else kind
    metavar = "|".join(choices_of(each)) or kind.__name__.upper()
    parser.add_argument(f"--{each.name}", type=parse, metavar=metavar, **common)
