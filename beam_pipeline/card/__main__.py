"""`python -m beam_pipeline.card`: add the data card and descriptions to a shard directory."""

import os

# pyarrow reads this when imported: Arrow's own allocator would keep 30 MB more.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import sys
from collections.abc import Sequence

from beam_pipeline.card.card import add_card
from beam_pipeline.options import RunOptions
from headct.commands import run_program
from headct.declarations import Declared, Location, OptionalLocation, parse_flags, with_flags
from headct.layout import CARD
from headct.printable import show_line
from headct.stores import Folder, InputFiles


class CardOptions(Declared):
    """Make report.html, the data card of a shard directory, and its missing descriptions.

    These are README.md and croissant.json.
    """

    shards: Location
    """shard directory; local or a URL"""
    input: OptionalLocation = None
    """where the run's input is now, to show files beside shards; by default where it was"""


def main(argv: Sequence[str], program: str = "python -m beam_pipeline.card") -> int:
    """Make the card; return the exit code: 0 done, 2 no such directory or input, 5 storage."""
    return run_program("card", lambda: _run(argv, program), resumes=False)


def options_of(_command: str) -> list[type[Declared]]:
    """Return the classes of the command's options."""
    return [CardOptions]


def _run(argv: Sequence[str], program: str) -> None:
    given = parse_flags(CardOptions, with_flags(argv, "--shards"), program)
    source = InputFiles.parse(given.input) if given.input else None
    add_card(Folder(given.shards), RunOptions().decode_timeout, source)
    print(f"written: {show_line(given.shards.rstrip('/'))}/{CARD}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
