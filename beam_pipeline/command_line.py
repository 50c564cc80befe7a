"""Arguments to options: every flag follows from the declaration of its option."""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from beam_pipeline.keys import KEY_VARIABLE, key_check, read_key
from beam_pipeline.options import Files, Identifiers, Options
from beam_pipeline.runners.choose import (
    LOCAL,
    RUNNERS,
    Launch,
    Runner,
    choose_runner,
    complete_arguments,
    place_path,
)
from headct.declarations import (
    Declared,
    Mark,
    OneLineParser,
    add_flags,
    did_you_mean,
    flags,
    refuse_empty,
)
from headct.errors import UsageError


class LaunchOptions(Declared, title="runner"):
    """How a run is started; nothing of it decides what is written."""

    runner: Annotated[str, Field(description=f"one of {', '.join(RUNNERS)}")] = LOCAL.name
    cancel_on_interrupt: bool = False
    """let Ctrl-C end a job that would otherwise continue without this command"""


def parse_options(argv: Sequence[str]) -> tuple[Options, Launch]:
    """What is to be done, and on what.

    Raises:
        UsageError: a value cannot be used, or nothing knows an option.
        RunnerError: the runner cannot be reached.
        SystemExit: `--help`.
    """
    parser = _parser()
    parsed, beam_argv = parser.parse_known_args(argv)
    values = vars(parsed)
    chosen = {name: values.pop(name) for name, _ in flags(LaunchOptions) if name in values}
    started = LaunchOptions(**chosen)
    runner = choose_runner(started.runner)
    _check_given(values, beam_argv)
    options = _complete(Options.of(**values), values, runner)
    arguments = complete_arguments(runner, beam_argv, parser._option_string_actions)
    return options, Launch(runner, tuple(arguments), started.cancel_on_interrupt)


def _check_given(given: Mapping[str, Any], others: Sequence[str]) -> None:
    """Refuse what the options by themselves do not show.

    Args:
        given: the options that were given.
        others: the arguments that are none of the pipeline's options.

    Raises:
        UsageError: a mistyped option, an empty one, or two that exclude each other.
    """
    required = [f"--{name}" for name, field in flags(Files) if field.is_required()]
    missing = [option for option in required if option.removeprefix("--") not in given]
    if missing and others and not others[0].startswith("-"):
        raise UsageError(f"unknown argument {others[0]}: options start with --")
    for argument in others:
        meant = did_you_mean(argument, missing)
        if meant and argument.startswith("-"):  # rather than that it is missing
            raise UsageError(f"unknown option {argument.partition('=')[0]}{meant}")
    refuse_empty(Files, given)
    for name in ("id_column", "label_columns", "holdout"):
        if given.get(name) and not given.get("labels"):
            raise UsageError(f"--{name} {given[name]}: want --labels, too; it is of no use without")
    excluded = [name for name in ("windows", "voi") if name in given]
    if given.get("hu") and excluded:
        raise UsageError(
            f"--hu and --{excluded[0]}: choose one; Hounsfield units are stored without windows"
        )


def _complete(options: Options, given: dict[str, Any], runner: Runner) -> Options:
    """Options with what depends on the runner and the environment."""
    changes: dict[str, Any] = {}
    if "workers" not in given and runner.is_local:
        changes["workers"] = os.cpu_count() or 1
    for part, kind in Options.parts().items():
        for name, field in flags(kind):
            if Mark.LOCATION in field.metadata:
                changes[name] = place_path(runner, name, getattr(getattr(options, part), name))
    if options.identifiers.identifiers is Identifiers.HASH:
        key_file = options.identifiers.identifier_key_file
        if key_file is None and not runner.is_local:
            raise UsageError(
                f"--identifiers hash on {runner.name} needs --identifier_key_file, a path or URL "
                f"that every worker can read: they do not have this machine's {KEY_VARIABLE}"
            )
        key = read_key(key_file, options.files.storage_patience)
        changes["identifier_key_check"] = key_check(key)
    return options.changed(**changes)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m beam_pipeline",
        description="Convert head-CT DICOM files to stratified TFRecord shards.",
        epilog="All other options are those of the chosen Beam runner.",
        allow_abbrev=False,
    )
    kinds: list[type[Declared]] = [*Options.parts().values(), LaunchOptions]
    for kind in kinds:
        group = parser.add_argument_group(str(kind.model_config.get("title")), kind.__doc__)
        add_flags(group, kind)
    return parser
