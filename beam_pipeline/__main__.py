"""`python -m beam_pipeline`: DICOM files and labels to a shard directory."""

import gc
import os

# Read at the first import of pyarrow; Arrow's own allocator would keep an extra 30 MB.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
# Read at pydantic's first model: a search in all installed packages.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
# Imports leave no garbage: seldom searching for it saves a tenth of the start.
gc.set_threshold(50_000, 20, 100)

import logging
import sys
from collections.abc import Sequence

from beam_pipeline.command_line import KINDS, parse_options
from beam_pipeline.run import run
from beam_pipeline.workers import fork_server
from headct.commands import run_program
from headct.declarations import Declared
from headct.terminal import LineFormatter, Terminal


def main(argv: Sequence[str], program: str = "python -m beam_pipeline") -> int:
    """Run, and return the exit code.

    0 done, 1 the runner failed, 2 bad options, 3 too many rejects, 5 storage failed, 130 Ctrl-C.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    # Beam raises relevant errors; its log only adds noise when servers and threads end.
    handler.addFilter(lambda record: not record.name.startswith("apache_beam"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # On import, Beam warns about a missing BigQuery client, which is not used.
    logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools"))
    return run_program("beam_pipeline", lambda: _run_command(argv, program))


def options_of(_command: str) -> list[type[Declared]]:
    """Return the classes of the command's options."""
    return KINDS


def _run_command(argv: Sequence[str], program: str) -> int:
    options, chosen = parse_options(argv, program)
    if chosen.runner.is_local:
        fork_server(options.files.input)
    run(options, chosen, Terminal(markup=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
