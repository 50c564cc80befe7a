"""`headct inspect INPUT [LABELS]`: what `preprocess` would write, exclude and reject, and why."""

import os

# pyarrow reads this when imported: Arrow's own allocator would keep 30 MB more.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import json
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any

from rich.console import Console

from beam_pipeline.card.card import INSPECTOR
from beam_pipeline.command_line import complete_options
from beam_pipeline.inspection.inspection import inspect_input
from beam_pipeline.options import Files, Options, RunOptions
from beam_pipeline.progress import show_plan
from beam_pipeline.runners.choose import LOCAL
from beam_pipeline.workers import fork_server
from headct.commands import on_sigterm, run_program, spell
from headct.declarations import (
    Declared,
    DefaultText,
    LocalPath,
    did_you_mean,
    flag_parser,
    flags,
    named_in,
    parse_given,
    quoted,
    with_flags,
)
from headct.errors import OutputError, UsageError
from headct.stores import Folder
from headct.terminal import Terminal

_PAGE = Path("inspect.html")


class InspectedFiles(Files, title="files"):
    """What is read, and the page."""

    output: Annotated[
        LocalPath | None,
        DefaultText(f"{_PAGE}; with --json none"),
    ] = None  # type: ignore[assignment]  # not the shards of Files
    """page to write, HTML"""


with warnings.catch_warnings(action="ignore"):  # pydantic once had a method `json`

    class InspectOptions(RunOptions, title="run"):
        """How the work is done."""

        json: bool = False  # type: ignore[assignment]
        """print the summary as JSON, with the names of manifest.json"""
        overwrite: bool = False
        """replace --output even if it is another file than such a page"""


_REPLACED: dict[str, type[Declared]] = {"files": InspectedFiles, "run": InspectOptions}
KINDS = [_REPLACED.get(name, kind) for name, kind in Options.groups().items()]


def main(argv: Sequence[str], program: str = "python -m beam_pipeline.inspection") -> int:
    """Inspect, and return the exit code: 0 done, 2 bad options or input, 5 storage failed."""
    with on_sigterm():
        return run_program("inspect", lambda: _inspect(argv, program), resumes=False)


def options_of(_command: str) -> list[type[Declared]]:
    """Return the classes of the command's options."""
    return KINDS


def _inspect(argv: Sequence[str], program: str) -> None:
    text = (
        "Say what preprocess would write, exclude and reject, and why, by headers alone: "
        "inspect INPUT [LABELS]. Takes the options of preprocess; writes nothing but a page."
    )
    parser = flag_parser(program, text, *KINDS)
    given, others = parse_given(parser, KINDS, with_flags(argv, "--input", "--labels"))
    for word in others:
        meant = did_you_mean(word, [f"--{name}" for kind in KINDS for name in flags(kind)])
        raise UsageError(f"{named_in(word)}unknown option {quoted(word.partition('=')[0])}{meant}")
    chosen = {name: given.pop(name) for name in ("output", "json", "overwrite") if name in given}
    is_json = bool(chosen.get("json"))
    page = InspectedFiles(input="", output=chosen.get("output")).output
    page = page or (None if is_json else _PAGE)
    if page is not None:
        _check_page(page, overwrite=bool(chosen.get("overwrite")))
    console = Terminal(markup=False)
    options = complete_options(given | {"output": ""}, LOCAL)
    fork_server(options.files.input)
    found = inspect_input(options, Console(quiet=True) if is_json else console)
    if page is not None:
        Folder(str(page.parent)).write(page.name, found.page().encode())
    if is_json:
        print(json.dumps(found.summary, indent=2))
        return
    show_plan(console, found.summary)
    following = [f"Next: {_next(given)}"] if found.summary["counts"]["written"] else []
    for line in (f"More: {page}", *following):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _check_page(path: Path, *, overwrite: bool) -> None:
    """Check, before files are read for long, that the page can be written.

    Raises:
        UsageError: it would replace a file that is no such page.
        OutputError: its folder cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder; want a file")
    try:
        if not path.exists():
            folder = next(parent for parent in path.absolute().parents if parent.exists())
            with TemporaryFile(dir=folder):
                return
        with path.open("rb") as file:
            beginning = file.read(1 << 12)
    except OSError as error:
        raise OutputError(f"--output {path} cannot be written: {error.strerror}") from None
    if not overwrite and f'content="{INSPECTOR}"'.encode() not in beginning:
        raise UsageError(
            f"--output {path} exists and is no page of this command; choose another file, or "
            "--overwrite it"
        )


def _next(given: Mapping[str, Any]) -> str:
    """Return the command that does what was inspected."""
    own = {name: given.get(name) for name in ("input", "labels")}
    words = [*_words({name: value for name, value in given.items() if name not in own})]
    command = spell("preprocess", **own, output="out/shards")
    if not words:
        return command
    if command.startswith("make"):
        return f"{command} ARGS={shlex.quote(shlex.join(words))}"
    return f"{command} {shlex.join(words)}"


def _words(given: Mapping[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
            continue
        for each in value if isinstance(value, list) else [value]:
            yield f"--{name}={each}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
