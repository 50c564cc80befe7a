"""argv → options → the command they are of."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headct.errors import HeadctError, UsageError
from headct.printable import show_line

# As a shell counts it: 128 and the number of SIGINT.
INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Runs one command; its exit code."""
    try:
        _run(argv)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "trainer"):
            raise
        print(
            f"trainer: {package} is not installed; `make train` brings it, and so does the extra"
            " `trainer`: pip install 'headct-shards[trainer]'",
            file=sys.stderr,
        )
        return UsageError.exit_code
    except HeadctError as error:
        print(f"trainer: {show_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("trainer: interrupted; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    return 0


def _run(argv: Sequence[str]) -> None:
    """Runs one command; what it needs may not be installed.

    Raises:
        HeadctError: see `headct.errors`.
        ModuleNotFoundError: a package is missing.
    """
    from trainer.command_line import parse_arguments
    from trainer.commands import run_command

    run_command(parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
