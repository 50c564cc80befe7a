"""argv → options → the command they are of."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from trainer.command_line import parse_arguments
from trainer.commands import run_command
from trainer.errors import BadInput, TrainerError
from trainer.options import CompareOptions
from trainer.shown import show_line

# As a shell counts it: 128 and the number of SIGINT.
INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Runs one command; its exit code."""
    try:
        options = parse_arguments(argv)
        if not isinstance(options, CompareOptions):
            choose_backend(options.backend)
        run_command(options)
    except TrainerError as error:
        print(f"trainer: {show_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("trainer: interrupted; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    return 0


def choose_backend(name: str) -> None:
    """Tells Keras, which asks when it is imported, what to compute with.

    Raises:
        BadInput: it is not installed.
    """
    if find_spec(name) is None:
        raise BadInput(f"--backend {name}: not installed; `make train BACKEND={name}` brings it")
    os.environ["KERAS_BACKEND"] = name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
