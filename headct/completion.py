"""Shell completion: a script for bash, zsh, tcsh or fish, from the declared options."""

import shtab

from headct.commands import COMMANDS
from headct.declarations import OneLineParser, choices, flag_parser, flags
from headct.errors import UsageError


def completion_script(shell: str) -> str:
    """Return a script for a shell to source.

    Raises:
        UsageError: the shell is not supported.
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        known = ", ".join(shtab.SUPPORTED_SHELLS)
        raise UsageError(f"--print-completion {shell}: want one of {known}")
    parser = OneLineParser(prog="headct")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--print-completion", choices=shtab.SUPPORTED_SHELLS, help="this script")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, command in COMMANDS.items():
        kinds = command.load().options_of(name)
        fields = {key: field for kind in kinds for key, field in flags(kind).items()}
        parents = [flag_parser("", None, *kinds)]
        subparser = commands.add_parser(name, help=command.text, parents=parents, add_help=False)
        for action in subparser._actions:
            if action.dest in fields:
                action.choices = choices(fields[action.dest]) or None
            if action.metavar in ("PATH", "FILE"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))
