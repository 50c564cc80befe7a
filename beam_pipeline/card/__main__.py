"""`python -m beam_pipeline.card`: add the data card to a shard directory that lacks it."""

import os

# pyarrow reads this when imported: Arrow's own allocator would keep 30 MB more.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import sys
from collections.abc import Sequence

from beam_pipeline.card.card import write_card
from beam_pipeline.options import RunOptions, fill_in
from beam_pipeline.shards.manifest import read_rejects
from beam_pipeline.shards.output import find_manifest
from headct.commands import run_program
from headct.declarations import Declared, Location, OptionalLocation, parse_flags
from headct.errors import StoreError, UsageError
from headct.layout import CARD, INDEX, REJECTS, SCHEMA_VERSION
from headct.printable import show_line
from headct.stores import Folder, InputFiles


class CardOptions(Declared):
    """Make report.html, the data card, for a shard directory that has none."""

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
    given = parse_flags(CardOptions, argv, program)
    folder = Folder(given.shards)
    manifest = find_manifest(folder)
    if manifest is None:
        raise UsageError(f"{folder.url} is no finished shard directory")
    manifest["options"] = fill_in(manifest["options"])
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise UsageError(f"{folder.url} is of schema version {manifest['schema_version']}")
    try:
        files = InputFiles.parse(given.input or manifest["options"]["input"])
    except (UsageError, StoreError):
        if given.input:
            raise
        files = None  # the run's input has moved
    try:
        rejects = read_rejects(folder)
        index = folder.open(INDEX)
    except (OSError, ValueError):
        raise UsageError(f"{folder.url}: {REJECTS} or {INDEX} is missing or damaged") from None
    with index:
        write_card(folder, index, manifest, rejects, files, RunOptions().decode_timeout)
    print(f"written: {show_line(given.shards.rstrip('/'))}/{CARD}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
