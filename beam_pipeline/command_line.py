"""The command line of `python -m beam_pipeline`: arguments to options."""

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from beam_pipeline.keys import KEY_VARIABLE, key_check, read_key
from beam_pipeline.options import Identifiers, Options
from beam_pipeline.runners.choose import (
    LOCAL,
    RUNNERS,
    ChosenRunner,
    Runner,
    choose_runner,
    complete_arguments,
    place_path,
)
from headct.declarations import (
    Declared,
    Mark,
    did_you_mean,
    flag_parser,
    flags,
    named_in,
    parse_given,
)
from headct.errors import UsageError


class RunnerOptions(Declared, title="runner"):
    """How a run is started; changes nothing that is written."""

    runner: Annotated[str, Field(description=f"one of {', '.join(RUNNERS)}")] = LOCAL.name
    cancel_on_interrupt: bool = False
    """let Ctrl-C end a job that would otherwise continue without this command"""


KINDS: list[type[Declared]] = [*Options.groups().values(), RunnerOptions]


def parse_options(
    argv: Sequence[str], program: str = "python -m beam_pipeline"
) -> tuple[Options, ChosenRunner]:
    """Return the options of a run, and the chosen runner.

    Raises:
        UsageError: a value is not allowed, or an option is unknown.
        RunnerError: the runner cannot be reached.
        SystemExit: `--help`.
    """
    parser = flag_parser(
        program,
        "Convert head-CT DICOM files to stratified TFRecord shards.",
        *KINDS,
        epilog="All other options are those of the chosen Beam runner.",
    )
    given, others = parse_given(parser, KINDS, argv)
    start = RunnerOptions(
        **{name: given.pop(name) for name in flags(RunnerOptions) if name in given}
    )
    runner = choose_runner(start.runner)
    options = complete_options(given, runner, others)
    arguments = complete_arguments(runner, others, parser._option_string_actions)
    return options, ChosenRunner(runner, tuple(arguments), start.cancel_on_interrupt)


def complete_options(
    given: Mapping[str, Any], runner: Runner, others: Sequence[str] = ()
) -> Options:
    """Return the options of a run, with defaults that depend on runner and environment.

    Args:
        given: given options, by name.
        runner: the runner.
        others: arguments unknown to the pipeline, perhaps the runner's.

    Raises:
        UsageError: an option is mistyped, not allowed, without effect, or excluded by another.
    """
    missing = [f"--{name}" for name in ("input", "output") if name not in given]
    if missing and others and not others[0].startswith("-"):
        raise UsageError(f"unknown argument {others[0]}: options start with --")
    for argument in others:
        meant = did_you_mean(argument, missing)
        if meant and argument.startswith("-"):  # clearer than a missing option
            name = argument.partition("=")[0]
            raise UsageError(f"{named_in(argument)}unknown option {name}{meant}")
    for name in ("id_column", "label_columns", "holdout"):
        if given.get(name) and not given.get("labels"):
            raise UsageError(f"--{name} {given[name]}: want --labels, too; it is of no use without")
    for name in ("windows", "voi"):
        if given.get("hu") and name in given:
            raise UsageError(
                f"--hu and --{name}: choose one; Hounsfield units are stored without windows"
            )
    options = Options.of(**given)
    changes: dict[str, Any] = {}
    if "workers" not in given and runner.is_local:
        changes["workers"] = os.cpu_count() or 1
    for group in Options.groups():
        for name, value in getattr(options, group):
            if Mark.LOCATION in Options.fields()[name].metadata:
                changes[name] = place_path(runner, name, value)
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
