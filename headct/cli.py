"""`headct COMMAND`: one console command for the pipeline and the trainer.

Imports only the called command's program: `headct verify` does not import TensorFlow.
"""

import os
import sys
from collections.abc import Sequence

from headct import __version__
from headct.commands import COMMANDS, STARTED_BY, run_program

_HELP = """Head-CT DICOM files to TFRecord shards, and shards to trained models.
`headct COMMAND --help` lists a command's options, `headct --version` the version,
`headct --print-completion SHELL` a completion script for bash, zsh, tcsh or fish."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code."""
    return run_program("headct", lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    if argv[:1] == ["--version"]:
        print(f"headct {__version__}")
        return 0
    # imported lazily: `--version` does not need pydantic
    from headct.declarations import choose_command

    if argv[:1] == ["--print-completion"]:
        from headct.completion import completion_script

        print(completion_script(argv[1] if argv[1:] else ""))
        return 0
    texts = {name: command.text for name, command in COMMANDS.items()}
    name = choose_command(argv, "headct", texts, _HELP)
    os.environ[STARTED_BY] = "headct"
    program = COMMANDS[name].load()
    if COMMANDS[name].module == "trainer":  # has several commands
        return int(program.main(argv, "headct"))
    return int(program.main(argv[1:], f"headct {name}"))
