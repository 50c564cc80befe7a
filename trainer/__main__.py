"""`python -m trainer`: the command line of training, evaluation, prediction and export."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from headct.commands import run_program


def main(argv: Sequence[str], program: str = "python -m trainer") -> int:
    """Run a command; return the exit code."""
    return run_program("trainer", lambda: _run(argv, program), error="")


def _run(argv: Sequence[str], program: str) -> None:
    # Imported here, so that a missing package ends the command with one line.
    from trainer.command_line import parse_arguments, run_command

    run_command(parse_arguments(argv, program))


def options_of(command: str) -> list[Any]:
    """Return the option classes of a command."""
    from trainer.command_line import COMMANDS

    return [COMMANDS[command]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
