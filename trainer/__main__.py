"""argv → options → the command they are of."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.command_line import parse_arguments
from trainer.commands import run_command
from trainer.errors import TrainerError
from trainer.shown import show_line

# As a shell counts it: 128 and the number of SIGINT.
INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Runs one command; its exit code."""
    try:
        run_command(parse_arguments(argv))
    except TrainerError as error:
        print(f"trainer: {show_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("trainer: interrupted; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
